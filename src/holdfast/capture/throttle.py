"""How modestly a snapshot is written: its threads' priority at the disk, and a limit to the bytes a second."""

import ctypes
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

# ioprio_set has no function in any C library; the system calls' numbers differ between processors.
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}
_THIS_THREAD = (1, 0)  # IOPRIO_WHO_PROCESS
PRIORITIES = {"normal": None, "low": 2 << 13 | 7, "idle": 3 << 13}
"""As `ionice` has them: the last of its best-effort class, and its idle class."""

_LOOK_SECONDS = 0.05


@dataclass
class Throttle:
    """What the writers of a training's snapshots keep to.

    Args:
        bytes_per_second: How much they write at most; None: as fast as the disk takes it.
        priority: A key of `PRIORITIES`.
    """

    bytes_per_second: int | None = None
    priority: str = "normal"
    pressing: bool = False
    """Whether the limit is of no account at the moment: the process must end soon."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _free_at: float = 0.0

    def begin(self) -> None:
        """Gives the calling thread its priority. Where the system has none, it stays as it is."""
        number = _IOPRIO_SET.get(platform.machine())
        value = PRIORITIES[self.priority]
        if number is not None and value is not None:
            ctypes.CDLL(None).syscall(number, *_THIS_THREAD, value)

    def wait(self, size: int, training_waits: threading.Event, stopped: Callable[[], bool]) -> None:
        """Waits until so many bytes may be written. For training that waits, or for a stop, there is no limit.

        Args:
            size: How many bytes.
            training_waits: Set while training waits.
            stopped: Whether the save has been given up.
        """
        if self.bytes_per_second is None:
            return
        with self._lock:
            # Its own bytes count, not only those before it: a save may be one block, and the largest may come last.
            turn = self._free_at = max(self._free_at, time.monotonic()) + size / self.bytes_per_second
        while not (self.pressing or training_waits.is_set() or stopped()):
            left = turn - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, _LOOK_SECONDS))
        with self._lock:
            self._free_at = time.monotonic()  # what was written beyond the limit is not waited for later
