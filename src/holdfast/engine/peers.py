"""The strategies of the saving thread: a process that trains alone, and rank 0, which saves with all others."""

import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from holdfast.capture.boundary import Boundary
from holdfast.capture.gate import Gate
from holdfast.capture.replicas import Replicas, in_short
from holdfast.capture.snapshot import Snapshot, Snapshots
from holdfast.doors.request_queue import RequestQueue
from holdfast.engine import rest_of_body
from holdfast.engine.batch import Batch
from holdfast.engine.session import Session
from holdfast.engine.stop import Stop
from holdfast.errors import RanksError, SaveError
from holdfast.layouts import native
from holdfast.layouts.layout import BY_NAME
from holdfast.ranks.agreement import Decision, Offer
from holdfast.ranks.channel import Channel
from holdfast.ranks.coordinator import Coordinator, Record
from holdfast.ranks.membership import Membership
from holdfast.run.request import Answer, Request
from holdfast.store import files
from holdfast.store.commit import marked
from holdfast.store.folder import Folder

# A step that training does not come to: nobody knows where all ranks could leave together.
_NEVER = sys.maxsize
# A rank that is alive hears of the end in milliseconds.
_HEARD_SECONDS = 2.0
_LOOK_SECONDS = 0.1
_BEGUN_SECONDS = 0.05
# A rank that waits for a boundary in vain hears within a second that a mark is to be saved in its place.
_AGREEING_SECONDS = 3.0


class Peers(Protocol):
    """The processes that save together, as the saving thread sees them."""

    leave_after: int | None
    """The step after which training leaves when a stop was served; None: as soon as it can."""

    def start(self) -> None:
        """Begins to hear of them."""

    def boundary(self, batch: Batch, stale_before: int) -> Boundary | None:
        """Takes the batch, and shuts the gate at the boundary that is saved for it.

        Args:
            batch: The requests.
            stale_before: The number of a boundary that is of no use any more.

        Returns:
            The boundary; None where training is ending, and there will be none.

        Raises:
            RanksError: The ranks did not agree on one.
        """

    def snapshot(self, snapshots: Snapshots, boundary: Boundary) -> Snapshot:
        """Returns the snapshot of a boundary in all of them."""

    def conclude(self, answer: Answer | None, requests: Sequence[str]) -> None:
        """Tells the others what became of the save, before this process trains on.

        Args:
            answer: None where nothing was answered, and it is tried again.
            requests: The ids of those that were answered.
        """

    def repeat(self, answer: Answer, requests: Sequence[str]) -> None:
        """Tells the others the answer to requests that need no save of their own."""

    def end_unsaved(self, answer: Answer, requests: Sequence[str], code: int, why: str, *, at_once: bool) -> None:
        """Ends training in all of them, before its first update: there is nothing to save.

        Args:
            answer: The answer to those who asked for it.
            requests: Their ids.
            code: The exit code.
            why: The reason, in words.
            at_once: True where the process ends now; otherwise its loop ends by itself.
        """

    def may_have_left(self) -> bool:
        """Returns whether others may have left, so that no further save can be agreed on."""

    def wait_for_end(self) -> None:
        """Waits, in the blocked training thread, until the others have come to their end as well."""

    def close(self) -> None:
        """Parts from them: this process saves no more."""


class Alone:
    """The strategy of a process that trains alone.

    Args:
        session: The training.
    """

    leave_after: int | None = None

    def __init__(self, session: Session) -> None:
        self._session = session
        self._gate: Gate = session.gate
        self._stop: Stop = session.stop

    def start(self) -> None:
        """Does nothing: there is nobody to hear of."""

    def boundary(self, batch: Batch, stale_before: int) -> Boundary | None:
        """Shuts the gate at the next boundary, and takes the batch: what comes until then shares the save."""
        boundary = self._gate.shut(stale_before, partial(self._is_running_out, batch))
        if boundary is not None:
            batch.take(boundary)
        if batch.stops:
            self._stop.noticed.set()
        return boundary

    def _is_running_out(self, batch: Batch) -> bool:
        if batch.stop_waits:
            rest_of_body.begin_grace(self._session)
        return self._session.is_running_out()

    def snapshot(self, snapshots: Snapshots, boundary: Boundary) -> Snapshot:
        """Returns the snapshot of a boundary."""
        return snapshots.of(boundary)

    def conclude(self, answer: Answer | None, requests: Sequence[str]) -> None:
        """Does nothing: there is nobody to tell."""

    def repeat(self, answer: Answer, requests: Sequence[str]) -> None:
        """Does nothing: there is nobody to tell."""

    def end_unsaved(self, answer: Answer, requests: Sequence[str], code: int, why: str, *, at_once: bool) -> None:
        """Ends training in this process."""
        self._stop.end_unsaved(code, why, 0.0 if at_once else None)

    def may_have_left(self) -> bool:
        """Returns False."""
        return False

    def wait_for_end(self) -> None:
        """Does nothing: there is nobody to wait for."""

    def close(self) -> None:
        """Does nothing."""


