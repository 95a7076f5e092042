"""The limits that the writers of a snapshot keep to: their priority at the disk, and bytes a second."""

import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

# As `ionice` has them: the last of its best-effort class, and its idle class. Only Linux has the names.
_PRIORITIES = {"normal": None, "low": ("IOPRIO_CLASS_BE", 7), "idle": ("IOPRIO_CLASS_IDLE", 0)}

_LOOK_SECONDS = 0.05


@dataclass
class Throttle:
    """The limits to the writers of one training's snapshots.

    Args:
        bytes_per_second: The most that they write together; None for as fast as the disk takes it.
        priority: `normal`, `low` or `idle`.
    """

    bytes_per_second: int | None = None
    priority: str = "normal"
    pressing: bool = False
    """True while the limit does not count: the process must end soon."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _free_at: float = 0.0

    def begin(self) -> None:
        """Gives the calling thread its priority. Where the system has none, or refuses it, the thread keeps its own."""
        priority = _PRIORITIES[self.priority]
        if priority is None:
            return
        name, level = priority
        # By its own number, so that the process's other threads keep theirs.
        with suppress(psutil.Error, OSError, AttributeError):  # no /proc, forbidden, or a system without it
            psutil.Process(threading.get_native_id()).ionice(getattr(psutil, name), level)

    def wait(self, size: int, training_waits: threading.Event, stopped: threading.Event) -> None:
        """Waits until so many bytes may be written. For training that waits, or for a stop, there is no limit.

        Args:
            size: The number of bytes.
            training_waits: Set while training waits.
            stopped: Tells if the save has been given up.
        """
        if self.bytes_per_second is None:
            return
        with self._lock:
            # Its own bytes count, not only those before it: a save may be one block, and the largest may come last.
            turn = self._free_at = max(self._free_at, time.monotonic()) + size / self.bytes_per_second
        while not (self.pressing or training_waits.is_set() or stopped.is_set()):
            left = turn - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, _LOOK_SECONDS))
        with self._lock:
            self._free_at = time.monotonic()  # what was written beyond the limit is not waited for later
