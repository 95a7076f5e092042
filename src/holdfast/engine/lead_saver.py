"""The thread that saves, in rank 0 of several: each save is agreed on, and every rank writes its share."""

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from holdfast.capture.boundary import Boundary
from holdfast.capture.snapshot import Snapshot, Snapshots
from holdfast.engine import save as saving
from holdfast.engine.saver import Service
from holdfast.errors import RanksError, SaveError
from holdfast.layouts import native
from holdfast.ranks.agreement import Decision, Offer
from holdfast.ranks.channel import Channel
from holdfast.ranks.coordinator import Coordinator, Record
from holdfast.ranks.membership import Membership
from holdfast.run.request import Answer, Request

# A step that training does not come to: nobody knows where all ranks could leave together.
_NEVER = sys.maxsize
# A rank that is alive hears of the end in milliseconds.
_HEARD_SECONDS = 2.0


class Leader(Service):
    """Serves requests for all ranks.

    Args:
        channel: To the other ranks.
        roll: What they tell.
        *args: As `Service` takes them.
    """

    def __init__(self, channel: Channel, roll: Membership, *args: Any) -> None:
        super().__init__(*args)
        self._channel = channel
        self._roll = roll
        self._coordinator = Coordinator(channel, roll.silent)
        self._begun = False
        self._leaves = False
        self._concluded: tuple[Answer, Sequence[Request]] | None = None

    def end(self, why: str) -> None:
        """Tells the other ranks that there will be no more saves."""
        try:
            self._coordinator.end(why)
        except RanksError as error:
            self._say(str(error))

    def close(self, *, together: bool) -> None:
        """Serves what waits until all ranks are done, and ends the thread.

        Args:
            together: Whether the others come to their end as well; after an error in this rank nobody knows.
        """
        try:
            if together and self._thread.is_alive():
                self._gate.block_until(self._coordinator.others_are_done)
        except RanksError as error:
            self._say(f"ending without the other ranks: {error}")
        super().close(together=together)
        self.end("rank 0 has ended")
        with suppress(RanksError):
            self._coordinator.wait_until_heard(_HEARD_SECONDS)

    def _serve_once(self) -> bool:
        if not self._begun:
            try:
                self._begun = self._coordinator.wait_until_begun(lambda: self._closing)
            except RanksError as error:
                self._fail(self._all_requests(), str(error))
                self._gate.open(None)
                return True
            if not self._begun:
                return False
        requests = self._all_requests()
        if self.stop_saved and self.last_answer is not None and all(request.stop for request in requests) and requests:
            # A signal to the whole group comes to each rank: one save serves them all.
            saving.answer_all(self._run, self.last_answer, requests)
            self._conclude(self.last_answer, requests)
            try:
                self._coordinator.answer(self.last_answer, [request.id for request in requests])
            except RanksError as error:
                self._say(f"the other ranks do not know what became of the save: {error}")
            if not (self._gate.boundary and self._gate.boundary.scheduled):
                self._gate.open(None)  # shut for these requests; the ranks that would agree on more may have left
            return True
        stop = any(request.stop for request in requests)
        self._concluded = None
        boundary = None
        try:
            decision = self._called(stop)
            if decision.boundary is not None:
                boundary = self._gate.take(decision.boundary, self._is_hopeless)
            if boundary is None:
                self._fail(requests, decision.why or "training ended before the boundary that was agreed on")
                return not self._closing  # whoever is missing at the end does not come back for the next request
            if stop:
                self._leaves = True
                self._on_stop(boundary.step)
            self._save(boundary, requests)
        finally:
            # The others hear of it before this rank trains on: what it says next is about another save.
            self._tell_outcome()
            self._gate.open(None if boundary is None else boundary.number)
        return True

    def _called(self, stop: bool) -> Decision:
        def offer() -> Offer:
            return Offer(self._gate.offer(self._stale_before), self._gate.is_blocked)

        begun = time.monotonic()
        try:
            decision = self._coordinator.call(offer, stop=stop, after=self._stale_before)
        except RanksError as error:
            return Decision(None, str(error))
        seconds = round(time.monotonic() - begun, 4)
        self._run.journal.write("agreed", boundary=decision.boundary, why=decision.why, seconds=seconds)
        return decision

    def _fail(self, requests: Sequence[Request], why: str) -> None:
        step = self._gate.boundary.step if self._gate.boundary else 0
        due = self._gate.boundary.scheduled if self._gate.boundary and self._gate.is_shut else ""
        answer = Answer(saved=False, step=step, error=f"the ranks did not agree: {why}")
        saving.tell(self._run, answer, [*requests, *([Request("schedule", why=due)] if due else [])])
        self._conclude(answer, requests)

    def _conclude(self, answer: Answer, requests: Sequence[Request]) -> None:
        self._concluded = (answer, requests)
        super()._conclude(answer, requests)

    def _tell_outcome(self) -> None:
        answer, requests = self._concluded or (None, ())
        try:
            self._coordinator.conclude(answer, [request.id for request in requests])
        except RanksError as error:
            self._say(f"the other ranks do not know what became of the save: {error}")

    def _leave(self) -> None:
        if not self._leaves:
            self._on_stop(_NEVER)

    def _snapshot(self, snapshots: Snapshots, boundary: Boundary) -> Snapshot:
        """The ranks' shares together."""
        own = super()._snapshot(snapshots, boundary)
        pieces: list[Mapping[str, Any]] = []
        others: list[Mapping[str, Any]] = []
        not_finite: list[str] = []

        def write(directory: Path) -> Mapping[str, str]:
            self._coordinator.stage(directory.name, snapshots.rank0_digests(boundary))
            known = own.write(directory)
            records = self._coordinator.gather()
            pieces.extend([own.tensors(), *(record.tensors for record in records)])
            others.extend(record.boundary for record in records)
            not_finite.extend(name for names in (own.not_finite(), *(r.not_finite for r in records)) for name in names)
            return {**known, **_digests(directory, records)}

        return replace(
            own,
            write=write,
            estimated_bytes=own.estimated_bytes * (self._channel.size if own.layout == native.NAME else 1),
            world_size=self._channel.size,
            tensors=lambda: native.merge(pieces) if any(pieces) else {},
            others=lambda: others,
            not_finite=lambda: not_finite,
        )


def _digests(directory: Path, records: Sequence[Record]) -> dict[str, str]:
    """What the other ranks wrote, as far as this one sees the same files."""
    found = {}
    for rank, record in enumerate(records, start=1):
        for path, size, digest in record.files:
            try:
                here = (directory / path).stat().st_size
            except OSError as error:
                raise SaveError(f"rank {rank} wrote {path}, and rank 0 does not see it: {error.strerror}") from error
            if here != size:
                raise SaveError(f"rank {rank} wrote {size} bytes of {path}, and rank 0 sees {here}")
            found[path] = digest
    return found
