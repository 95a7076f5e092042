"""The budget of memory for snapshots, and the growth of the pool to what training needs."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from holdfast.capture.staging import RING_BLOCKS, Pool
from holdfast.store.digest import BLOCK_BYTES

# The limit and the use of a container, by the two versions of control groups; its own are mounted at their root.
_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def available_memory() -> int:
    """Returns the bytes that are free, of the machine and of the container; 0 where nobody tells."""
    try:
        available: int = psutil.virtual_memory().available
    except OSError:  # no /proc
        return 0
    for limit, used in _CGROUPS:
        with suppress(OSError, ValueError):  # not this version, or "max"
            available = min(available, max(0, int(limit.read_text()) - int(used.read_text())))
    return available


class StagingBudget:
    """The staging memory of one training.

    It begins as a small ring. What it must hold beyond that is what the disk cannot take between a boundary and the
    next update; both are measured, and the pool grows between saves.

    Args:
        limit: The most bytes that it may take; None takes a quarter of the memory that is available now,
            to the machine and to the container; only the ring where nobody tells that.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = available_memory() // 4 if limit is None else limit
        self.pool = Pool(pinned=bool(torch.cuda.is_initialized()))  # type: ignore[no-untyped-call]

    @property
    def bytes(self) -> int:
        """The bytes of the staging memory as it is now."""
        return self.pool.bytes

    def grow(self, size: int, seconds: float, undisturbed: Sequence[float]) -> None:
        """Grows the pool to what the last save would have needed. Called after it.

        Args:
            size: The bytes of the snapshot.
            seconds: The time that its writing took.
            undisturbed: The times from a boundary to the next update.
        """
        if not undisturbed or seconds <= 0:
            return
        # The shorter steps decide: the 5th percentile.
        covered = sorted(undisturbed)[len(undisturbed) // 20] * size / seconds
        ring = RING_BLOCKS * BLOCK_BYTES
        self.pool.grow(min(int(size - covered) + ring, self.limit // BLOCK_BYTES * BLOCK_BYTES))
