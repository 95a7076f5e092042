"""As many bytes as a state has, written or copied by nothing but that: what no saver can beat."""

import mmap
import os
import threading
import time
from pathlib import Path

import torch

from benchmarks.measure import sync

_BLOCK = 8 << 20
_WRITERS = 2
# More than a processor's caches hold.
_COPIED = 256 << 20


class RawWrite:
    """Writes the same resident block again and again.

    Args:
        folder: Where.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "raw"
        self._block = mmap.mmap(-1, _BLOCK)
        self._block.write(os.urandom(_BLOCK))

    def seconds(self, size: int) -> float:
        """Writes a file of so many bytes, and deletes it. Gives the time until file and directory are on disk."""
        begun = time.perf_counter()
        descriptor = self._open()
        os.posix_fallocate(descriptor, 0, size)
        writers = [threading.Thread(target=self._write, args=(descriptor, k, size)) for k in range(_WRITERS)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        os.fdatasync(descriptor)
        os.close(descriptor)
        sync(self._path)
        took = time.perf_counter() - begun
        self._path.unlink()
        return took

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            return os.open(self._path, flags | os.O_DIRECT)
        except OSError:  # tmpfs and some network mounts
            return os.open(self._path, flags)

    def _write(self, descriptor: int, which: int, size: int) -> None:
        whole = memoryview(self._block)
        for offset in range(which * _BLOCK, size, _WRITERS * _BLOCK):
            # The last block is cut to pages: what is missing of it is below anything that can be measured.
            length = min(_BLOCK, (size - offset) // mmap.PAGESIZE * mmap.PAGESIZE)
            written = 0
            while written < length:
                written += os.pwrite(descriptor, whole[written:length], offset + written)


def copy_seconds(size: int) -> float:
    """What copying so many bytes takes with all cores, from memory to memory that has been touched before."""
    source, target = (torch.zeros(_COPIED, dtype=torch.uint8) + 1 for _ in range(2))
    begun = time.perf_counter()
    target.copy_(source)
    return (time.perf_counter() - begun) * size / _COPIED
