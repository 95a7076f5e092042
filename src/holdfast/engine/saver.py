"""The thread that saves: it takes snapshots while training goes on, writes them, and answers everybody who asked."""

import logging
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from holdfast.capture.boundary import Boundary
from holdfast.capture.gate import Gate
from holdfast.capture.snapshot import Snapshots
from holdfast.capture.staging_budget import StagingBudget
from holdfast.doors.request_queue import RequestQueue
from holdfast.engine import beginning, cost, rest_of_body, save
from holdfast.engine.batch import MISPLACED, Batch, ids_of, names_of, who_asked
from holdfast.engine.peers import Peers
from holdfast.engine.retry import Retry, next_try
from holdfast.engine.session import Outcomes, Session
from holdfast.engine.watchdog import Watchdog
from holdfast.errors import LateError, RanksError, TornError
from holdfast.log import RunLog
from holdfast.run.request import Answer, Request
from holdfast.run.status import StatusFile
from holdfast.store.retention import SCHEDULE, RetentionPolicy

# Requests that come within this time after a save began wait for the next one, and share it.
_MERGING_SECONDS = 0.5
_LOOK_SECONDS = 0.01


class Saver:
    """Serves requests from the first boundary of a training to its end, in a thread of its own.

    Args:
        session: The training.
        queue: The queue of requests.
        policy: The rules by which checkpoints stay.
        peers: The processes that save together.
    """

    def __init__(self, session: Session, queue: RequestQueue, policy: RetentionPolicy, peers: Peers) -> None:
        self._session = session
        self._gate: Gate = session.gate
        self._status: StatusFile = session.run.status
        self._outcomes: Outcomes = session.outcomes
        self._log: RunLog = session.log
        self._queue = queue
        self._policy = policy
        self._peers = peers
        self._retry = Retry(session.stop)
        self._batch = Batch(queue, self._retry)
        self._watchdog = Watchdog()
        self._thread = threading.Thread(target=self._serve, name="holdfast-saver", daemon=True)
        self._in_use: tuple[Snapshots, StagingBudget] | None = None
        self._busy = False
        self._closing = False
        self._stale_before = -1
        self._merge_until = 0.0
        self._names: set[tuple[str, str]] = set()
        self._compared = ""
        self._concluded: tuple[Answer | None, Sequence[str]] = (None, ())

    def listen(self) -> None:
        """Begins to hear of the other processes, before training begins."""
        self._peers.start()

    def start(self, snapshots: Snapshots, budget: StagingBudget) -> None:
        """Begins to serve: training has begun, and what was asked before waits for its first boundary.

        Args:
            snapshots: Takes snapshots of what is trained.
            budget: The staging memory.
        """
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
        """Returns when everything that was asked for is answered. The training thread calls it, and is blocked.

        A training that was over before its first boundary has none to save, and `refuse` answers.
        """
        if self._gate.boundary is not None or beginning.resumed_from(self._session) is not None:
            self._gate.block_until(lambda: not self._is_at_work())

    def settle_stop(self) -> None:
        """Returns when a stop that has come is answered, or its save hangs. The training thread calls it at a boundary.

        It would come to further boundaries before that, and a training of short steps to its end. Among ranks each must
        come to the boundary that is agreed on, and leaves at the next.
        """
        stop = self._session.stop
        if self._peers.leave_after is None:
            self._gate.block_until(
                lambda: stop.requested or not self.serving or (stop.noticed.is_set() and not self._is_at_work())
            )

    def close(self, *, together: bool, seconds: float | None = None) -> None:
        """Serves what waits, as far as there is a boundary to save, and ends the thread.

        Args:
            together: True where all ranks come to their end; after an error in this one nobody knows.
            seconds: The longest wait for a save that hangs; None waits until the grace of a stop ends the process.
        """
        if together and self._thread.is_alive():
            self._peers.wait_for_end()
        if self._thread.is_alive():
            self._closing = True
            self._gate.end()
            self._retry.hurry()
            self._gate.block_until(lambda: not self._thread.is_alive(), seconds)
        self._peers.close()

    def stand_still(self, reason: str) -> None:
        """Takes snapshots while training is blocked at a boundary, from now on."""
        self._gate.only_when_blocked = True
        self._status.update(capture=reason)
        self._session.run.journal.write("capture", mode="at a boundary", reason=reason)

    def refuse(self, why: str) -> None:
        """Answers everybody who still waits that nothing was saved, also those whose save hangs."""
        self._queue.write_down()
        run, requests = self._session.run, list(self._batch.take())
        refusal = Answer(saved=False, step=self._session.step, error=why)
        answers = {request.id: run.inbox.answer_to(request.id) for request in requests}
        save.answer_all(run, refusal, [request for request in requests if answers[request.id] is None])
        for request, answer in answers.items():
            self._outcomes.resolve(answer or refusal, [request])
        self._batch.requests = []

    def _is_at_work(self) -> bool:
        return self._thread.is_alive() and (self._busy or self._work_waits())

    def _work_waits(self) -> bool:
        return self._batch.waits or self._gate.is_shut

    def _serve(self) -> None:
        """Serves batch after batch, until training has ended and nothing waits."""
        wake = self._session.wake
        while True:
            if (pause := self._retry.seconds) != 0:
                wake.wait(pause)
            self._busy, hopeless = True, False
            wake.clear()
            try:
                if self._in_use is not None:
                    cost.tell_of_staging(self._session, self._in_use[1])
                while self._work_waits() and not (hopeless := not self._serve_batch()):
                    pass
            except BaseException:  # noqa: BLE001 - without this thread training would stand at its gate for ever
                threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))
                self._give_up()
            finally:
                self._busy = False
                self._gate.notice()
            if self._closing and (hopeless or not (wake.is_set() or self._retry.stop_waits)):
                return

    def _serve_batch(self) -> bool:
        """Serves what waits with one snapshot; returns False where there will be no boundary to take."""
        self._merge()
        self._write_down()
        if self._answer_late_stops() or (self._gate.is_at_beginning and self._serve_the_beginning()):
            return True
        self._concluded = (None, ())
        assert self._in_use is not None
        self._stale_before = rest_of_body.stale_before(self._session, self._in_use[0], self._stale_before)
        boundary, misplaced = None, list[Request]()
        try:
            boundary = self._peers.boundary(self._batch, self._stale_before)
            misplaced = self._batch.take_misplaced(boundary)
            if boundary is not None and (ready := self._prepare(boundary)) is not None:
                self._write(ready)
            return boundary is not None
        except RanksError as error:
            self._fail(str(error))
            return not self._closing  # a rank that is missing at the end does not come back for the next request
        finally:
            # The others hear of it before this process trains on: what it says next is about another save.
            self._peers.conclude(*self._concluded)
            self._gate.open(None if boundary is None else boundary.number)
            if misplaced:
                refusal = Answer(saved=False, step=self._session.step, error=MISPLACED)
                self._repeat(refusal, misplaced)
                self._peers.repeat(refusal, ids_of(misplaced))

    def _write_down(self) -> None:
        """Puts on disk what was only heard. Training that asked itself may wait at its gate, and a disk may hang."""
        with self._watchdog.watch(lambda seconds: self._gate.open(None)):
            self._queue.write_down()

    def _merge(self) -> None:
        """Gives more requests the time to come in, unless training or a stop waits for this one."""
        while time.monotonic() < self._merge_until:
            hurried = self._closing or self._gate.is_shut or self._gate.is_blocked or self._queue.stop_waits
            if hurried or self._batch.requests:
                return
            self._session.wake.wait(_LOOK_SECONDS)
            self._session.wake.clear()

    def _answer_late_stops(self) -> bool:
        """Answers stops that come when the save of one is over and ranks may have left: one save serves them all.

        A signal to the whole group comes to each rank.
        """
        answer = self._outcomes.last_answer
        if answer is None or not self._peers.may_have_left():
            return False
        requests = list(self._batch.take())
        if not requests or len(self._batch.stops) < len(requests):
            return False
        self._repeat(answer, requests)
        self._peers.repeat(answer, ids_of(requests))
        if not (self._gate.boundary and self._gate.boundary.scheduled):
            self._gate.open(None)  # shut for these requests; the ranks that would agree on more may have left
        return True

    def _prepare(self, boundary: Boundary) -> Boundary | None:
        """Returns the boundary as it is to be written; None where the batch needs no save, or cannot have this one."""
        assert self._in_use is not None
        snapshots, _ = self._in_use
        is_there = self._outcomes.has_saved(boundary) or self._session.is_saved_for_stop(boundary)
        if boundary.scheduled and not is_there:
            self._batch.add(Request("schedule", why=boundary.scheduled))
        if not snapshots.is_still_valid(boundary):
            if not self._gate.is_blocked:
                self._stale_before = boundary.number
                return None
            boundary = replace(boundary, fingerprint=snapshots.fingerprint_of_blocked())
        if not self._batch.requests:
            return None
        self._merge_until = time.monotonic() + _MERGING_SECONDS
        if self._answer_with_last(boundary):
            return None
        return replace(boundary, is_wanted=any(request.door != SCHEDULE for request in self._batch.requests))

    def _answer_with_last(self, boundary: Boundary) -> bool:
        """Answers the batch with the last checkpoint, where it is of that boundary; False where another is needed.

        Who gives a name wants a checkpoint that is known by it. What the schedule wanted is there, without a word.
        """
        last, requests = self._outcomes.saved, list(self._batch.requests)
        if last is None or not self._outcomes.has_saved(boundary) or not names_of(requests) <= self._names:
            return False
        self._batch.remove([request for request in requests if request.door == SCHEDULE])
        if self._batch.requests:
            self._repeat(last, self._batch.requests)
        return True

    def _serve_the_beginning(self) -> bool:
        """Serves what comes before the first update; False where there is no checkpoint that could be the answer."""
        requests = self._batch.take()
        if self._batch.stops:
            beginning.stop(self._session, self._peers, requests)
            self._batch.remove(requests)
            return True
        outcomes = beginning.outcomes(self._session, requests, self._policy)
        self._batch.remove([request for request in requests if outcomes and request.door == SCHEDULE])
        for answer, answered in (outcome for outcome in outcomes if outcome[1]):
            self._conclude(answer, answered)
            self._peers.repeat(answer, ids_of(answered))
        return bool(outcomes)

    def _write(self, boundary: Boundary) -> None:
        """Writes a checkpoint of a boundary, and takes in what became of it."""
        assert self._in_use is not None
        snapshots, budget = self._in_use
        run, requests, stops = self._session.run, list(self._batch.requests), self._batch.stops
        blocked_before = self._gate.blocked_seconds
        snapshots.throttle.pressing = bool(stops)
        hung: list[float] = []
        try:
            snapshot = self._peers.snapshot(snapshots, boundary)
        except Exception as error:  # noqa: BLE001 - whatever it is, those who asked hear of it
            answer = Answer(saved=False, step=boundary.step, error=str(error) or type(error).__name__)
            save.report(run, answer, requests, stops)
        else:
            try:
                with self._watchdog.watch(lambda seconds: self._let_go(boundary, seconds, hung)):
                    answer = save.save(run, snapshot, requests, self._policy, stops, self._session.mirror)
            except TornError as torn:
                self._try_again(torn, boundary)
                return
            except LateError as late:
                self._log.warning(f"{late}: saving what was before the callbacks that it is in")
                return
        waited = self._gate.blocked_seconds - blocked_before
        compared = cost.account_for(self._session, snapshots, budget, boundary, waited)
        self._compared = compared if answer.saved else ""
        self._take_in(boundary, answer, requests)
        cost.learn(self._session, snapshots, budget, answer)
        if hung and self._retry.schedule(requests, 0.0) is not None:
            self._retry.hurry()  # what was due meanwhile has passed unsaved

    def _take_in(self, boundary: Boundary, answer: Answer, requests: Sequence[Request]) -> None:
        """Takes in the outcome of a save, and concludes it for those who asked."""
        stops = [request for request in requests if request.stop]
        if answer.saved:
            self._retry.saved()
            self._names = names_of(requests)
            self._outcomes.publish(boundary, answer)
            self._queue.saved()
        elif stops and self._is_tried_again(answer, stops):
            requests = [request for request in requests if not request.stop]
        if requests:
            self._conclude(answer, requests)

    def _let_go(self, boundary: Boundary, seconds: float, hung: list[float]) -> None:
        """Lets training go on while a save hangs; it does not stop at the boundaries that are due."""
        hung.append(seconds)
        why = f"the save of step {boundary.step} has not come back for {seconds:g} s: the storage may hang"
        self._status.update(failing_since=self._status.now.failing_since or time.time(), last_failure=why)
        self._log.warning(f"{why}; training goes on")
        self._gate.open(None)

    def _try_again(self, torn: TornError, boundary: Boundary) -> None:
        """Keeps the batch for another try: something writes past the gate, so training will be blocked for it."""
        in_body = self._gate.is_past
        stands_still = self._gate.is_blocked if in_body else self._gate.only_when_blocked
        if torn.at_rest or (torn.at_rest is None and stands_still):
            error = rest_of_body.lost(torn, boundary) if in_body else str(torn)
            self._repeat(Answer(saved=False, step=boundary.step, error=error), self._batch.requests)
            return
        self._stale_before = boundary.number
        if in_body:
            rest_of_body.tell(self._session, boundary, torn.names)
            return
        if not stands_still:
            self.stand_still(str(torn))
        self._log.warning(
            f"{torn}. Saves are taken at boundaries from now on, and training waits for them. {torn.hint}"
        )

    def _fail(self, why: str) -> None:
        """Answers the batch that the ranks did not agree."""
        requests, boundary = list(self._batch.requests), self._gate.boundary
        due = boundary.scheduled if boundary and self._gate.is_shut else ""
        scheduled = [Request("schedule", why=due)] if due else []
        if boundary is not None and boundary.asked:
            why = f"{why}: asked at {boundary.step}, and others were further; call save() in all ranks"
        answer = Answer(saved=False, step=self._session.step, error=f"the ranks did not agree: {why}")
        save.report(self._session.run, answer, [*requests, *scheduled])
        self._conclude(answer, requests)

    def _repeat(self, answer: Answer, requests: Sequence[Request]) -> None:
        """Gives requests an answer without a save of their own. A checkpoint that is there counts as asked for now."""
        if answer.saved:
            beginning.keep_as_asked_for(self._session, answer, requests)
        save.answer_all(self._session.run, answer, requests)
        self._conclude(answer, requests)

    def _conclude(self, answer: Answer, requests: Sequence[Request]) -> None:
        """Takes in that requests were answered, and tells who does not read the answer's file."""
        ids = ids_of(requests)
        self._outcomes.last_answer = answer
        self._concluded = (answer, ids)
        self._batch.remove(requests)
        line, self._compared = answer.line(who_asked(requests)) + self._compared, ""
        self._log.log(logging.INFO if answer.saved else logging.ERROR, line)
        if any(request.stop for request in requests):
            self._session.stop.saved = answer.saved
            self._session.stop.begin(self._peers.leave_after)
        elif not answer.saved:
            given_up = self._closing or self._session.is_taken_over()
            pause = None if given_up else self._retry.schedule(requests, answer.seconds)
            training = "training is at its end" if self._closing else "training goes on"
            self._log.warning(f"{training}; earlier checkpoints are intact" + next_try(pause, self._status))
        self._outcomes.resolve(answer, ids)

    def _is_tried_again(self, answer: Answer, stops: Sequence[Request]) -> bool:
        """Returns whether the save of a stop is tried again. Training leaves meanwhile, and is blocked at its end."""
        self._session.stop.saved = False
        self._session.stop.begin(self._peers.leave_after)
        pause = None if self._session.is_taken_over() else self._retry.stop(stops, answer.seconds)
        if pause is None:
            save.answer_all(self._session.run, answer, stops)
            return False
        self._batch.remove(stops)
        self._log.error(answer.line(who_asked(stops)) + next_try(pause, self._status))
        return True

    def _give_up(self) -> None:
        """Answers the batch after an error of our own; a stop is one all the same, and training goes on."""
        stops = self._batch.stops
        self.refuse("saving failed in a way that it should not: see the error output")
        self._gate.open(None)
        if stops:
            self._session.stop.saved = False
            self._session.stop.begin(self._peers.leave_after)
