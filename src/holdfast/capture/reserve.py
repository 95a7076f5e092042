"""How much memory snapshots may use, and how the pool grows to what training needs."""

from collections.abc import Sequence

import psutil
import torch

from holdfast.capture.staging import BLOCK_BYTES, RING_BLOCKS, Pool


class Reserve:
    """The staging memory of one training.

    It begins as a small ring. What it must hold beyond that is what the disk cannot take between a boundary and the
    next update; both are measured, and the pool grows between saves.

    Args:
        limit: The most bytes that it may take; None takes a quarter of the memory that is available now.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = psutil.virtual_memory().available // 4 if limit is None else limit
        self.pool = Pool(pinned=bool(torch.cuda.is_initialized()))  # type: ignore[no-untyped-call]

    def grow(self, size: int, seconds: float, undisturbed: Sequence[float]) -> None:
        """Called after a save.

        Args:
            size: The bytes of the snapshot.
            seconds: How long its writing took.
            undisturbed: Times from a boundary to the next update.
        """
        if not undisturbed or seconds <= 0:
            return
        # The shorter steps decide: the 5th percentile.
        covered = sorted(undisturbed)[len(undisturbed) // 20] * size / seconds
        ring = RING_BLOCKS * BLOCK_BYTES
        self.pool.grow(min(int(size - covered) + ring, self.limit // BLOCK_BYTES * BLOCK_BYTES))
