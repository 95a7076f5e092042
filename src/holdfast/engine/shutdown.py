"""What signals mean, and how the process ends when the training loop does not come back."""

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Protocol

from holdfast.doors.signals import SAVE_AND_STOP, Signals
from holdfast.engine.worker_deaths import WorkerDeaths, is_death_of_one
from holdfast.errors import ended_by_signal
from holdfast.ranks.launcher import stopped_after_save
from holdfast.run.request import Request

# A terminal sends one Ctrl+C, a nervous hand two in a row. The second counts from here on.
_SECOND_PRESS_SECONDS = 1.0
# Leaving writes answers and the journal's last line; a disk that hangs may not hold it up for longer. At the end of a
# grace that is at most a part of it.
_LEAVING_SECONDS = 3.0
_LEAVING_PART = 0.1
# How long the signal that killed a data-loading worker may take to be noticed after the worker's death.
_NOTICED_SECONDS = 1.0
# How long a rank tries to end its loop when another has left its own. What it waits for fails once the other's process
# has ended, and on a busy machine the interpreter takes seconds for that (4 were seen).
_ALONE_SECONDS = 10.0


class Training(Protocol):
    """What stopping has to know of a training."""

    @property
    def nothing_new(self) -> str | None:
        """Before the first boundary: what was resumed from, or an empty text. None once there is a boundary."""

    @property
    def stop_saved(self) -> bool | None:
        """Whether the save of the stop succeeded; None as long as there is no answer."""

    @property
    def unsaved(self) -> str:
        """What is lost if the process ends now, in words; empty where nothing is."""

    @property
    def may_be_alone(self) -> bool:
        """Whether other ranks may have left after the save of a stop, so that what this one waits for never comes."""

    def accept(self, request: Request) -> bool:
        """Takes a request in."""

    def say(self, text: str) -> None:
        """Prints a line."""

    def abandon(self, why: str, code: int) -> None:
        """Answers who still waits, and closes the run."""


