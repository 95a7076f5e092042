"""The budget of memory for snapshots, and the growth of the pool to what training needs."""

import mmap
import os
import threading
from collections.abc import Sequence

from holdfast.capture.arena_making import ArenaMaking, Making
from holdfast.capture.staging import RING_BLOCKS, Pool
from holdfast.devices.arena import Arena
from holdfast.devices.device import Device
from holdfast.devices.machine import available_memory
from holdfast.store.digest import BLOCK_BYTES

_SLAB_BYTES = 16 * BLOCK_BYTES
_SLABS_OF_STATE = 16


class StagingBudget:
    """The staging memory of one training.

    Without a device it begins as a small ring. What it must hold beyond that is what the disk cannot take between a
    boundary and the next update; both are measured, and the pool grows between saves. With a device it is to hold the
    whole state, and is made beside training, by a thread.

    Args:
        limit: The most bytes that it may take; None takes a quarter of the memory that is available now to this
            process; only the ring where nobody tells that.
        device: The accelerators that the state is on; None where there are none.
        card: The one that the state is on, or most of it.
        state_bytes: About how large the state is; None where nobody knows.
        wake: Set when there is news.
    """

    def __init__(
        self,
        limit: int | None,
        device: Device | None = None,
        *,
        card: int = 0,
        state_bytes: int | None = None,
        wake: threading.Event | None = None,
    ) -> None:
        self.limit = _share_of_memory(device) if limit is None else limit
        self._lent = 0
        self._making: ArenaMaking | None = None
        self._told = (0, "")
        if device is None:
            self.pool = Pool(Arena(max(self.limit, RING_BLOCKS * BLOCK_BYTES)))
        else:
            slab = _slab_bytes(state_bytes)
            self.pool = _left(device, slab) or Pool(Arena(_machine_bytes(), device), slab)
            self._making = ArenaMaking(self.pool, device, card, wake or threading.Event())

    @property
    def bytes(self) -> int:
        """The bytes of the staging memory as it is now."""
        return self.pool.bytes

    @property
    def making(self) -> Making | None:
        """The progress of its making, with a device; None without."""
        return None if self._making is None else self._making.now

    def news(self) -> Making | None:
        """Returns the progress, once, when no more is made; None where that is told already, or not so."""
        making = self.making
        if making is None or not making.is_over or (making.bytes, making.reason) == self._told:
            return None
        self._told = (making.bytes, making.reason)
        return making

    def state_known(self, size: int) -> None:
        """Has what a save with a device needs be made, now that the state is as large as it will be."""
        if self._making is not None:
            self._making.want(size + self.pool.ring_bytes, self.limit)

    def grow(self, size: int, seconds: float, undisturbed: Sequence[float]) -> None:
        """Grows the pool to what the last save would have needed. Called after it; with a device nothing is to be done.

        Args:
            size: The bytes of the snapshot.
            seconds: The time that its writing took.
            undisturbed: The times from a boundary to the next update.

        Raises:
            OSError: There is not so much memory. It grows no further then, and is not asked for more again.
        """
        if self._making is not None or not undisturbed or seconds <= 0:
            return
        # The shorter steps decide: the 5th percentile.
        covered = sorted(undisturbed)[len(undisturbed) // 20] * size / seconds
        wanted = int(size - covered) + self.pool.ring_bytes
        try:
            self.pool.grow(min(wanted, (self.limit - self._lent) // BLOCK_BYTES * BLOCK_BYTES))
        except OSError:
            self.limit = self.bytes
            raise

    def lend(self, size: int) -> bool:
        """Takes so many bytes of the limit for copies that are made elsewhere, until the next call.

        Returns:
            False where so many are not left: none is taken.
        """
        fits = size <= max(0, self.limit - self.bytes)
        self._lent = size if fits else 0
        return fits

    def close(self) -> None:
        """Ends the making. What the driver has locked stays locked, for the next training of this process."""
        if self._making is not None and self._making.close():
            _left_behind.append(self.pool)


# Locked memory is not unlocked, which could meet copies, or the end of the interpreter.
_left_behind: list[Pool] = []


def _left(device: Device, slab: int) -> Pool | None:
    """Returns what an earlier training has left, if there is something of this kind."""
    for pool in _left_behind:
        if pool.arena.device is device and pool.block_bytes == slab:
            _left_behind.remove(pool)
            return pool
    return None


def _slab_bytes(state_bytes: int | None) -> int:
    """Returns the size of a slab: for a small state a smaller one, so that several are on their way."""
    slab = BLOCK_BYTES
    while slab < _SLAB_BYTES and (state_bytes is None or slab * _SLABS_OF_STATE < state_bytes):
        slab *= 2
    return slab


def _share_of_memory(device: Device | None) -> int:
    """Returns a quarter of what is available; with a device it is all taken, by each process of the host."""
    processes = os.environ.get("LOCAL_WORLD_SIZE", "") if device is not None else ""
    return available_memory() // 4 // max(1, int(processes) if processes.isdecimal() else 1)


def _machine_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE
