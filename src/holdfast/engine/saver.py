"""The thread that saves: it takes snapshots while training goes on, writes them, and answers everybody who asked."""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from holdfast.capture.boundary import Boundary
from holdfast.capture.gate import Gate
from holdfast.capture.snapshot import Snapshot, Snapshots
from holdfast.doors.request_queue import RequestQueue
from holdfast.engine import save as saving
from holdfast.engine.retry import Retry
from holdfast.engine.saver_base import Serving
from holdfast.errors import LeaseLostError, TornError
from holdfast.run.request import Answer, Request
from holdfast.run.run import Run
from holdfast.store.retention import RetentionPolicy

# Requests that come within this time after a save began wait for the next one, and share it.
_MERGING_SECONDS = 0.5
# Training that is held longer than this at its gate hears why.
_WORTH_SAYING_SECONDS = 0.1


class Service(Serving):
    """Serves requests from the first boundary of a training to its end.

    Args:
        run: The open run.
        gate: Between training and this thread.
        reception: Where requests wait.
        keep: How many checkpoints may stay.
        say: Prints a line for the user.
        on_stop: Called when a stop was served; with the step after which all ranks leave, where there are several.
        seconds_left: What is left of the grace of a stop; None before one. Without it a stop's save is tried once.
    """

    def __init__(
        self,
        run: Run,
        gate: Gate,
        reception: RequestQueue,
        keep: RetentionPolicy,
        say: Callable[[str], None],
        on_stop: Callable[[int | None], None],
        seconds_left: Callable[[], float | None] = lambda: None,
    ) -> None:
        super().__init__(gate)
        self._run = run
        self._reception = reception
        self._keep = keep
        self._say = say
        self._on_stop = on_stop
        self._changed = threading.Condition()
        self._awake = False
        self._again: list[Request] = []
        self._open: list[Request] = []
        self._tries = Retry(seconds_left)
        self._merge_until = 0.0

    def wake(self) -> None:
        """Something waits."""
        with self._changed:
            self._awake = True
            self._changed.notify_all()

    def settle(self) -> None:
        """Returns when everything that was asked for is answered. The training thread calls it, and stands still.

        Where it was over before its first boundary, there is none to save, and `refuse` answers.
        """
        if self._gate.boundary is None:
            return
        with self._gate.blocked():
            self.wake()
            self._gate.block_until(lambda: not (self._thread.is_alive() and (self._busy or self._work_waits())))

    def close(self, *, together: bool) -> None:
        """Serves what waits, as far as there is a boundary to save, and ends the thread.

        Args:
            together: Whether all ranks come to their end; of no account where there is one.
        """
        if self._thread.is_alive():
            with self._gate.blocked():
                self._closing = True
                self._tries.hurry()
                self.wake()
                self._gate.block_until(lambda: not self._thread.is_alive())

    def stand_still(self, reason: str) -> None:
        """From now on, snapshots are taken while training stands still at a boundary."""
        self._gate.only_when_blocked = True
        self._run.status.update(capture=reason)
        self._run.journal.write("capture", mode="at a boundary", reason=reason)

    def _work_waits(self) -> bool:
        return bool(self._reception.waiting or self._again or self._gate.is_shut or self._tries.seconds == 0)

    def _serve(self) -> None:
        hopeless = False
        while True:
            with self._changed:
                while not self._awake and (pause := self._tries.seconds) != 0:
                    self._changed.wait(pause)
                self._awake = False
                self._busy = True
            try:
                hopeless = not self._serve_what_waits()
            except BaseException:  # noqa: BLE001 - without this thread training would stand at its gate for ever
                threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))
                self._give_up()
            finally:
                self._busy = False
                self._gate.notice()
            if self._closing and (hopeless or not (self._awake or self._tries.stop_waits)):
                return

    def _serve_what_waits(self) -> bool:
        while self._work_waits():
            self._merge()
            self._reception.write_down()
            if not self._serve_once():
                return False
        return True

    def _serve_once(self) -> bool:
        """Takes one snapshot, and answers for it; False where there will be no boundary to take."""
        boundary = self._gate.shut(self._stale_before, self._is_hopeless)
        if boundary is None:
            return False
        try:
            self._save(boundary, self._all_requests())
        finally:
            self._gate.open(boundary.number)
        return True

    def _all_requests(self) -> list[Request]:
        requests = [*self._again, *self._tries.take(), *self._reception.take()]
        self._again = []
        self._open = requests
        return list(requests)

    def _snapshot(self, snapshots: Snapshots, boundary: Boundary) -> Snapshot:
        return snapshots.of(boundary)

    def _leave(self) -> None:
        self._on_stop(None)

    def _is_hopeless(self) -> bool:
        return self._closing and (self._gate.updating or self._gate.boundary is None)

    def _merge(self) -> None:
        """Gives more requests the time to come in, unless training or a stop waits for this one."""
        with self._changed:
            while time.monotonic() < self._merge_until:
                hurried = self._closing or self._gate.is_shut or self._gate.is_blocked or self._reception.stop_waits
                if hurried or self._again:
                    return
                self._changed.wait(0.01)

    def _save(self, boundary: Boundary, requests: list[Request]) -> None:
        assert self._in_use is not None
        snapshots, reserve = self._in_use
        if boundary.scheduled and boundary.number != self._saved_number:
            requests.append(Request("schedule", why=boundary.scheduled))
        if not snapshots.is_still_valid(boundary):
            if not self._gate.is_blocked:
                self._stale_before = boundary.number
                self._again = requests
                return
            boundary = replace(boundary, fingerprint=snapshots.fingerprint())
        if not requests:
            return
        self._merge_until = time.monotonic() + _MERGING_SECONDS
        if boundary.number == self._saved_number and self.last_answer is not None:
            saving.answer_all(self._run, self.last_answer, requests)
            self._conclude(self.last_answer, requests)
            return
        held = self._gate.blocked_seconds
        stops = [request for request in requests if request.stop]
        snapshots.throttle.pressing = bool(stops)
        hung: list[float] = []

        def on_hanging(seconds: float) -> None:
            hung.append(seconds)
            self._on_hanging(boundary, seconds)

        try:
            with self._patience.watch(on_hanging):
                answer = self._attempt(snapshots, boundary, requests, stops)
        except TornError as torn:
            self._try_again(torn, boundary, requests)
            return
        if answer.saved:
            self._tries.saved()
            self._saved_number = boundary.number
            self.published.append(answer)
            self._reception.saved()
        waited = self._gate.blocked_seconds - held
        if waited:
            self._run.journal.write("held", step=boundary.step, seconds=round(waited, 4), streamed=snapshots.streamed)
        self._tell_of_waiting(snapshots, waited)
        if not answer.saved and stops and self._stays(answer, stops):
            requests = [request for request in requests if not request.stop]
        if requests:
            self._conclude(answer, requests)
        reserve.grow(answer.bytes, answer.seconds, list(self._gate.undisturbed_seconds))
        self._run.status.update(
            staging_bytes=reserve.pool.bytes,
            writes=snapshots.writes,
            held_seconds=round(self._gate.blocked_seconds, 3),
        )
        if hung and self._tries.schedule(requests, 0.0) is not None:
            self._tries.hurry()  # what was due meanwhile has passed unsaved

    def _attempt(
        self, snapshots: Snapshots, boundary: Boundary, requests: Sequence[Request], patient: Sequence[Request]
    ) -> Answer:
        try:
            snapshot = self._snapshot(snapshots, boundary)
        except Exception as error:  # noqa: BLE001 - whatever it is, those who asked hear of it
            answer = Answer(saved=False, step=boundary.step, error=str(error) or type(error).__name__)
            saving.tell(self._run, answer, requests, patient)
            return answer
        return saving.save(self._run, snapshot, requests, self._keep, patient)

    def _on_hanging(self, boundary: Boundary, seconds: float) -> None:
        """Training goes on, and does not stop at the boundaries that are due."""
        why = f"the save of step {boundary.step} has not come back for {seconds:g} s: the storage may hang"
        now = self._run.status.now
        self._run.status.update(failing_since=now.failing_since or time.time(), last_failure=why)
        self._say(f"{why}; training goes on")
        self._let_go()

    def _try_again(self, torn: TornError, boundary: Boundary, requests: list[Request]) -> None:
        """Somebody writes past the gate: from now on snapshots are taken while training stands still."""
        stands_still = self._gate.only_when_blocked
        if torn.at_rest or (torn.at_rest is None and stands_still):
            answer = Answer(saved=False, step=boundary.step, error=str(torn))
            saving.answer_all(self._run, answer, requests)
            self._conclude(answer, requests)
            return
        self._again = requests
        self._stale_before = boundary.number
        if not stands_still:
            self.stand_still(str(torn))
        self._say(f"{torn}. Saves are taken at boundaries from now on, and training waits for them. {torn.hint}")

    def _conclude(self, answer: Answer, requests: Sequence[Request]) -> None:
        self.last_answer = answer
        self._open = [request for request in self._open if request not in requests]
        asked = ",".join(request.id for request in requests if request.door != "schedule")
        self._say(answer.line(f"request:{asked}" if asked else "schedule"))
        if any(request.stop for request in requests):
            self.stop_saved = answer.saved
            self._leave()
        elif not answer.saved:
            pause = None if self._closing or self._is_taken_over() else self._tries.schedule(requests, answer.seconds)
            self._say("training goes on; earlier checkpoints are intact" + self._tell_of_try(pause))
        for request in requests:
            if ticket := self.tickets.pop(request.id, None):
                ticket.resolve(answer)

    def _stays(self, answer: Answer, stops: Sequence[Request]) -> bool:
        """Whether the save of a stop is tried again. Training leaves meanwhile, and stands at its end."""
        self.stop_saved = False
        self._leave()
        pause = None if self._is_taken_over() else self._tries.stop(stops, answer.seconds)
        if pause is None:
            saving.answer_all(self._run, answer, stops)
            return False
        self._open = [request for request in self._open if request not in stops]
        asked = ",".join(request.id for request in stops)
        self._say(answer.line(f"request:{asked}") + self._tell_of_try(pause))
        return True

    def _tell_of_try(self, pause: float | None) -> str:
        if pause is None:
            return ""
        self._run.status.update(next_try_at=time.time() + pause)
        return f"; trying again in {pause:.1f} s"

    def _is_taken_over(self) -> bool:
        """Whether another process has the run by now, so that no try of this one can succeed."""
        try:
            self._run.lease.check()
        except LeaseLostError:
            return True
        except OSError:
            return False
        return False

    def _tell_of_waiting(self, snapshots: Snapshots, seconds: float) -> None:
        if snapshots.streamed and seconds > _WORTH_SAYING_SECONDS:
            self._say(
                f"training waited {seconds:.2f} s for this save: its steps are shorter than the write, and the staging"
                " memory did not hold the rest; it grows up to staging_memory"
            )

    def _give_up(self) -> None:
        """An error of our own: who was being served is answered, a stop is one all the same, and training goes on."""
        self._again += [request for request in self._open if request not in self._again]
        stop = any(request.stop for request in self._again)
        self.refuse("saving failed in a way that it should not: see the error output")
        self._gate.open(None)
        if stop:
            self.stop_saved = False
            self._leave()

    def refuse(self, why: str) -> None:
        """Answers everybody who still waits that nothing was saved, also those whose save hangs."""
        self._reception.write_down()
        served = [request for request in self._open if request not in self._again]
        hanging = [request for request in served if self._run.inbox.answer_to(request.id) is None]
        waiting = [*hanging, *self._all_requests()]
        step = self._gate.boundary.step if self._gate.boundary else 0
        answer = Answer(saved=False, step=step, error=why)
        saving.answer_all(self._run, answer, waiting)
        for ticket in (self.tickets.pop(request.id, None) for request in waiting):
            if ticket is not None:
                ticket.resolve(answer)