class RankZero:
    """The strategy of rank 0: each save is agreed on, and every rank writes its share.

    Args:
        session: The training.
        channel: To the other ranks.
        queue: Takes the requests that they pass on.
    """

    leave_after: int | None = _NEVER

    def __init__(self, session: Session, channel: Channel, queue: RequestQueue) -> None:
        self._session = session
        self._channel = channel
        self._queue = queue
        self._membership = Membership(channel)
        self._coordinator = Coordinator(channel, self._membership)
        self._begun = False
        self._called = False
        self._calls: list[tuple[Request, int]] = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="holdfast-membership", daemon=True)

    def start(self) -> None:
        """Begins to hear of the other ranks."""
        self._thread.start()

    def boundary(self, batch: Batch, stale_before: int) -> Boundary | None:
        """Takes the batch, agrees with all ranks on the boundary that is saved for it, and shuts the gate there."""
        gate = self._session.gate
        batch.take()  # for an answer, if they never begin
        if not self._wait_until_begun():
            return None
        batch.take(gate.boundary)
        stop = bool(batch.stops)
        decision = self._agree(stop=stop, stale_before=stale_before)
        boundary = self._take(decision, batch)
        if boundary is None and stop and decision.boundary is not None and self._is_running_out(batch):
            self.conclude(None, ())  # training does not come to it in time: a mark has to do, in all ranks
            decision = self._agree(stop=stop, stale_before=stale_before)
            boundary = self._take(decision, batch)
        if boundary is None:
            raise RanksError(decision.why or "training ended before the boundary that was agreed on")
        if not stop:
            batch.take_agreed(boundary)
        else:
            self._session.stop.begin(boundary.step, ends_body=decision.past)
        gate.decided()
        return boundary

    def snapshot(self, snapshots: Snapshots, boundary: Boundary) -> Snapshot:
        """Returns the snapshot that consists of all ranks' shares."""
        own = snapshots.of(boundary)
        size = self._channel.size
        others: list[Record] = []

        def write(folder: Folder) -> Mapping[str, str]:
            with marked(folder) as mark:
                self._coordinator.stage(folder.path.name, mark, snapshots.tally(boundary), wanted=boundary.is_wanted)
                self._settle(snapshots.replicas)
                digests = own.write(folder)
                records = self._coordinator.gather()
            others.extend(records)
            return {**digests, **_digests(folder, records)}

        return replace(
            own,
            write=write,
            estimated_bytes=own.estimated_bytes * (size if BY_NAME[own.layout].every_rank_writes else 1),
            world_size=size,
            tensors=lambda: _merged([own.tensors(), *(record.tensors for record in others)]),
            others=lambda: [record.boundary for record in others],
            not_finite=lambda: [*own.not_finite(), *(name for record in others for name in record.not_finite)],
            requires=lambda: [*own.requires(), *(word for record in others for word in record.requires)],
        )

    def _settle(self, replicas: Replicas) -> None:
        """Settles with the other ranks what of the state is alike, and names what is seen to differ, once."""
        self._coordinator.settle(replicas.settle(self._coordinator.differences()))
        if replicas.news:
            differ = "differs" if len(replicas.news) == 1 else "differ"
            self._session.log.info(
                f"{in_short(replicas.news)} {differ} between the ranks: each saves its own, and resumes with it"
            )

    def conclude(self, answer: Answer | None, requests: Sequence[str]) -> None:
        """Tells the other ranks what became of the save."""
        if not self._called:
            if answer is not None:  # the ranks did not come to be called
                self.repeat(answer, requests)
            return
        self._called = False
        try:
            self._coordinator.conclude(answer, requests)
        except RanksError as error:
            self._session.log.warning(f"the other ranks do not know what became of the save: {error}")

    def repeat(self, answer: Answer, requests: Sequence[str]) -> None:
        """Tells the other ranks the answer to requests that need no save of their own."""
        try:
            self._coordinator.answer(answer, requests)
        except RanksError as error:
            self._session.log.warning(f"the other ranks do not know what became of the save: {error}")

    def end_unsaved(self, answer: Answer, requests: Sequence[str], code: int, why: str, *, at_once: bool) -> None:
        """Ends training in all ranks at once: they may not come to a step together. The others hear of it first."""
        try:
            self._coordinator.answer(answer, requests, leave=(code, why))
        except RanksError as error:
            self._session.log.warning(f"the other ranks do not know that training ends: {error}")
        self._session.stop.end_unsaved(code, why, _HEARD_SECONDS)

    def may_have_left(self) -> bool:
        """Returns whether a stop was saved: from then on ranks leave."""
        return bool(self._session.stop.saved)

    def wait_for_end(self) -> None:
        """Waits, in the blocked training thread, until all other ranks are done."""
        try:
            self._session.gate.block_until(self._coordinator.others_are_done)
        except RanksError as error:
            self._session.log.warning(f"ending without the other ranks: {error}")

    def close(self) -> None:
        """Tells the other ranks that there will be no more saves, and waits until they know."""
        self._end("rank 0 has ended")
        with suppress(RanksError):
            self._coordinator.wait_until_heard(_HEARD_SECONDS)
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def _end(self, why: str) -> None:
        try:
            self._coordinator.end(why)
        except RanksError as error:
            self._session.log.warning(str(error))

    def _wait_until_begun(self) -> bool:
        """Waits until all ranks have begun to train; False when this one comes to its end before."""
        until = time.monotonic() + self._channel.seconds
        while not self._begun:
            absent = self._coordinator.not_begun()
            self._begun = not absent
            if absent and self._session.gate.is_ending:
                return False
            if absent and self._session.gate.is_at_beginning and time.monotonic() > until:
                ranks = ", ".join(map(str, absent))
                raise RanksError(f"rank {ranks} has not begun to train within {self._channel.seconds:g} s")
            if absent:
                time.sleep(_BEGUN_SECONDS)
        return True

    def _take(self, decision: Decision, batch: Batch) -> Boundary | None:
        """Takes the boundary that was agreed on; None where there is none, or training does not come to it in time."""
        if decision.boundary is None:
            return None
        give_up = None if decision.mark else partial(self._is_running_out, batch)
        return self._session.gate.take(decision.boundary, give_up, mark=decision.mark)

    def _is_running_out(self, batch: Batch) -> bool:
        if batch.stop_waits:
            rest_of_body.begin_grace(self._session)
        spare = self._session.spare_seconds(_AGREEING_SECONDS)
        return spare is not None and spare <= 0

    def _agree(self, *, stop: bool, stale_before: int) -> Decision:
        gate, begun = self._session.gate, time.monotonic()
        self._called = True
        try:
            self._coordinator.begin()
            spare = self._session.spare_seconds(_AGREEING_SECONDS) if stop else None
            late = spare is not None and spare <= 0
            offer = Offer(*gate.offer(stale_before, out_of_time=late), mark=gate.is_at_mark)
            here = gate.boundary
            asked_at = here.number if here is not None and here.asked else None
            decision = self._coordinator.call(offer, stop=stop, after=stale_before, asked_at=asked_at, spare=spare)
        except RanksError as error:
            return Decision(None, str(error))
        seconds = round(time.monotonic() - begun, 4)
        self._session.run.journal.write("agreed", boundary=decision.boundary, why=decision.why, seconds=seconds)
        return decision

    def _watch(self) -> None:
        """Takes in what the other ranks tell, in a thread of its own."""
        has_left = False
        while not self._closing.wait(_LOOK_SECONDS):
            try:
                news = self._membership.look()
            except RanksError:
                return  # the store ends with the training; whoever waits for something is told so there
            for request in news.requests:
                if (number := news.calls.get(request.id)) is None:
                    self._queue.accept(request)
                else:
                    self._calls.append((request, number))
            self._take_calls_in()
            self._session.run.status.update(ranks=tuple(news.ranks))
            if news.has_left and not has_left:
                has_left = True
                self._let_go()

    def _take_calls_in(self) -> None:
        """Takes in what training has asked for at a boundary in other ranks, once it has come to that here as well.

        Where it makes the same call here, that is the one that is served.
        """
        gate = self._session.gate
        due = [call for call in self._calls if self._queue.knows(call[0]) or gate.has_made_its_calls(call[1])]
        self._calls = [call for call in self._calls if call not in due]
        for request, _ in due:
            self._queue.accept(request)

    def _let_go(self) -> None:
        """Ends the saves after that of a stop when a rank is no more where the others need it: nobody waits for it."""
        if self._session.stop.saved is not None:
            self._end("a rank has left")
            self._session.stop.shorten()


def _merged(tensors: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return native.merge(tensors) if any(tensors) else {}


def _digests(folder: Folder, records: Sequence[Record]) -> dict[str, str]:
    """Returns the digests of what the other ranks wrote, as far as this one sees the same files."""
    digests = {}
    for rank, record in enumerate(records, start=1):
        for path, size, digest in record.files:
            try:
                with files.open_inside(folder, path) as fd:
                    here = os.fstat(fd).st_size
            except OSError as error:
                raise SaveError(f"rank {rank} wrote {path}, and rank 0 does not see it: {error.strerror}") from error
            if here != size:
                raise SaveError(f"rank {rank} wrote {size} bytes of {path}, and rank 0 sees {here}")
            digests[path] = digest
    return digests
