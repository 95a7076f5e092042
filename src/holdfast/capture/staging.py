"""Memory for snapshots: blocks that were touched once and are used again.

Touching free memory is the hidden cost of a snapshot: fresh pages take copies at a tenth of the speed of resident ones
(measured: 1.4 against 12.8 GB/s, and 0.3 where a virtual machine has given them back). So nothing is allocated while a
save runs.
"""

import ctypes
import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch

from holdfast.store.digest import BLOCK_BYTES  # a block is digested as it is

# A save uses no more while training does not wait for it: the disk sets the pace of the copies, and they stay cached.
RING_BLOCKS = 6
# Nobody who waits for a block is woken when training comes to the gate; the disk gives one back about as often.
_LOOK_SECONDS = 0.002


@dataclass(frozen=True)
class Block:
    """One piece of resident memory: `BLOCK_BYTES` at a page's beginning; page-locked where there is CUDA."""

    view: memoryview
    address: int
    tensor: torch.Tensor
    owner: Any


class Pool:
    """The resident blocks: a small ring, and a reserve for what is left when training comes to the gate.

    Args:
        pinned: Makes page-locked blocks, for copies from a CUDA device.
    """

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._changed = threading.Condition()
        self._free = [_block(pinned) for _ in range(RING_BLOCKS)]
        self._total = RING_BLOCKS
        self._scratch: list[Block] = []

    @property
    def is_empty(self) -> bool:
        """True while all blocks are in use."""
        return not self._free

    @property
    def bytes(self) -> int:
        """The size of the pool's memory, in bytes."""
        return self._total * BLOCK_BYTES

    def take(self, training_waits: threading.Event, stopped: threading.Event) -> Block | None:
        """Takes a block, and waits for one if it must.

        Args:
            training_waits: Set while training waits; only then the reserve is touched.
            stopped: Set when the save has been given up.

        Returns:
            The block; None if the save was given up.
        """
        with self._changed:
            while not stopped.is_set():
                spared = 0 if training_waits.is_set() else self._total - RING_BLOCKS
                if len(self._free) > spared:
                    return self._free.pop()
                self._changed.wait(_LOOK_SECONDS)
        return None

    def give(self, block: Block) -> None:
        """Gives a block back."""
        with self._changed:
            self._free.append(block)
            self._changed.notify()

    @contextmanager
    def scratch(self) -> Iterator[Block]:
        """Gives a block to read something a second time into; it is kept for the next time."""
        with self._changed:
            block = self._scratch.pop() if self._scratch else None
        block = block or _block(self._pinned)
        try:
            yield block
        finally:
            with self._changed:
                self._scratch.append(block)

    def grow(self, wanted: int) -> None:
        """Makes the pool at least `wanted` bytes large. Called between saves, never during one."""
        while self._total * BLOCK_BYTES < wanted:
            block = _block(self._pinned)
            with self._changed:
                self._free.append(block)
                self._total += 1


def _block(pinned: bool) -> Block:
    if pinned:
        tensor = torch.empty(BLOCK_BYTES, dtype=torch.uint8, pin_memory=True)
        owner: Any = (ctypes.c_char * BLOCK_BYTES).from_address(tensor.data_ptr())
    else:
        owner = mmap.mmap(-1, BLOCK_BYTES)
        with suppress(OSError):  # a kernel without huge pages
            owner.madvise(mmap.MADV_HUGEPAGE)
        tensor = torch.frombuffer(owner, dtype=torch.uint8)
        tensor.zero_()  # touches every page
    return Block(memoryview(owner).cast("B"), tensor.data_ptr(), tensor, owner)
