"""The wait of the training thread: at a gate that is shut, or until it is answered. It makes calls meanwhile."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from holdfast.capture.training_thread_calls import TrainingThreadCalls

# What a blocked training thread waits for may come without a word.
LOOK_SECONDS = 0.05


class Blocking:
    """A gate as the thread sees it that waits there.

    Args:
        wake: Set when training blocks until it is answered: the saving thread has something to look at.
    """

    def __init__(self, wake: threading.Event) -> None:
        self._wake = wake
        self._changed = threading.Condition()
        self._shut = False
        self._blocked = 0
        self._calls = TrainingThreadCalls(self._changed)
        self.blocked_since: float | None = None
        """The time at which training came to the shut gate (`time.monotonic`); None while it does not wait there."""
        self.blocked_seconds = 0.0
        """The seconds that training has been blocked at the gate in all."""
        self.training_waits = threading.Event()
        """Set while training is blocked: the rest of the snapshot should be in memory soon."""

    @property
    def is_blocked(self) -> bool:
        """True while training is blocked until it is answered."""
        return self._blocked > 0

    @contextmanager
    def blocked(self) -> Iterator[None]:
        """Encloses a wait of the training thread for a save, in which it touches nothing."""
        with self._changed:
            self._blocked += 1
            self.training_waits.set()
            self._changed.notify_all()
        self._wake.set()
        try:
            yield
        finally:
            with self._changed:
                self._blocked -= 1
                if self.blocked_since is None:
                    self.training_waits.clear()

    def block_until(self, until: Callable[[], bool], seconds: float | None = None) -> bool:
        """Blocks the training thread until something has come true, and makes the calls that it is sent.

        Args:
            until: Asked again and again for it.
            seconds: The longest wait; None waits as long as it takes.

        Returns:
            True when it has come true, False when the time was up.
        """
        end = None if seconds is None else time.monotonic() + seconds
        with self.blocked():
            while not until():
                left = LOOK_SECONDS if end is None else min(LOOK_SECONDS, end - time.monotonic())
                if left <= 0:
                    return False
                with self._changed:
                    self._calls.wait_and_run(left)
        return True

    def notice(self) -> None:
        """Wakes the blocked training thread: its answer may have come."""
        with self._changed:
            self._changed.notify_all()

    def run_on_training_thread(self, work: Callable[[], None]) -> None:
        """Has the blocked training thread run `work`, and waits for that; called by the thread that takes snapshots.

        The gate is shut. A writer that needs collectives of all ranks belongs into the threads that train. An error of
        it is raised here, and not in training.
        """
        with self._changed:
            done = self._calls.send(work)
        done.result()

    def _wait_until_open(self) -> None:
        self._wait_while(lambda: self._shut)

    def _wait_while(self, is_held: Callable[[], bool], look_seconds: float | None = None) -> None:
        """Waits, with the lock, while something holds training; asked again whenever something has changed."""
        if not is_held():
            return
        self.blocked_since = begun = time.monotonic()
        self.training_waits.set()
        try:
            while is_held():
                self._calls.wait_and_run(look_seconds)
        finally:
            self.blocked_since = None
            self.blocked_seconds += time.monotonic() - begun
            if not self._blocked:
                self.training_waits.clear()
