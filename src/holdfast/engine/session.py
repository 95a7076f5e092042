"""The objects that the threads of one training share."""

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from holdfast.capture.boundary import Boundary
from holdfast.capture.gate import Gate
from holdfast.engine.on_published import OnPublished
from holdfast.engine.pending_save import PendingSave
from holdfast.engine.stop import Stop
from holdfast.errors import LeaseLostError
from holdfast.log import RunLog
from holdfast.mirror.supervisor import Supervisor
from holdfast.resume.open_run import Resumption
from holdfast.run.request import Answer
from holdfast.run.run import Run

# A rank that asks later than the others finds the answer among so many.
_REMEMBERED = 64
# The time that is kept for the save of a stop: before any save was measured, and at least.
_UNMEASURED_SECONDS = 5.0
_LEAST_SECONDS = 1.0


class Outcomes:
    """The last answer, the boundary that has a checkpoint, and the saves that this process itself waits for.

    Args:
        on_published: Takes each checkpoint that was published.
        log: Takes a line for the user.
    """

    def __init__(self, on_published: OnPublished, log: RunLog) -> None:
        self.on_published = on_published
        self._log = log
        self._lock = threading.Lock()
        self._pending: dict[str, PendingSave] = {}
        self._answers: OrderedDict[str, Answer] = OrderedDict()
        self._saved: tuple[int, int] | None = None
        self.saved: Answer | None = None
        """The answer of the last save that succeeded."""
        self.last_answer: Answer | None = None
        """The answer of the last save."""

    def expect(self, pending: PendingSave) -> None:
        """Adds a save that was asked for in this process. Another rank may have asked for it, and have its answer."""
        with self._lock:
            answer = self._answers.get(pending.id)
            if answer is None:
                self._pending[pending.id] = pending
                return
        self._resolve(pending, answer)

    def publish(self, boundary: Boundary, answer: Answer) -> None:
        """Takes in that a boundary has a checkpoint."""
        self._saved, self.saved = boundary.state, answer
        self.on_published.publish(answer)

    def resolve(self, answer: Answer, requests: Iterable[str]) -> None:
        """Gives their answer to those of the requests, by id, that this process waits for."""
        for request in requests:
            with self._lock:
                pending = self._pending.pop(request, None)
                self._answers[request] = answer
                while len(self._answers) > _REMEMBERED:
                    self._answers.popitem(last=False)
            if pending is not None:
                self._resolve(pending, answer)

    def _resolve(self, pending: PendingSave, answer: Answer) -> None:
        pending.resolve(answer)
        if pending.answer is not None and pending.answer.note:
            self._log.warning(pending.answer.note)

    def has_saved_step_of(self, boundary: Boundary) -> bool:
        """Returns whether there is a checkpoint of that boundary, as it was at whatever moment."""
        return self._saved is not None and boundary.number == self._saved[0]

    def has_saved(self, boundary: Boundary) -> bool:
        """Returns whether there is a checkpoint of that very boundary."""
        return boundary.state == self._saved


@dataclass(frozen=True)
class Session:
    """One training in this process.

    Args:
        run: The open run.
        gate: Between training and the thread that saves.
        wake: Set when there is something for that thread to look at.
        stop: The stop of the training, if one comes.
        outcomes: The outcomes of its saves.
        log: Takes lines for the user.
        origin: The checkpoint that it was resumed from.
        mirror: Its mirror, in rank 0 of a training that has one.
    """

    run: Run
    gate: Gate
    wake: threading.Event
    stop: Stop
    outcomes: Outcomes
    log: RunLog
    origin: Resumption
    mirror: Supervisor | None = None

    @property
    def step(self) -> int:
        """The step of the last boundary; 0 before the first."""
        return self.gate.boundary.step if self.gate.boundary else 0

    def spare_seconds(self, least: float = _LEAST_SECONDS) -> float | None:
        """Returns the seconds until the grace of a stop leaves just twice the time of a save; None before a stop.

        Args:
            least: The seconds that any save is given.
        """
        left, last = self.stop.seconds_left, self.outcomes.last_answer
        needed = max(2 * last.seconds, least) if last is not None and last.saved else _UNMEASURED_SECONDS
        return None if left is None else left - needed

    def is_saved_for_stop(self, boundary: Boundary) -> bool:
        """Returns whether a stop was answered with an earlier stage of the step: a resume does the rest of it.

        Where training ends by itself nobody does.
        """
        last = self.outcomes.last_answer
        saved = last is not None and last.saved and last.step == boundary.step
        return saved and self.stop.saved is True and not self.gate.is_last

    def is_running_out(self) -> bool:
        """Returns whether the grace of a stop leaves just the time for its save."""
        spare = self.spare_seconds()
        return spare is not None and spare <= 0

    def is_taken_over(self) -> bool:
        """Returns whether another process has the run by now, so that no save of this one can succeed."""
        try:
            self.run.lease.check()
        except LeaseLostError:
            return True
        except OSError:
            return False
        return False
