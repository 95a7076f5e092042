"""The watchdog of saves: training does not wait for storage that hangs."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# A save that is not over after this time, and after this many times the longest so far, may never be.
_SECONDS = 60.0
_TIMES = 5


class Watchdog:
    """Watches saves, and tells when one takes so long that the storage must hang."""

    def __init__(self) -> None:
        self._longest = 0.0
        self._lock = threading.Lock()
        self.lost = False
        """True while the save that is under way has taken too long."""

    @contextmanager
    def watch(self, on_lost: Callable[[float], object]) -> Iterator[None]:
        """Encloses a save.

        Args:
            on_lost: Called from a thread of its own, with the seconds that the save has taken, when that is too long.
        """
        limit = max(_SECONDS, _TIMES * self._longest)
        begun = time.monotonic()

        over = False

        def lose() -> None:
            with self._lock:
                if not over:
                    self.lost = True
                    on_lost(limit)

        watch = threading.Timer(limit, lose)
        watch.daemon = True
        watch.start()
        try:
            yield
            self._longest = max(self._longest, time.monotonic() - begun)
        finally:
            watch.cancel()
            with self._lock:  # nobody acts on a save that is over
                over = True
                self.lost = False
            watch.join()  # a thread that is still waking when the interpreter ends can abort the process (seen)
