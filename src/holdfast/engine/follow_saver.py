"""The thread that saves in every other rank: it gives its share of what rank 0 calls for."""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from holdfast.capture.boundary import Boundary
from holdfast.capture.gate import Gate
from holdfast.capture.snapshot import Snapshots
from holdfast.capture.staging_budget import StagingBudget
from holdfast.engine.saver_base import Serving
from holdfast.errors import RanksError, TornError
from holdfast.ranks.agreement import Offer, join
from holdfast.ranks.channel import Channel
from holdfast.ranks.coordinator import Record
from holdfast.ranks.heartbeat import Heartbeat
from holdfast.ranks.keys import begun_key, call_key, done_key, ended_key, outcome_key, record_key, stage_key
from holdfast.run.request import Answer
from holdfast.run.run import Run
from holdfast.store import commit, digest, names

# A save that rank 0 is still busy with after this time has been lost together with it.
_LONGEST_SECONDS = 3600.0
_LOOK_SECONDS = 1.0


class Member(Serving):
    """Takes part in saves from the first boundary of a training to its end.

    Args:
        channel: To rank 0.
        beat: What is asked in this rank.
        run: The run that rank 0 opened.
        gate: Between training and this thread.
        say: Prints a line for the user.
        on_stop: Called with the step after which all ranks leave.
        on_alone: Called when the others have ended while this rank still trains.
    """

    def __init__(
        self,
        channel: Channel,
        beat: Heartbeat,
        run: Run,
        gate: Gate,
        say: Callable[[str], None],
        on_stop: Callable[[int | None], None],
        on_alone: Callable[[], None],
    ) -> None:
        super().__init__(gate)
        self._channel = channel
        self._beat = beat
        self._run = run
        self._say = say
        self._on_stop = on_stop
        self._on_alone = on_alone

    def start(self, snapshots: Snapshots, reserve: StagingBudget) -> None:
        """Begins to take part."""
        self._channel.put(begun_key(self._channel.rank), True)
        super().start(snapshots, reserve)

    def wake(self) -> None:
        """Rank 0 calls; nothing here waits for anything else."""

    def settle(self) -> None:
        """Returns when everything that was asked for here is answered. Training stands still meanwhile."""
        self._stand_until(lambda: not self._busy and not self._beat.waiting and not self._gate.is_shut)

    def close(self, *, together: bool) -> None:
        """Takes part until rank 0 says that there will be no more saves.

        Args:
            together: Whether this rank comes to its end as the others do. After an error it leaves as soon as what was
                asked here is answered.
        """
        if not self._thread.is_alive():
            return
        if not together:
            limit = time.monotonic() + 2 * self._channel.seconds
            self._stand_until(lambda: (not self._busy and not self._beat.waiting) or time.monotonic() > limit)
        self._closing = True
        try:
            self._channel.put(done_key(self._channel.rank), True)
        except RanksError as error:
            self._say(str(error))
            return
        if together:
            self._stand_until(lambda: False)

    def stand_still(self, reason: str) -> None:
        """From now on, snapshots are taken while training stands still at a boundary."""
        self._gate.only_when_blocked = True
        self._run.journal.write("capture", rank=self._channel.rank, mode="at a boundary", reason=reason)

    def refuse(self, why: str) -> None:
        """Tells everybody who still waits here that nothing was saved."""
        step = self._gate.boundary.step if self._gate.boundary else 0
        for request in self._beat.take():
            if ticket := self.tickets.pop(request.id, None):
                ticket.resolve(Answer(saved=False, step=step, error=why))

    def _stand_until(self, settled: Callable[[], bool]) -> None:
        self._gate.block_until(lambda: not self._thread.is_alive() or settled())

    def _serve(self) -> None:
        number = 0
        try:
            while True:
                number += 1
                call = self._channel.get(call_key(number))
                if "end" in call:
                    self._channel.put(ended_key(self._channel.rank), True)
                    break
                if "answer" in call:
                    self._hear(call, None, stop=False)
                    continue
                self._busy = True
                try:
                    with self._patience.watch(lambda seconds: self._let_go()):  # rank 0 says so
                        self._take_part(number, call)
                except RanksError as error:
                    self._say(f"no share of the save from this rank: {error}")
                finally:
                    self._busy = False
        except RanksError as error:
            if not self._closing:
                self._say(f"no more saves from this rank: {error}")
        finally:
            self._gate.open(None)
            self.refuse("the other ranks have ended")
        if not self._closing:
            self._on_alone()

    def _take_part(self, number: int, call: dict[str, Any]) -> None:
        boundary = None
        try:
            offer = Offer(self._gate.offer(max(self._stale_before, call["after"])), self._gate.is_blocked)
            decision = self._channel.agree(join(number, self._channel.rank, offer, self._channel.seconds))
            if decision.boundary is not None:
                boundary = self._gate.take(decision.boundary, self._is_over(number))
                if boundary is not None and call["stop"]:
                    self._on_stop(boundary.step)
                self._give(number, boundary)
        finally:
            self._gate.open(None if boundary is None else boundary.number)
        self._hear(self._channel.get(outcome_key(number), _LONGEST_SECONDS), boundary, stop=call["stop"])

    def _is_over(self, number: int) -> Callable[[], bool]:
        """Whether rank 0 has given the save up; asked of the store once a second."""
        looked = time.monotonic()

        def over() -> bool:
            nonlocal looked
            if time.monotonic() - looked < _LOOK_SECONDS:
                return False
            looked = time.monotonic()
            return self._channel.all_there([outcome_key(number)])

        return over

    def _give(self, number: int, boundary: Boundary | None) -> None:
        told = self._channel.get(stage_key(number), _LONGEST_SECONDS)
        staged = told["directory"]
        if staged is None:
            return
        if boundary is None:
            record = Record(error="its training never came to the boundary that was agreed on")
        elif not names.is_staging(staged):
            record = Record(error=f"{staged!r} is no staging directory")
        else:
            record = self._write(replace(boundary, rank0_digests=told["common"]), self._run.root / staged)
        self._channel.put(record_key(number, self._channel.rank), asdict(record))

    def _write(self, boundary: Boundary, directory: Path) -> Record:
        assert self._in_use is not None
        snapshots, reserve = self._in_use
        if not snapshots.is_still_valid(boundary):
            if not self._gate.is_blocked:
                return Record(error="its state was given other tensors since the boundary; ask again")
            boundary = replace(boundary, fingerprint=snapshots.fingerprint())
        begun = time.monotonic()
        try:
            snapshot = snapshots.of(boundary)
            sealed = commit.seal_files(directory, snapshot.write(directory), digest.of_descriptor)
        except TornError as torn:
            at_rest = self._gate.only_when_blocked
            self._stale_before = boundary.number
            if not at_rest:
                self.stand_still(str(torn))
            return Record(torn=torn.names, at_rest=at_rest)
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends this save and not the training
            return Record(error=str(error) or type(error).__name__)
        written = sum(file.size for file in sealed)
        reserve.grow(written, time.monotonic() - begun, list(self._gate.undisturbed_seconds))
        listed = tuple((file.path, file.size, file.xxh3_128) for file in sealed)
        return Record(listed, snapshot.tensors(), snapshot.boundary.manifest_entry, snapshot.not_finite())

    def _hear(self, outcome: dict[str, Any], boundary: Boundary | None, *, stop: bool) -> None:
        if outcome["answer"] is None:
            return
        answer = Answer(**outcome["answer"])
        self.last_answer = answer
        if answer.saved and boundary is not None:
            self._saved_number = boundary.number
            self.published.append(answer)
        if stop:
            self.stop_saved = answer.saved
        self._beat.answered(outcome["requests"])
        for request in outcome["requests"]:
            if ticket := self.tickets.pop(request, None):
                ticket.resolve(answer)
        self._gate.notice()
