"""A stop of the training, from its request to the end of the process at the latest."""

import threading
import time

from holdfast.run.status import StatusFile

# Leaving writes answers and the outcome; a disk that hangs may not hold it up for longer. At the end of a
# grace that is at most a part of it.
LEAVING_SECONDS = 3.0
_LEAVING_PART = 0.1
# The time in which a rank tries to end its loop when another has left its own. What it waits for fails once the other's
# process has ended, and on a busy machine the interpreter takes seconds for that (4 were seen).
_ALONE_SECONDS = 10.0


class Stop:
    """The state of a stop, shared by the threads of a training.

    Args:
        grace: Seconds from a stop to the end of the process at the latest.
        status: Shows that training is stopping.
    """

    def __init__(self, grace: float, status: StatusFile) -> None:
        self._grace = grace
        self._status = status
        self._changed = threading.Condition()
        self._ends_at: float | None = None
        self._over = False
        self.leaving_seconds = min(LEAVING_SECONDS, _LEAVING_PART * grace)
        """The part of the grace that is kept for leaving."""
        self.limit = f"within {grace:g} s of the stop"
        """The time limit in words."""
        self.requested = False
        """True when the loop should end."""
        self.leave_after: int | None = None
        """The step after which every rank leaves, where there are several; None as long as there is none."""
        self._ends_body = False
        self.saved: bool | None = None
        """The outcome of the stop's save; None as long as none was asked for or answered."""
        self.unsaved_code: int | None = None
        """The exit code of a stop that came before the first update, and saves nothing."""
        self.why = ""
        """The reason of such a stop, in words."""
        self.noticed = threading.Event()
        """Set when the stop is known to this process, by whatever door it came."""

    def begin(self, leave_after: int | None = None, *, ends_body: bool = False) -> None:
        """Takes in a stop that is being served: from now on the process has its grace, and no longer.

        Args:
            leave_after: The step after which all ranks leave; None: training leaves as soon as it can.
            ends_body: True where some rank was past the end of the batches of the epoch that this step ends: all run
                its body to the end.
        """
        if leave_after is None:
            self.requested = True
        elif self.leave_after is None:
            self.leave_after, self._ends_body = leave_after, ends_body
        self.noticed.set()
        self.begin_grace()
        self._status.update(phase="stopping")

    def end_unsaved(self, code: int, why: str, seconds: float | None) -> None:
        """Takes in a stop that comes before the first update: it saves nothing.

        Args:
            code: The exit code.
            why: The reason, in words.
            seconds: The time after which the process ends; None: the loop ends by itself, within the grace.
        """
        self.unsaved_code, self.why, self.requested = code, why, True
        self.noticed.set()
        self._status.update(phase="stopping")
        self.begin_grace()
        if seconds is not None:
            with self._changed:
                self._ends_at = time.monotonic() + seconds
                self._changed.notify_all()

    def begin_grace(self) -> None:
        """Begins to count the grace, once."""
        with self._changed:
            if self._ends_at is None:
                self._ends_at = time.monotonic() + self._grace - self.leaving_seconds
                self._changed.notify_all()

    def reach(self, step: int, *, ends_body: bool = False) -> None:
        """Takes in a boundary of training, after which it may have to leave.

        Args:
            step: Its step.
            ends_body: True at the end of an epoch's body.
        """
        if self.leave_after is None:
            return
        if step > self.leave_after or (step == self.leave_after and ends_body and self._ends_body):
            self.requested = True

    def end_batches(self, step: int) -> None:
        """Takes in that training is at the end of an epoch's batches, where it may have to leave."""
        if self.leave_after is not None and step >= self.leave_after and not self._ends_body:
            self.requested = True

    @property
    def is_coming(self) -> bool:
        """True from the moment at which a stop is known: a signal at once, another when it is served."""
        return self._ends_at is not None or self.noticed.is_set()

    @property
    def grace(self) -> float:
        """Seconds from a stop to the end of the process at the latest."""
        return self._grace

    @property
    def seconds_left(self) -> float | None:
        """The rest of the grace that is left for saving; None before a stop."""
        return None if self._ends_at is None else self._ends_at - time.monotonic()

    def shorten(self) -> None:
        """Leaves a moment of the grace: another rank has left, and the loop may wait for it for ever."""
        with self._changed:
            left = self.seconds_left
            if not self._over and left is not None and left > _ALONE_SECONDS:
                self.limit = f"within {_ALONE_SECONDS:g} s of another rank's end"
                self._ends_at = time.monotonic() + _ALONE_SECONDS
                self._changed.notify_all()

    def wait_for_deadline(self) -> bool:
        """Waits until the grace is over; False when there is nothing left to end."""
        with self._changed:
            while not self._over:
                left = self.seconds_left
                if left is not None and left <= 0:
                    return True
                self._changed.wait(left)
        return False

    def over(self) -> None:
        """Takes the deadline away: nothing that could hang is left to do."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
