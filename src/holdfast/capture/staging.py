"""Memory for snapshots: blocks that were made once and are used again. Nothing is allocated while a save runs."""

import errno
import threading

from holdfast.devices.arena import Arena, Block
from holdfast.store.digest import BLOCK_BYTES  # a block is digested as it is

# A save uses no more while training does not wait for it: the disk sets the pace of the copies, and they stay cached.
RING_BLOCKS = 6
# With a device a block is a slab of several: the interpreter has less to do for each byte.
RING_SLABS = 4
# One for notes, and one that is on its way.
_LEAST_BLOCKS = 2
# Nobody who waits for a block is woken when training comes to the gate; the disk gives one back about as often.
_LOOK_SECONDS = 0.002


class Pool:
    """The resident blocks: a small ring, and a reserve for what is left when training comes to the gate.

    With a device all of it may be used at any time, and somebody else makes the blocks (`capture/arena_making.py`).

    Args:
        arena: The memory.
        block_bytes: The size of a block: a multiple of `BLOCK_BYTES`.
    """

    def __init__(self, arena: Arena, block_bytes: int = BLOCK_BYTES) -> None:
        self.arena = arena
        self.block_bytes = block_bytes
        self.ring_bytes = (RING_BLOCKS if arena.device is None else RING_SLABS) * block_bytes
        """The least that a save works with."""
        lock = threading.Lock()
        self._changed = threading.Condition(lock)
        self._wanted = threading.Condition(lock)
        self._waiting = 0
        self._free: list[Block] = []
        self._total = 0
        self.failure = ""
        """The reason why no block will be added any more; empty while one may be. Who waits for the first hears it."""
        if arena.device is None:
            self.grow(self.ring_bytes)

    @property
    def is_empty(self) -> bool:
        """True while all blocks are in use."""
        return not self._free

    @property
    def is_waited_for(self) -> bool:
        """True while somebody waits for a block."""
        return self._waiting > 0

    @property
    def bytes(self) -> int:
        """The size of the pool's memory, in bytes."""
        return self._total * self.block_bytes

    def take(self, training_waits: threading.Event, stopped: threading.Event) -> Block | None:
        """Takes a block, and waits for one if it must.

        Args:
            training_waits: Set while training waits; without a device the reserve is touched only then.
            stopped: Set when the save has been given up.

        Returns:
            The block; None if the save was given up.

        Raises:
            OSError: There is no memory, not for the few blocks that a save needs at once.
        """
        with self._changed:
            self._waiting += 1
            try:
                while not stopped.is_set():
                    if len(self._free) > self._spared(training_waits):
                        return self._free.pop()
                    if self.failure and self._total < _LEAST_BLOCKS:
                        raise OSError(errno.ENOMEM, f"no staging memory: {self.failure}")
                    self._wanted.notify_all()
                    self._changed.wait(_LOOK_SECONDS)
            finally:
                self._waiting -= 1
        return None

    def try_take(self) -> Block | None:
        """Takes any block that is free; None where there is none. Does not wait."""
        with self._changed:
            return self._free.pop() if self._free else None

    def give(self, block: Block) -> None:
        """Gives a block back."""
        with self._changed:
            self._free.append(block)
            self._changed.notify()

    def grow(self, wanted: int) -> None:
        """Makes the pool at least `wanted` bytes large. Called between saves, never during one.

        Raises:
            OSError: There is not so much memory.
        """
        while self.bytes < wanted:
            self.add(self.arena.make(self.block_bytes))

    def add(self, block: Block) -> None:
        """Adds a block that the arena has made."""
        with self._changed:
            self._total += 1
            self._free.append(block)
            self._changed.notify()

    def rest(self, seconds: float, ended: threading.Event) -> None:
        """Waits, but not while somebody waits for a block, nor when `ended` is set; `wake` has that looked at."""
        with self._wanted:
            self._wanted.wait_for(lambda: self._waiting or ended.is_set(), seconds)

    def wake(self) -> None:
        """Wakes who rests."""
        with self._wanted:
            self._wanted.notify_all()

    def _spared(self, training_waits: threading.Event) -> int:
        if self.arena.device is not None or training_waits.is_set():
            return 0
        return self._total - RING_BLOCKS
