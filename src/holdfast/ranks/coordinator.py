"""Rank 0's side of each save: it calls, decides, gathers what the ranks wrote, and tells them what became of it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from holdfast.errors import LateError, RanksError, SaveError, TornError
from holdfast.ranks.agreement import Decision, Offer, coordinate
from holdfast.ranks.channel import Channel
from holdfast.ranks.keys import (
    begun_key,
    call_key,
    decision_key,
    difference_key,
    done_key,
    ended_key,
    offer_key,
    outcome_key,
    record_key,
    settled_key,
    stage_key,
)
from holdfast.ranks.membership import Membership
from holdfast.run.request import Answer

# Keys of agreements that are so far back go: whoever still looks for one has been silent for minutes.
_REMEMBERED = 16
# No rank that is alive takes longer to write its share.
_LONGEST_SECONDS = 3600.0


@dataclass(frozen=True)
class Record:
    """The record of what a rank wrote of a checkpoint, or why it did not.

    Args:
        files: Path, size in bytes and the digests of each of its files.
        tensors: The pieces of tensors that they hold.
        boundary: The manifest's entry for this rank's boundary.
        not_finite: The tensors of which it wrote NaN or infinity.
        requires: What a reader of its files must know beyond version 1 of the format.
        torn: The tensors that were written to meanwhile.
        at_rest: True where training stood still in this rank, so that another try would end alike.
        error: Any other failure, in words.
    """

    files: Sequence[tuple[str, int, str]] = ()
    tensors: Mapping[str, Any] = field(default_factory=dict)
    boundary: Mapping[str, Any] = field(default_factory=dict)
    not_finite: Sequence[str] = ()
    requires: Sequence[str] = ()
    torn: Sequence[str] = ()
    at_rest: bool = False
    error: str = ""


class Coordinator:
    """Leads the ranks through saves, one after the other.

    Args:
        channel: The channel to the other ranks.
        membership: Tells which ranks have not been heard of for too long.
    """

    def __init__(self, channel: Channel, membership: Membership) -> None:
        self._channel = channel
        self._membership = membership
        self._number = 0
        # Until each of the two is told, somebody waits for it.
        self._staged = True
        self._settled = True

    def not_begun(self) -> list[int]:
        """Returns the ranks that have not loaded yet what they resume from.

        Raises:
            RanksError: The store is gone.
        """
        if self._channel.all_there([begun_key(rank) for rank in self._channel.others]):
            return []
        return [rank for rank in self._channel.others if not self._channel.all_there([begun_key(rank)])]

    def begin(self) -> None:
        """Begins a new agreement. The own offer follows, then `call`."""
        self._number += 1
        self._staged = self._settled = False
        self._forget(self._number - _REMEMBERED)

    def call(
        self, own: Offer, *, stop: bool, after: int, asked_at: int | None = None, spare: float | None = None
    ) -> Decision:
        """Calls all ranks, and decides which boundary is saved.

        Args:
            own: The earliest boundary that rank 0 can give; its gate is shut for it.
            stop: True where training ends after it.
            after: The number of a boundary that is of no use.
            asked_at: The number of the boundary at which training itself asks for it; None where it does not.
            spare: The seconds from now on for which a boundary is waited for, and not the mark before it taken; None
                waits as long as it takes.

        Raises:
            RanksError: The store is gone.
        """
        offers = [offer_key(self._number, rank) for rank in self._channel.others]
        self._channel.put(call_key(self._number), {"stop": stop, "after": after, "asked_at": asked_at, "spare": spare})
        return self._channel.agree(coordinate(self._number, offers, own, self._channel.seconds))

    def stage(self, directory: str, mark: str, digests: Mapping[str, Any], *, wanted: bool) -> None:
        """Tells all ranks the directory to write into.

        Args:
            directory: The name of the staging directory in the run directory.
            mark: The content of a file there, by which they tell that it is the same one.
            digests: Those of what rank 0 holds, for the others to compare theirs with.
            wanted: True where it is not the schedule alone that asks for the save.
        """
        self._staged = True
        staged = {"directory": directory, "mark": mark, "digests": digests, "wanted": wanted}
        self._channel.put(stage_key(self._number), staged)

    def differences(self) -> list[Mapping[str, Any]]:
        """Waits for what the other ranks hold otherwise than rank 0.

        Raises:
            LateError: A rank did not come to the boundary in the time that the stop leaves.
            SaveError: A rank cannot take part, or has not been heard of for too long.
        """
        answers = self._from_all(difference_key, "has not compared its state")
        if late := [str(rank) for rank, answer in enumerate(answers, start=1) if answer["late"]]:
            raise LateError(f"rank {', '.join(late)} did not come to the boundary in time")
        _raise_errors({rank: answer["error"] for rank, answer in enumerate(answers, start=1) if answer["error"]})
        return [answer["differences"] for answer in answers]

    def settle(self, settled: Mapping[str, Any]) -> None:
        """Tells all ranks what is whose, by which they write."""
        self._settled = True
        self._channel.put(settled_key(self._number), settled)

    def gather(self) -> list[Record]:
        """Waits for the records of all other ranks.

        Raises:
            TornError: A rank's state was written to meanwhile.
            SaveError: A rank could not write, or has not been heard of for too long.
        """
        records = [Record(**content) for content in self._from_all(record_key, "has not written its share")]
        torn = [f"rank {rank}: {name}" for rank, record in enumerate(records, start=1) for name in record.torn]
        if torn:
            raise TornError(torn, at_rest=any(record.torn and record.at_rest for record in records))
        _raise_errors({rank: record.error for rank, record in enumerate(records, start=1) if record.error})
        return records

    def _from_all(self, key: Callable[[int, int], str], lacking: str) -> list[Any]:
        """Waits for what each other rank puts under a key of its own; `lacking` says of a silent one what it has not.

        Raises:
            SaveError: One has not been heard of for too long.
        """
        keys = [key(self._number, rank) for rank in self._channel.others]
        begun = time.monotonic()

        def check() -> None:
            waited = time.monotonic() - begun
            if waited < self._channel.seconds:
                return  # who has just agreed is there, though it may not have been heard of yet
            silent = [
                rank
                for rank in self._membership.silent()
                if not self._channel.all_there([key(self._number, int(rank))])
            ]
            if silent:
                raise SaveError(
                    f"rank {', '.join(silent)} has not been heard of for {self._channel.seconds:g} s, and {lacking}"
                )
            if waited > _LONGEST_SECONDS:
                raise SaveError(f"not all ranks were done within {_LONGEST_SECONDS:g} s: one {lacking}")

        return self._channel.wait_for_all(keys, check)

    def conclude(self, answer: Answer | None, requests: Sequence[str]) -> None:
        """Tells all ranks what became of the save.

        Args:
            answer: The answer. None: nothing was answered, and it is tried again.
            requests: The ids of the requests that were answered.
        """
        if not self._staged:
            self._staged = True
            self._channel.put(stage_key(self._number), {"directory": None})
        elif not self._settled:
            self._channel.put(settled_key(self._number), None)
        self._settled = True
        content = {"answer": None if answer is None else asdict(answer), "requests": list(requests)}
        self._channel.put(outcome_key(self._number), content)

    def answer(self, answer: Answer, requests: Sequence[str], leave: tuple[int, str] | None = None) -> None:
        """Tells all ranks the answer to requests that need no save of their own.

        Args:
            answer: The answer.
            requests: The ids of the requests.
            leave: The exit code and the reason, where training ends at once.
        """
        self._number += 1
        content = {"answer": asdict(answer), "requests": list(requests), "leave": leave}
        self._channel.put(call_key(self._number), content)

    def end(self, why: str) -> None:
        """Tells all ranks that there will be no more saves."""
        self._channel.put(call_key(self._number + 1), {"end": why})

    def wait_until_heard(self, seconds: float) -> None:
        """Waits until the other ranks know of the end. Where rank 0 serves the store it ends with this process."""
        until = time.monotonic() + seconds
        left = set(self._channel.others)
        while left and time.monotonic() < until:
            time.sleep(0.01)
            left = {rank for rank in left if not self._channel.there([ended_key(rank), done_key(rank)])}

    def others_are_done(self) -> bool:
        """Tells whether all other ranks are done with their training.

        Raises:
            RanksError: One that is not has not been heard of for too long, or the store is gone.
        """
        if self._channel.all_there([done_key(rank) for rank in self._channel.others]):
            return True
        if silent := self._membership.silent():
            raise RanksError(f"rank {', '.join(silent)} has not been heard of for {self._channel.seconds:g} s")
        return False

    def _forget(self, number: int) -> None:
        if number > 0:
            own = [key(number) for key in (call_key, decision_key, stage_key, settled_key, outcome_key)]
            theirs = (offer_key, difference_key, record_key)
            others = [key(number, rank) for rank in self._channel.others for key in theirs]
            self._channel.forget([*own, *others])


def _raise_errors(errors: Mapping[int, str]) -> None:
    if errors:
        raise SaveError("; ".join(f"rank {rank}: {error}" for rank, error in errors.items()))
