"""As many bytes as a state has, written, read or copied by nothing but that: what nobody can beat."""

import mmap
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.measure import sync

_BLOCK = 8 << 20
_WRITERS = 2
_READERS = 4
# More than a processor's caches hold.
_COPIED = 256 << 20


class RawFile:
    """A file that is written from the same resident block again and again, and read into others.

    Args:
        folder: Where.
        size: How many bytes. What the last page lacks is below anything that can be measured.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self._path = folder / "raw"
        self._size = size // mmap.PAGESIZE * mmap.PAGESIZE
        self._blocks = [mmap.mmap(-1, _BLOCK) for _ in range(_READERS)]
        for block in self._blocks:
            block.write(os.urandom(_BLOCK))

    def seconds(self) -> tuple[float, float]:
        """Writes the file, reads it, and deletes it.

        Returns:
            The time until file and directory are on disk, and that of reading it from there.
        """
        begun = time.perf_counter()
        descriptor = self._open(os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.posix_fallocate(descriptor, 0, self._size)
        _together(_WRITERS, lambda which: self._transfer(os.pwritev, descriptor, which, _WRITERS))
        os.fdatasync(descriptor)
        os.close(descriptor)
        sync(self._path)
        written = time.perf_counter() - begun
        descriptor = self._open(os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        begun = time.perf_counter()
        _together(_READERS, lambda which: self._transfer(os.preadv, descriptor, which, _READERS))
        read = time.perf_counter() - begun
        os.close(descriptor)
        self._path.unlink()
        return written, read

    def _open(self, flags: int) -> int:
        try:
            return os.open(self._path, flags | os.O_DIRECT)
        except OSError:  # tmpfs and some network mounts
            return os.open(self._path, flags)

    def _transfer(self, call: "_Call", descriptor: int, which: int, of: int) -> None:
        block = memoryview(self._blocks[which])
        for offset in range(which * _BLOCK, self._size, of * _BLOCK):
            length, done = min(_BLOCK, self._size - offset), 0
            while done < length:
                done += call(descriptor, [block[done:length]], offset + done)


_Call = Callable[[int, Sequence[memoryview], int], int]


def _together(count: int, work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(which,)) for which in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def copy_seconds(size: int) -> float:
    """What copying so many bytes takes with all cores, from memory to memory that has been touched before."""
    source, target = (torch.zeros(_COPIED, dtype=torch.uint8) + 1 for _ in range(2))
    begun = time.perf_counter()
    target.copy_(source)
    return (time.perf_counter() - begun) * size / _COPIED
