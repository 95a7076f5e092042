"""The view that a start has of its mirror: whose it is, who has had the run last, and what is there."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from holdfast.remote.keys import CheckpointKey


class Remote(NamedTuple):
    """A checkpoint of a run that is in its mirror: its name there, and what its manifest says.

    Args:
        key: Its name.
        step: Its step; 0 where its manifest is not to be believed.
        size: The size of its files, in bytes.
        layout: Its layout.
        problem: The reason why its manifest is not to be believed; empty where it is.
        is_named: True where it has a label or a slot.
    """

    key: CheckpointKey
    step: int = 0
    size: int = 0
    layout: str = ""
    problem: str = ""
    is_named: bool = False


@dataclass(frozen=True)
class Seen:
    """One look at a mirror.

    Args:
        owner: The identity of the run that the place belongs to; None where it belongs to none yet.
        newest: The greatest term of that run, those excepted that the start itself has claimed; 0 for none.
        host: The host of the start that claimed it, for people to read; empty where nobody knows.
        parent: The attempt that this one has gone on from; None where it began anew, or nobody knows.
        is_claim_known: True where the two are known.
        published: The checkpoints that are there, the newest first.
        pins: The attempts that are pinned there.
        asked: The attempts that somebody asked for after they had been saved for another reason.
    """

    owner: str | None = None
    newest: int = 0
    host: str = ""
    parent: str | None = None
    is_claim_known: bool = False
    published: tuple[Remote, ...] = ()
    pins: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()

    def newest_of(self, term: int, damaged: Collection[str] = ()) -> Remote | None:
        """Returns the newest checkpoint of a term, those excepted that turned out to be damaged; None for none."""
        return next((c for c in self.published if c.key.term == term and c.key.attempt not in damaged), None)

    def as_json(self) -> dict[str, Any]:
        """Returns it as another process reads it."""
        return asdict(self)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Seen":
        """Reads what `as_json` gave."""
        published = (Remote(CheckpointKey(*key), *rest) for key, *rest in content["published"])
        marks = {name: tuple(content[name]) for name in ("pins", "asked")}
        return cls(**{**content, **marks, "published": tuple(published)})
