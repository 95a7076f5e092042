"""The gate: what training waits at before its next update, while a snapshot of the last boundary is being taken."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from holdfast.capture.boundary import Boundary

_REMEMBERED = 64
# What training waits for when it stands may come without a word.
_LOOK_SECONDS = 0.05


class Gate:
    """Between two threads: training, which reaches boundaries and makes updates, and the one that takes snapshots.

    From a boundary until the next update the parameters and the optimizer's state stand still, so a snapshot can be
    taken whenever the gate is shut, whatever else training does meanwhile.

    Args:
        on_shut: Called when training shuts the gate itself, at a boundary that is to be saved.
    """

    def __init__(self, on_shut: Callable[[], None]) -> None:
        self._on_shut = on_shut
        self._changed = threading.Condition()
        self._boundary: Boundary | None = None
        self._updating = False
        self._shut = False
        self._wanted = False
        self._awaited: int | None = None
        self._parked = 0
        self._errands = TrainingThreadCalls(self._changed)
        self.blocked_since: float | None = None
        """When training came to the shut gate (`time.monotonic`); None while it is not held."""
        self.undisturbed_seconds: deque[float] = deque(maxlen=_REMEMBERED)
        """The latest times from a boundary to the next update, without the time that it was held."""
        self.blocked_seconds = 0.0
        """How long training has been held in all."""
        self.training_waits = threading.Event()
        """Set while training is held: what is left of the snapshot should be in memory soon."""
        self.only_when_blocked = False
        """Whether snapshots are taken only while the training thread stands still: "at a boundary" mode."""

    @property
    def boundary(self) -> Boundary | None:
        """The last boundary, which may have been left for an update since."""
        return self._boundary

    @property
    def updating(self) -> bool:
        """Whether training is somewhere between the beginning of an update and the next boundary."""
        return self._updating

    @property
    def is_shut(self) -> bool:
        """Whether training would have to wait before its next update."""
        return self._shut

    @property
    def is_blocked(self) -> bool:
        """Whether training stands still until it is answered."""
        return self._parked > 0

    def leave(self) -> None:
        """Waits while the gate is shut; then the last boundary is no more, and the next is being recorded.

        Called by training at the beginning of `step()`: a scaler that skips an update never comes to the optimizer's.
        """
        with self._changed:
            self._wait_until_open()
            self._updating = True

    def enter_update(self) -> None:
        """Waits while the gate is shut; then an update is in progress until the next boundary."""
        with self._changed:
            if not self._updating and self._boundary is not None and not self._shut:
                self.undisturbed_seconds.append(time.monotonic() - self._boundary.reached_at)
            self._wait_until_open()
            self._updating = True

    def reach(self, boundary: Boundary, *, shut: bool) -> None:
        """Training has reached a boundary.

        Args:
            boundary: The boundary.
            shut: Whether it is to be saved, so that no update may begin before it was taken.
        """
        with self._changed:
            self._boundary = boundary
            self._updating = False
            if shut or self._wanted or (self._awaited is not None and boundary.number >= self._awaited):
                self._shut = True
                self._wanted = False
                self._changed.notify_all()
                self._on_shut()
                if self.only_when_blocked:
                    self._wait_until_open()

    @contextmanager
    def blocked(self) -> Iterator[None]:
        """The training thread waits for a save, and touches nothing meanwhile."""
        with self._changed:
            self._parked += 1
            self.training_waits.set()
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._parked -= 1
                if self.blocked_since is None:
                    self.training_waits.clear()

    def block_until(self, until: Callable[[], bool], seconds: float | None = None) -> bool:
        """The training thread stands still until something has come true, and runs the errands that it is sent on.

        Args:
            until: Asked again and again whether it has.
            seconds: How long to wait at most; None waits as long as it takes.

        Returns:
            Whether it has come true.
        """
        end = None if seconds is None else time.monotonic() + seconds
        with self.blocked():
            while not until():
                left = _LOOK_SECONDS if end is None else min(_LOOK_SECONDS, end - time.monotonic())
                if left <= 0:
                    return False
                with self._changed:
                    self._errands.wait_and_run(left)
        return True

    def notice(self) -> None:
        """What training stands and waits for may have come."""
        with self._changed:
            self._changed.notify_all()

    def run_on_training_thread(self, work: Callable[[], None]) -> None:
        """Has training do something where it stands, and waits for that; called by the thread that takes snapshots.

        The gate is shut. What needs collectives of all ranks belongs into the threads that train.

        Args:
            work: What to do. What it raises is raised here, and not in training.
        """
        with self._changed:
            done = self._errands.send(work)
        done.result()

    def shut(self, after: int, give_up: Callable[[], bool]) -> Boundary | None:
        """Shuts the gate as soon as there is a boundary to take; called by the thread that takes snapshots.

        Args:
            after: The number of a boundary that is of no use any more; the next one is.
            give_up: Asked now and then whether there is still something to wait for.

        Returns:
            The boundary; None if it was given up.
        """
        with self._changed:
            while not self._can_shut(after):
                self._wanted = True
                if give_up():
                    self._wanted = False
                    return None
                self._changed.wait(0.05)
            self._shut = True
            self._wanted = False
            return self._boundary

    def offer(self, after: int) -> int:
        """Shuts the gate at the earliest boundary that can still be taken: the last one, or the next.

        Called by the thread that takes snapshots. `take` follows, or `open` if there will be no snapshot.

        Args:
            after: The number of a boundary that is of no use any more.

        Returns:
            The number of the boundary. Training does not leave it before it was taken or the gate is opened.
        """
        with self._changed:
            here = self._boundary.number if self._boundary is not None else 0
            if self._can_shut(after):
                self._shut = True
                return here
            self._wanted = True
            return here + 1

    def take(self, number: int, give_up: Callable[[], bool]) -> Boundary | None:
        """Waits until training has come to a boundary that was agreed on, and shuts the gate there.

        Args:
            number: The boundary's number, `offer`'s or a later one: training runs on until it is there.
            give_up: Asked now and then whether there is still something to wait for.

        Returns:
            The boundary; None if it was given up.
        """
        with self._changed:
            self._wanted = False
            self._awaited = number
            try:
                while self._boundary is None or self._boundary.number < number or self._updating:
                    if self._shut:
                        self._shut = False
                        self._changed.notify_all()
                    # Who stands until it is answered comes to no further boundary before that.
                    if self._parked or give_up():
                        return None
                    self._changed.wait(0.05)
            finally:
                self._awaited = None
            self._shut = True
            return self._boundary

    def holds(self, number: int) -> bool:
        """Whether training cannot have left a boundary since the gate was shut there."""
        with self._changed:
            return self._shut and self._boundary is not None and self._boundary.number == number

    def open(self, number: int | None) -> bool:
        """Lets training go on.

        Args:
            number: The boundary that was taken. One that training has reached since, and wants saved, keeps the gate
                shut. None opens it whatever it is shut for.

        Returns:
            Whether it was shut for that until now.
        """
        with self._changed:
            if number is None:
                self._wanted = False
            opens = self._shut and (number is None or self._boundary is None or self._boundary.number == number)
            if opens:
                self._shut = False
            self._changed.notify_all()
            return opens

    def _can_shut(self, after: int) -> bool:
        if self._shut:
            return True
        if self._boundary is None or self._updating:
            return False
        if self._parked:
            return True
        return self._boundary.number > after and not self.only_when_blocked

    def _wait_until_open(self) -> None:
        if not self._shut:
            return
        self.blocked_since = begun = time.monotonic()
        self.training_waits.set()
        try:
            while self._shut:
                self._errands.wait_and_run()
        finally:
            self.blocked_since = None
            self.blocked_seconds += time.monotonic() - begun
            if not self._parked:
                self.training_waits.clear()


class TrainingThreadCalls:
    """One errand at a time, between two threads.

    Args:
        changed: What guards it, and tells training that there is one. It is held whenever a method is called.
    """

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self._next: tuple[Callable[[], None], Future[None]] | None = None

    def send(self, work: Callable[[], None]) -> Future[None]:
        """Has training do something; tells when it is done, and what it raised."""
        done: Future[None] = Future()
        self._next = (work, done)
        self._changed.notify_all()
        return done

    def wait_and_run(self, seconds: float | None = None) -> None:
        """Waits until something has changed, unless there is an errand already, and runs it. Called by training."""
        if self._next is None:
            self._changed.wait(seconds)
        if self._next is None:
            return
        (work, done), self._next = self._next, None
        # Without the lock: an errand takes as long as a write, and others ask the gate meanwhile.
        self._changed.release()
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that sent training on the errand
            done.set_exception(error)
        else:
            done.set_result(None)
        finally:
            self._changed.acquire()
