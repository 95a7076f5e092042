"""Work that the saving thread has the training thread do while it is blocked."""

import threading
from collections.abc import Callable
from concurrent.futures import Future


class TrainingThreadCalls:
    """Calls that the saving thread has the blocked training thread make, one at a time: collectives belong there.

    Args:
        changed: Guards the call, and tells training that there is one. It is acquired whenever a method is called.
    """

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self._next: tuple[Callable[[], None], Future[None]] | None = None

    def send(self, work: Callable[[], None]) -> Future[None]:
        """Has training make a call; the result tells when it is done, and what it raised."""
        done: Future[None] = Future()
        self._next = (work, done)
        self._changed.notify_all()
        return done

    def wait_and_run(self, seconds: float | None = None) -> None:
        """Waits until something has changed, unless there is a call already, and makes it. Called by training."""
        if self._next is None:
            self._changed.wait(seconds)
        if self._next is None:
            return
        (work, done), self._next = self._next, None
        # Without the lock: a call takes as long as a write, and others ask the gate meanwhile.
        self._changed.release()
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that had training make the call
            done.set_exception(error)
        else:
            done.set_result(None)
        finally:
            self._changed.acquire()
