"""The arena of a training on a device: made beside it, slab by slab, by a thread that holds nothing up.

To lock pages stops all work on the device for as long as it takes, in every process of the machine (measured: 4 GiB in
0.24 s). So a pause of twenty times that follows each slab, and the processes of a host take turns. While a save waits
for memory there is no pause: training stands still for it.
"""

import fcntl
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from holdfast.capture.staging import Pool
from holdfast.devices.device import Device
from holdfast.devices.machine import processors_next_to

_PAUSES = 20
"""The pause after a slab, in times of what it took the driver to lock it."""
# Nobody keeps a turn for so long; whoever does is not waited for again.
_TURN_SECONDS = 30.0
_TURN_LOOK_SECONDS = 0.005
_CLOSING_SECONDS = 5.0


@dataclass(frozen=True)
class Making:
    """The progress of it.

    Args:
        bytes: The bytes that are there.
        wanted_bytes: The bytes that it is to have, as far as is known yet.
        seconds: The time that it has taken so far.
        is_over: True when no more of it will be made, unless the state grows.
        is_locked: True if the driver has locked all of it, so that copies pass the processor by.
        reason: The reason why it is smaller, or not locked; empty if it is neither.
    """

    bytes: int
    wanted_bytes: int
    seconds: float
    is_over: bool
    is_locked: bool
    reason: str


class ArenaMaking:
    """The thread. It makes the ring at once, and the rest when it is told how large the state is.

    Args:
        pool: The pool that gets the slabs.
        device: The accelerators.
        card: The one that the state is on, or most of it.
        wake: Set when no more is made.
    """

    def __init__(self, pool: Pool, device: Device, card: int, wake: threading.Event) -> None:
        self._pool = pool
        pool.failure = ""
        self._device = device
        self._card = card
        self._turns = _Turns()
        self._changed = threading.Condition()
        self._wake = wake
        self._wanted = self._allowed = pool.ring_bytes
        self._state_is_known = False
        self._closed = threading.Event()
        self._seconds = 0.0
        self._reason = ""
        self._thread = threading.Thread(target=self._run, name="holdfast-arena", daemon=True)
        self._thread.start()

    def want(self, size: int, limit: int) -> None:
        """Has it go on to so many bytes. Fewer than before change nothing.

        Args:
            size: The bytes that a save needs.
            limit: The most that it may come to.
        """
        slab = self._pool.block_bytes
        with self._changed:
            self._wanted = max(self._wanted, -(-size // slab) * slab)
            self._allowed = max(self._allowed, min(self._wanted, limit // slab * slab))
            self._state_is_known = True
            self._changed.notify_all()

    @property
    def now(self) -> Making:
        """The progress."""
        made, arena, reason = self._pool.bytes, self._pool.arena, self._reason
        has_all = self._state_is_known and made >= self._allowed
        if has_all and made < self._wanted:
            reason = reason or "staging_memory allows no more; unset it is a quarter of what is available"
        return Making(
            bytes=made,
            wanted_bytes=self._wanted,
            seconds=self._seconds,
            is_over=has_all or bool(self._reason),
            is_locked=arena.locked_bytes >= made > 0,
            reason=reason or arena.refusal,
        )

    def close(self) -> bool:
        """Ends it. What was made stays, and stays locked.

        Returns:
            True if the thread is over: nothing more is made.
        """
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
        self._pool.wake()
        self._thread.join(_CLOSING_SECONDS)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._device.enter_thread(self._card)
            self._go_near_to_card()
            while self._is_more_wanted():
                begun = time.monotonic()
                self._make()
                self._seconds += time.monotonic() - begun
        except Exception as error:  # noqa: BLE001 - there is nobody to raise it to; whoever needs a block is told
            self._end(str(error) or type(error).__name__)
        finally:
            self._turns.close()

    def _go_near_to_card(self) -> None:
        """Keeps this thread to the processors next to the card: memory is made where it is first touched."""
        near = processors_next_to(self._device.bus_address(self._card)) & os.sched_getaffinity(0)
        if near:
            os.sched_setaffinity(0, near)  # of this thread alone

    def _is_more_wanted(self) -> bool:
        """Waits until more is wanted; False when nothing will be."""
        with self._changed:
            if self.now.is_over:
                self._wake.set()
            self._changed.wait_for(lambda: self._closed.is_set() or self._pool.bytes < self._allowed)
        return not (self._closed.is_set() or self._reason)

    def _make(self) -> None:
        """Makes one slab, and rests."""
        pool, arena = self._pool, self._pool.arena
        slab = arena.make(pool.block_bytes)
        is_ring = pool.bytes < pool.ring_bytes
        with self._turns.one(self._has_no_hurry):
            begun = time.monotonic()
            arena.lock(slab)
            took = time.monotonic() - begun
            if arena.refusal and arena.locked_bytes >= pool.ring_bytes:
                arena.unmake(slab)
                self._end(arena.refusal)
                return
            pool.add(slab)
            if not is_ring:
                pool.rest(_PAUSES * took, self._closed)

    def _has_no_hurry(self) -> bool:
        pool = self._pool
        return not (pool.bytes < pool.ring_bytes or pool.is_waited_for or self._closed.is_set() or pool.arena.refusal)

    def _end(self, reason: str) -> None:
        self._reason = reason
        self._pool.failure = reason
        self._wake.set()


class _Turns:
    """The turns of a host's processes, by a lock on a file that holds nothing. Where none can be had nobody waits."""

    def __init__(self) -> None:
        self._fd = -1
        with suppress(OSError):
            # Where all may write, anything may have this name: it is not followed, and nothing is read or written.
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            self._fd = os.open(Path(tempfile.gettempdir()) / f"holdfast-{os.getuid()}.lock", flags, 0o600)

    @contextmanager
    def one(self, in_no_hurry: Callable[[], bool]) -> Iterator[None]:
        """Encloses a turn. Waits for it while there is no hurry."""
        until = time.monotonic() + _TURN_SECONDS
        while not (has_turn := self._try()) and self._fd >= 0 and in_no_hurry():
            if time.monotonic() > until:
                self.close()  # somebody holds it for good
            time.sleep(_TURN_LOOK_SECONDS)
        try:
            yield
        finally:
            if has_turn:
                fcntl.flock(self._fd, fcntl.LOCK_UN)  # said, and not left to closing: a forked child has it open too

    def close(self) -> None:
        """Gives the file up."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _try(self) -> bool:
        if self._fd < 0:
            return False
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system that knows no locks
            self.close()
            return False
        return True