class Shutdown:
    """Turns signals into requests, and ends the process at the deadline of a stop.

    Args:
        training: What is stopped.
        grace: Seconds from a stop to the end of the process at the latest.
    """

    def __init__(self, training: Training, grace: float) -> None:
        self._training = training
        self._grace = grace
        self._leaving = min(_LEAVING_SECONDS, _LEAVING_PART * grace)
        self._ends_at: float | None = None
        self._taking_in: list[threading.Thread] = []
        self._signals = Signals(self._on_signal)
        self._worker_deaths = WorkerDeaths()
        self._lock = threading.Lock()
        self._number: int | None = None
        self._noticed = threading.Event()
        self._deadline: threading.Timer | None = None
        self._limit = f"within {grace:g} s of the stop"
        self.interrupted_at: float | None = None
        """When Ctrl+C was pressed first, on the monotonic clock."""

    def start(self) -> bool:
        """Begins to listen; False outside the main thread, where Python allows no signal handlers."""
        return self._signals.start()

    def stop(self) -> None:
        """Puts the signal handlers back: the loop has come back. The deadline stands until the run is closed."""
        self._worker_deaths.stop()
        self._signals.stop()
        for thread in self._taking_in:
            thread.join(_LEAVING_SECONDS)  # no longer, where the disk hangs

    def over(self) -> None:
        """Takes the deadline away: nothing that could hang is left to do."""
        with self._lock:
            if self._deadline is not None:
                self._deadline.cancel()

    def look(self) -> None:
        """Called by training at every boundary."""
        self._worker_deaths.look()

    def begin(self) -> None:
        """A stop was taken in, by whatever door: from now on the process has its grace, and no longer."""
        self._noticed.set()
        self._begin_grace()

    @property
    def seconds_left(self) -> float | None:
        """What is left of the grace for saving; None before a stop."""
        return None if self._ends_at is None else self._ends_at - time.monotonic()

    def hurry(self) -> None:
        """Another rank has left after a stop: the loop may wait for it for ever, and gets a moment of the grace."""
        left = self.seconds_left
        with self._lock:
            if self._deadline is not None and left is not None and left > _ALONE_SECONDS:
                self._deadline.cancel()
                self._limit = f"within {_ALONE_SECONDS:g} s of another rank's end"
                self._ends_at = time.monotonic() + _ALONE_SECONDS
                self._deadline = self._timer(_ALONE_SECONDS)

    def explains(self, error: BaseException | None) -> bool:
        """Whether an error is the stop itself: the death of a worker that the same signal killed, or of a rank's peers.

        The error may be faster than the thread that listens to signals, so it is given a moment.
        """
        if error is None:
            return False
        if is_death_of_one(error):
            if not self._noticed.wait(_NOTICED_SECONDS) and self._number is not None:
                self._noticed.wait(self._grace)  # the signal is known, and a slow disk holds its request up
            return self._noticed.is_set()
        return isinstance(error, RuntimeError) and self._training.may_be_alone

    def leave(self, code: int, why: str, seconds: float = _LEAVING_SECONDS) -> None:
        """Ends the process at once, whatever the training thread does, and whatever the disk does."""
        hurry = threading.Timer(seconds, os._exit, (code,))
        hurry.daemon = True
        hurry.start()
        try:
            self._training.say(why)
            self._training.abandon(why, code)
        finally:
            with suppress(OSError):
                if sys.stdout.isatty():
                    sys.stdout.write("\x1b[?25h\n")  # a progress bar hides the cursor
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _on_signal(self, number: int) -> None:
        """Runs in the thread that listens to signals."""
        name = signal.Signals(number).name
        if number == signal.SIGINT:
            now = time.monotonic()
            if self.interrupted_at is not None:
                if now - self.interrupted_at >= _SECOND_PRESS_SECONDS:
                    self._leave_at_once(number)
                return
            self.interrupted_at = now
        stop = number in SAVE_AND_STOP
        if stop and (resumed_from := self._training.nothing_new) is not None:
            if resumed_from:
                self.leave(stopped_after_save(), f"{name}: nothing is new since {resumed_from}; ending")
            self.leave(ended_by_signal(number), f"{name}: no step was taken yet, so there is nothing to save; ending")
        if stop and self._number is not None:
            self._training.say(f"{name}: a save and the end are already under way")
            return
        if stop:
            self._number = number
            self._begin_grace()
        # The request goes to the disk first, and that may hang: the next signal is to be heard all the same.
        taking_in = threading.Thread(target=self._take_in, args=(number, name), name="holdfast-signal", daemon=True)
        self._taking_in = [*(thread for thread in self._taking_in if thread.is_alive()), taking_in]
        taking_in.start()

    def _take_in(self, number: int, name: str) -> None:
        stop = number in SAVE_AND_STOP
        self._training.accept(Request("signal", stop=stop, why=name))
        again = "; press again to leave without it" if number == signal.SIGINT else ""
        self._training.say(f"{name}: saving the last boundary" + (f", then ending{again}" if stop else ""))
        if stop:
            self._noticed.set()  # not before the request waits: training may be leaving, and saves what waits

    def _leave_at_once(self, number: int) -> None:
        if self._training.stop_saved:
            self.leave(stopped_after_save(), "second Ctrl+C: the save is complete; leaving the step that was under way")
        self.leave(ended_by_signal(number), "second Ctrl+C: the save is abandoned; earlier checkpoints are intact")

    def _begin_grace(self) -> None:
        with self._lock:
            if self._deadline is None:
                self._ends_at = time.monotonic() + self._grace - self._leaving
                self._deadline = self._timer(self._grace - self._leaving)

    def _timer(self, seconds: float) -> threading.Timer:
        timer = threading.Timer(seconds, self._out_of_time)
        timer.daemon = True
        timer.start()
        return timer

    def _out_of_time(self) -> None:
        saved = self._training.stop_saved
        if saved:
            why = f"the loop did not end {self._limit}; leaving after a good save"
            self.leave(stopped_after_save(), why, self._leaving)
        code = 1 if saved is False or self._number is None else ended_by_signal(self._number)
        why = f"no checkpoint was saved {self._limit}; earlier ones are intact"
        self.leave(code, "; ".join(filter(None, (why, self._training.unsaved))), self._leaving)
