"""The agreement of ranks on the boundary that is saved: one call, one offer of each rank, one decision.

Here is the protocol alone, as generators that yield what they want done with the store and are sent what came of it. So
the same lines run over torch's store (`channel.py`) and in a simulation of hundreds of ranks (`tests/ranks/`).
`docs/design.md` argues why it cannot hang, and why there is one decision.
"""

import json
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from holdfast.ranks.keys import decision_key, offer_key

# Of many silent ranks, so many are named.
_NAMED = 8


@dataclass(frozen=True)
class Put:
    """Sets a key."""

    key: str
    value: str


@dataclass(frozen=True)
class Get:
    """Waits for keys; the result is their values, or None when the time is up."""

    keys: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Present:
    """Looks for keys without waiting; the result is those that are there."""

    keys: tuple[str, ...]


@dataclass(frozen=True)
class Claim:
    """Sets a key that nobody has set yet; the result is what it holds then, whoever was first."""

    key: str
    value: str


Operation = Put | Get | Present | Claim
Steps = Generator[Operation, Any, "Decision"]


@dataclass(frozen=True)
class Offer:
    """The earliest boundary that a rank can still give, and keeps until there is a decision.

    Args:
        boundary: Its number, which counts alike on all ranks.
        last: The rank can give no later one: its data has ended, or its training thread waits for this save.
        past: Its training is past the end of the epoch's batches there, in the rest of the epoch's body.
        mark: It is the mark before that boundary: the rank may not come to the boundary itself.
    """

    boundary: int
    last: bool = False
    past: bool = False
    mark: bool = False

    def encode(self) -> str:
        """Returns it as text for the store."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Decision:
    """The decision that all ranks read, word for word.

    Args:
        boundary: The number of the boundary; None where there is none.
        why: The reason for that.
        mark: The mark before it is saved.
        past: A rank is past the end of the epoch's batches there: after a stop all leave at the end of the body.
    """

    boundary: int | None
    why: str = ""
    mark: bool = False
    past: bool = False

    def encode(self) -> str:
        """Returns it as text for the store."""
        return json.dumps(asdict(self))


def coordinate(number: int, offers: Sequence[str], own: Offer, seconds: float) -> Steps:
    """Runs the coordinator's side, after the call: collects the offers of all ranks, and decides.

    Args:
        number: The number of this agreement; every one has its own.
        offers: The keys that the other ranks put their offers under.
        own: The coordinator's own offer.
        seconds: The time that it waits for the others.
    """
    texts: list[str] | None = yield Get(tuple(offers), seconds) if offers else Present(())
    if texts is None:
        there = yield Present(tuple(offers))
        silent = [key.rpartition("/")[2] for key in offers if key not in there]
        if not silent:  # the last one came just now
            texts = yield Get(tuple(offers), seconds)
        more = f" and {len(silent) - _NAMED} more" if len(silent) > _NAMED else ""
        decided = Decision(None, f"rank {', '.join(silent[:_NAMED])}{more} gave no answer within {seconds:g} s")
    if texts is not None:
        decided = decide([own, *(Offer(**json.loads(text)) for text in texts)])
    won: str = yield Claim(decision_key(number), decided.encode())
    return Decision(**json.loads(won))


def join(number: int, rank: int, own: Offer, seconds: float) -> Steps:
    """Runs another rank's side, after the call: offers, and takes what was decided.

    Where no decision comes in time, there is no boundary for anybody.
    """
    yield Put(offer_key(number, rank), own.encode())
    # Longer than the coordinator, which alone knows who is silent, and should be the first to give up.
    patience = 1.5 * seconds
    texts: list[str] | None = yield Get((decision_key(number),), patience)
    if texts is None:
        given_up = Decision(None, f"rank {rank} saw no decision within {patience:g} s")
        texts = [(yield Claim(decision_key(number), given_up.encode()))]
    return Decision(**json.loads(texts[0]))


def decide(offers: Sequence[Offer]) -> Decision:
    """Chooses the earliest boundary that every rank can give.

    Args:
        offers: The offers of all ranks, in their order.
    """
    wanted = max(offer.boundary for offer in offers)
    behind = [rank for rank, offer in enumerate(offers) if offer.last and offer.boundary < wanted]
    if behind:
        ranks = ", ".join(str(rank) for rank in behind)
        return Decision(None, f"ranks ended unevenly: rank {ranks} stands at an earlier boundary than the others")
    of_it = [offer for offer in offers if offer.boundary == wanted]
    return Decision(wanted, mark=any(offer.mark for offer in of_it), past=any(offer.past for offer in of_it))
