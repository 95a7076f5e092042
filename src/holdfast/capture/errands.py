"""What training is sent on where it stands: work that belongs into its own thread, as collectives of all ranks do."""

import threading
from collections.abc import Callable
from concurrent.futures import Future


class Errands:
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
