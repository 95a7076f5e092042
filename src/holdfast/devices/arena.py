"""The memory of the host that snapshots are copied into: a range of addresses, made piece by piece and never moved.

Touching free memory is the hidden cost of a snapshot: fresh pages take copies at a tenth of the speed of resident ones
(measured: 1.4 against 12.8 GB/s, and 0.3 where a virtual machine has given them back). So pages are made before they
are used: huge ones, which only private memory gets everywhere, and by calls that leave the interpreter free.

A forked child, a data-loading worker, gets none of it: with 1 GiB of locked pages its fork would take 607 ms and
another 1.1 GiB; so it takes 0.6 ms (measured, once). What is left of these objects there touches nothing.
"""

import ctypes
import errno
import mmap
import os
import resource
import weakref
from functools import partial

import torch

from holdfast.devices.device import Device

HUGE_PAGE = 2 << 20
_MADV_POPULATE_WRITE = 23  # of Linux 5.14; `mmap` has no name for these
_MAP_NORESERVE = 0x4000
_PROT_NONE = 0
# A call keeps others from changing the process's memory map, and training that asks for memory waits meanwhile
# (measured: 8 ms at worst, and 19 with 64 MiB at once).
_POPULATED_AT_ONCE = 4 << 20
# Where addresses are limited (`ulimit -v`), training needs them too, and much of an arena may never be made.
_RESERVED_AT_ONCE = 16 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_FAILED = ctypes.c_void_p(-1).value


class Block:
    """One piece of resident memory, at a page's beginning and within one registration."""

    def __init__(self, address: int, size: int, keep: object) -> None:
        memory = (ctypes.c_char * size).from_address(address)
        memory.range = keep  # type: ignore[attr-defined]  # for as long as a view of it is in use
        self.address = address
        self.view = memoryview(memory).cast("B")
        self.tensor = torch.frombuffer(memory, dtype=torch.uint8)


class Arena:
    """Makes blocks, one behind the other. Used by one thread at a time.

    Args:
        limit_bytes: The most bytes that it may come to. That much is reserved, which takes addresses and no memory;
            where this process may have but so many addresses they are reserved little by little.
        device: The accelerators whose driver is to lock the pages; None where there are none.
    """

    def __init__(self, limit_bytes: int, device: Device | None = None) -> None:
        are_limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
        self._range = _reserve(min(limit_bytes, _RESERVED_AT_ONCE) if are_limited else limit_bytes)
        self._used = 0
        self.limit_bytes = limit_bytes if are_limited else self._range.size
        """The most bytes that it may come to: less than was asked for where there are not as many addresses."""
        self.device = device
        self.bytes = 0
        """The bytes of all blocks."""
        self.locked_bytes = 0
        """The bytes of those that the driver has locked."""
        self.refusal = ""
        """The driver's reason to lock no more; empty if there was none."""

    def make(self, size: int) -> Block:
        """Makes a block resident.

        Args:
            size: Its bytes, a multiple of a page.

        Raises:
            OSError: There is no such memory, or it is more than the limit.
        """
        if self.bytes + size > self.limit_bytes:
            raise OSError(errno.ENOMEM, f"{os.strerror(errno.ENOMEM)}: {self.limit_bytes:,} bytes are the limit")
        if self._used + size > self._range.size:
            self._range, self._used = _Range(max(size, _RESERVED_AT_ONCE)), 0
        address = self._range.address + self._used
        _check(_libc.mprotect(address, size, mmap.PROT_READ | mmap.PROT_WRITE))
        for begin in range(0, size, _POPULATED_AT_ONCE):
            _populate(address + begin, min(_POPULATED_AT_ONCE, size - begin))
        self.bytes += size
        self._used += size
        return Block(address, size, self._range)

    def lock(self, block: Block) -> bool:
        """Has the driver lock the pages of a block. After a refusal it is not asked again.

        Returns:
            True if they are locked.
        """
        if self.device is None or self.refusal:
            return False
        size = len(block.view)
        self.refusal = self.device.register(block.address, size)
        if not self.refusal:
            self.locked_bytes += size
            self._range.keep()
        return not self.refusal

    def unlock(self, block: Block) -> None:
        """Has the driver unlock a block that it has locked. No copy to or from there is under way."""
        assert self.device is not None
        self.device.unregister(block.address)
        self.locked_bytes -= len(block.view)
        if not self.locked_bytes:
            self._range.let_go()

    def unmake(self, block: Block) -> None:
        """Gives the memory of the block that was made last back to the machine. Nobody uses it, or will."""
        self.bytes -= len(block.view)
        self._used -= len(block.view)
        _libc.madvise(block.address, len(block.view), mmap.MADV_DONTNEED)


class _Range:
    """Reserved addresses, given back when nothing there is in use any more.

    Args:
        size: The bytes that can be used, from the beginning of a huge page on.

    Raises:
        OSError: There are not so many addresses.
    """

    def __init__(self, size: int) -> None:
        whole = size + HUGE_PAGE
        # What may not be accessed counts for nothing, also where the kernel promises no more memory than there is.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        start = _libc.mmap(None, whole, _PROT_NONE, flags, -1, 0)
        if start == _FAILED:
            raise _error()
        for advice in (mmap.MADV_HUGEPAGE, mmap.MADV_DONTFORK, mmap.MADV_DONTDUMP):
            _libc.madvise(start, whole, advice)  # a kernel without huge pages gives small ones
        self.address = -(-start // HUGE_PAGE) * HUGE_PAGE
        self.size = size
        self._unmap = partial(_unmap, start, whole, os.getpid())
        self.let_go()

    def let_go(self) -> None:
        """Has the addresses given back when nobody uses them any more."""
        self._end = weakref.finalize(self, self._unmap)
        self._end.atexit = False

    def keep(self) -> None:
        """Keeps the addresses: for a driver that has locked pages there, later ones would be those pages."""
        self._end.detach()


def _unmap(start: int, size: int, owner: int) -> None:
    if os.getpid() == owner:  # in a forked child the addresses are free, or somebody else's
        _libc.munmap(start, size)


def _reserve(size: int) -> _Range:
    """Reserves addresses, fewer where there are not so many."""
    while True:
        try:
            return _Range(size)
        except OSError:
            size //= 2
            if size < HUGE_PAGE:
                raise


def _populate(address: int, size: int) -> None:
    """Makes pages resident."""
    while _libc.madvise(address, size, _MADV_POPULATE_WRITE):
        error = ctypes.get_errno()
        if error == errno.EINVAL:  # an older kernel
            ctypes.memset(address, 0, size)
            return
        if error not in (errno.EINTR, errno.EAGAIN):
            raise _error()


def _check(result: int) -> None:
    if result:
        raise _error()


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
