"""The thread that saves in every rank but the first: it gives its share of what rank 0 calls for."""

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from holdfast.capture.boundary import Boundary
from holdfast.capture.gate import Gate
from holdfast.capture.snapshot import Snapshots
from holdfast.capture.staging_budget import StagingBudget
from holdfast.engine import cost, rest_of_body
from holdfast.engine.session import Session
from holdfast.engine.watchdog import Watchdog
from holdfast.errors import RanksError, TornError
from holdfast.ranks.agreement import Offer, join
from holdfast.ranks.channel import Channel
from holdfast.ranks.coordinator import Record
from holdfast.ranks.heartbeat import Heartbeat
from holdfast.ranks.keys import (
    begun_key,
    call_key,
    difference_key,
    done_key,
    ended_key,
    outcome_key,
    record_key,
    settled_key,
    stage_key,
)
from holdfast.run.request import Answer
from holdfast.store import commit, digest, names

# A save that rank 0 is still busy with after this time has been lost together with it.
_LONGEST_SECONDS = 3600.0
_LOOK_SECONDS = 1.0


class Follower:
    """Takes part in saves from the first boundary of a training to its end.

    Args:
        session: The training.
        channel: To rank 0.
        heartbeat: Passes on what is asked in this rank.
    """

    def __init__(self, session: Session, channel: Channel, heartbeat: Heartbeat) -> None:
        self._session = session
        self._gate: Gate = session.gate
        self._log = session.log
        self._channel = channel
        self._heartbeat = heartbeat
        self._watchdog = Watchdog()
        self._thread = threading.Thread(target=self._follow, name="holdfast-follower", daemon=True)
        self._in_use: tuple[Snapshots, StagingBudget] | None = None
        self._busy = False
        self._closing = False
        self._stale_before = -1

    def listen(self) -> None:
        """Does nothing: this rank hears of rank 0 when it is called."""

    def start(self, snapshots: Snapshots, budget: StagingBudget) -> None:
        """Begins to take part.

        Args:
            snapshots: Takes snapshots of what is trained.
            budget: The staging memory.
        """
        self._channel.put(begun_key(self._channel.rank), True)
        self._in_use = (snapshots, budget)
        if not self._thread.is_alive():
            self._thread.start()

    @property
    def serving(self) -> bool:
        """True while there is a thread that would soon open a gate again: not while it hangs in a save."""
        return self._thread.is_alive() and not self._closing and not self._watchdog.lost

    @property
    def hangs(self) -> bool:
        """True while the thread is there, which after `close` is only where its save hangs."""
        return self._thread.is_alive()

    def settle(self) -> None:
        """Returns when everything that was asked for here is answered. Training is blocked meanwhile."""
        self._block_until(lambda: not self._busy and not self._heartbeat.waiting and not self._gate.is_shut)

    def settle_stop(self) -> None:
        """Does nothing: this rank comes to the boundary that all agree on, and leaves at the next."""

    def close(self, *, together: bool, seconds: float | None = None) -> None:
        """Takes part until rank 0 says that there will be no more saves.

        Args:
            together: True where this rank comes to its end as the others do. After an error it leaves as soon as what
                was asked here is answered.
            seconds: The longest wait for it where this rank leaves alone; None waits as long as a rank may take.
        """
        if not self._thread.is_alive():
            return
        if not together:
            limit = time.monotonic() + (2 * self._channel.seconds if seconds is None else seconds)
            self._block_until(lambda: (not self._busy and not self._heartbeat.waiting) or time.monotonic() > limit)
        self._closing = True
        try:
            self._channel.put(done_key(self._channel.rank), True)
        except RanksError as error:
            self._log.warning(str(error))
            return
        if together:
            self._block_until(lambda: False)

    def stand_still(self, reason: str) -> None:
        """Takes snapshots while training is blocked at a boundary, from now on."""
        self._gate.only_when_blocked = True
        self._session.run.journal.write("capture", rank=self._channel.rank, mode="at a boundary", reason=reason)

    def refuse(self, why: str) -> None:
        """Tells everybody who still waits here that nothing was saved."""
        waiting = [request.id for request in self._heartbeat.take()]
        self._session.outcomes.resolve(Answer(saved=False, step=self._session.step, error=why), waiting)

    def _block_until(self, settled: Callable[[], bool]) -> None:
        self._gate.block_until(lambda: not self._thread.is_alive() or settled())

    def _follow(self) -> None:
        """Takes part in save after save, until rank 0 has ended."""
        number = 0
        try:
            while True:
                number += 1
                call = self._channel.get(call_key(number))
                self._session.run.keep_control()
                if "end" in call:
                    self._channel.put(ended_key(self._channel.rank), True)
                    break
                if "answer" in call:
                    self._hear(call, None, stop=False)
                    if call["leave"] is not None:
                        code, why = call["leave"]
                        self._session.stop.end_unsaved(code, why, 0.0)
                else:
                    self._serve(number, call)
        except RanksError as error:
            if not self._closing:
                self._log.warning(f"no more saves from this rank: {error}")
        finally:
            self._gate.open(None)
            self.refuse("the other ranks have ended")
        if not self._closing:
            self._session.stop.shorten()  # the others have ended while this rank still trains

    def _serve(self, number: int, call: dict[str, Any]) -> None:
        self._busy = True
        try:
            with self._watchdog.watch(lambda seconds: self._gate.open(None)):  # rank 0 says so
                self._take_part(number, call)
        except RanksError as error:
            self._log.warning(f"no share of the save from this rank: {error}")
        finally:
            self._busy = False

    def _take_part(self, number: int, call: dict[str, Any]) -> None:
        """Agrees on a boundary, gives this rank's share of it, and hears what became of the save."""
        boundary = None
        try:
            late_at = None if call["spare"] is None else time.monotonic() + call["spare"]
            assert self._in_use is not None
            stale_before = max(self._stale_before, call["after"])
            stale_before = rest_of_body.stale_before(self._session, self._in_use[0], stale_before)
            offer = Offer(*self._gate.offer(stale_before, out_of_time=_is_over(late_at)), mark=self._gate.is_at_mark)
            decision = self._channel.agree(join(number, self._channel.rank, offer, self._channel.seconds))
            if call["stop"]:
                rest_of_body.begin_grace(self._session)
            if decision.boundary is not None:
                over, mark = self._is_over(number, None if decision.mark else late_at), decision.mark
                boundary = self._gate.take(decision.boundary, over, call["asked_at"], mark=mark)
                if boundary is not None and call["stop"]:
                    self._session.stop.begin(boundary.step, ends_body=decision.past)
                self._gate.decided()
                self._give(number, boundary, late=not decision.mark and _is_over(late_at))
        finally:
            self._gate.open(None if boundary is None else boundary.number)
        self._hear(self._channel.get(outcome_key(number), _LONGEST_SECONDS), boundary, stop=call["stop"])

    def _is_over(self, number: int, late_at: float | None) -> Callable[[], bool]:
        """Returns what tells if rank 0 has given the save up, or it is too late; the store is asked once a second."""
        looked = time.monotonic()

        def over() -> bool:
            nonlocal looked
            if _is_over(late_at):
                return True
            if time.monotonic() - looked < _LOOK_SECONDS:
                return False
            looked = time.monotonic()
            return self._channel.all_there([outcome_key(number)])

        return over

    def _give(self, number: int, boundary: Boundary | None, *, late: bool) -> None:
        """Gives this rank's share: it compares what it holds with rank 0, and writes what is settled to be its own."""
        assert self._in_use is not None
        snapshots, _ = self._in_use
        error, boundary = self._tally(boundary)
        stage = self._channel.get(stage_key(number), _LONGEST_SECONDS)
        staged = stage["directory"]
        if staged is None:
            return
        if not names.is_staging(staged):
            error = f"{staged!r} is no staging directory"
        differences = {} if error else snapshots.replicas.differences(stage["digests"])
        own = {"error": error, "differences": differences, "late": late and boundary is None}
        self._channel.put(difference_key(number, self._channel.rank), own)
        settled = self._channel.get(settled_key(number), _LONGEST_SECONDS)
        if settled is None or boundary is None:
            return
        snapshots.replicas.follow(settled)
        boundary = replace(boundary, is_wanted=stage["wanted"])
        record = self._write(boundary, staged, stage["mark"])
        self._channel.put(record_key(number, self._channel.rank), asdict(record))

    def _tally(self, boundary: Boundary | None) -> tuple[str, Boundary | None]:
        """Digests what this rank holds; returns why it cannot take part, or nothing, and the boundary to write."""
        assert self._in_use is not None
        snapshots, _ = self._in_use
        if boundary is None:
            return "its training does not have what was agreed on: the boundary, or the mark before it", None
        if not snapshots.is_still_valid(boundary):
            if not self._gate.is_blocked:
                return "its state was given other tensors since the boundary; ask again", None
            boundary = replace(boundary, fingerprint=snapshots.fingerprint_of_blocked())
        try:
            snapshots.tally(boundary)
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends this save and not the training
            return str(error) or type(error).__name__, None
        return "", boundary

    def _write(self, boundary: Boundary, staged: str, mark: str) -> Record:
        """Writes this rank's share into the directory that rank 0 has staged, and into no other of its name."""
        assert self._in_use is not None
        snapshots, budget = self._in_use
        begun = time.monotonic()
        snapshot = snapshots.of(boundary)
        try:
            with commit.open_marked(self._session.run.folder / staged, mark) as folder:
                sealed = commit.seal_files(folder, snapshot.write(folder), digest.of_descriptor)
        except TornError as torn:
            in_body = self._gate.is_past
            at_rest = self._gate.is_blocked if in_body else self._gate.only_when_blocked
            self._stale_before = boundary.number
            if not at_rest and not in_body:
                self.stand_still(str(torn))
            return Record(torn=torn.names, at_rest=at_rest)
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends this save and not the training
            return Record(error=str(error) or type(error).__name__)
        written = sum(file.size for file in sealed)
        cost.grow(self._session, budget, written, time.monotonic() - begun)
        files = tuple((file.path, file.size, file.digests) for file in sealed)
        entry = snapshot.boundary.manifest_entry
        return Record(files, snapshot.tensors(), entry, snapshot.not_finite(), snapshot.requires())

    def _hear(self, outcome: dict[str, Any], boundary: Boundary | None, *, stop: bool) -> None:
        """Takes in what became of a save."""
        if outcome["answer"] is None:
            return
        answer, outcomes = Answer(**outcome["answer"]), self._session.outcomes
        outcomes.last_answer = answer
        if answer.saved and boundary is not None:
            outcomes.publish(boundary, answer)
        if stop:
            self._session.stop.saved = answer.saved
        self._heartbeat.answered(outcome["requests"])
        outcomes.resolve(answer, outcome["requests"])
        self._gate.notice()


def _is_over(late_at: float | None) -> bool:
    return late_at is not None and time.monotonic() >= late_at
