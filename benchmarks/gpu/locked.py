"""Memory of the host that a card copies to and from, made piece by piece with plain calls: what each of them costs."""

import ctypes
import mmap
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_HUGE_PAGE = 2 << 20
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, which Python's mmap module has not
_LIBC = ctypes.CDLL(None, use_errno=True)
# A driver that has locked memory refuses whatever gets the same addresses later.
_made: list[mmap.mmap] = []


class HostMemory:
    """Private anonymous memory in huge pages. It lives until the process ends, as registered memory should.

    Args:
        size: Bytes, a multiple of a huge page's.
        device: `cuda`, or `cpu`, for which there is nothing to register with.
        forked: Whether children get it too.
    """

    def __init__(self, size: int, device: str, *, forked: bool = False) -> None:
        memory = mmap.mmap(-1, size + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        _made.append(memory)
        memory.madvise(mmap.MADV_HUGEPAGE)
        if not forked:
            memory.madvise(mmap.MADV_DONTFORK)
        whole = torch.frombuffer(memory, dtype=torch.uint8)
        self._skipped = -whole.data_ptr() % _HUGE_PAGE
        self.tensor = whole[self._skipped : self._skipped + size]
        self.size = size
        self._device = device

    def populate(self, offset: int, size: int) -> float:
        """Touches a range, without the interpreter, and returns the seconds."""
        begun = time.perf_counter()
        address = ctypes.c_void_p(self.tensor.data_ptr() + offset)
        if _LIBC.madvise(address, ctypes.c_size_t(size), _POPULATE_WRITE):  # a kernel before 5.14
            self.tensor[offset : offset + size].zero_()
        return time.perf_counter() - begun

    def register(self, offset: int, size: int) -> float:
        """Has the driver lock a range, and returns the seconds.

        Raises:
            OSError: It would not.
        """
        if self._device == "cpu":
            return 0.0
        from holdfast.devices.cuda import Cuda

        begun = time.perf_counter()
        refusal = Cuda().register(self.tensor.data_ptr() + offset, size)
        seconds = time.perf_counter() - begun
        if refusal:
            raise OSError(refusal)
        return seconds

    def make(self, piece: int, pause: float = 0.0) -> tuple[float, float]:
        """Populates and registers all of it.

        Args:
            piece: Bytes at a time.
            pause: Rests so many times as long as the call to register took.

        Returns:
            The seconds of populating and of registering in all.
        """
        populating = registering = 0.0
        for offset in range(0, self.size, piece):
            length = min(piece, self.size - offset)
            populating += self.populate(offset, length)
            taken = self.register(offset, length)
            registering += taken
            time.sleep(taken * pause)
        return populating, registering


@contextmanager
def memlock_limit(size: int) -> Iterator[None]:
    """Lowers `ulimit -l` in between."""
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, before)
