"""A file that is written in blocks, in any order, by several threads: past the page cache where that is possible.

Writing through the cache touches as much fresh memory as the file is long, which takes longer than the disk does.
"""

import ctypes
import errno
import mmap
import os
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from holdfast.store import files
from holdfast.store.digest import Digester

# The alignment of direct writes, in memory and in the file: no disk has larger sectors.
_PAGE = 4096
# Below this, a second descriptor costs more than the cache does.
_WORTH_BYTES = 1 << 20
# The answers of a file system that has no direct writes, or not at that place or size.
_REFUSED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
_DIRECT = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | getattr(os, "O_DIRECT", 0)
_START_WRITING = 2  # SYNC_FILE_RANGE_WRITE

_libc = ctypes.CDLL(None, use_errno=True)


def takes_direct_writes(directory: Path) -> bool:
    """Tells whether the file system of a directory takes writes past the page cache. Makes a file there to find out.

    Raises:
        OSError: Nothing can be written there at all.
    """
    if not hasattr(os, "O_DIRECT"):
        return False
    probe = directory / f"probe-{uuid.uuid4().hex}"  # other ranks look there too
    os.close(files.open_new(probe))
    try:
        fd = os.open(probe, _DIRECT)
        try:
            with mmap.mmap(-1, _PAGE) as page:
                return os.pwrite(fd, page, 0) == _PAGE
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        return False
    finally:
        with suppress(OSError):
            probe.unlink()


class Sink(Protocol):
    """An open file to stream into."""

    def digest(self, parts: Sequence[memoryview], offset: int) -> list[int]:
        """Takes the digest of a block that is to be written at `offset`; returns that of all until each part's end."""

    def write(self, data: memoryview, offset: int) -> None:
        """Writes all of `data` at `offset`."""

    def sync(self) -> None:
        """Begins to make it durable: all of it is written."""


class BlockFile:
    """A new file of a checkpoint, open for writing until the context ends. Its name is synced with its attempt.

    Args:
        path: Its path; nothing may have that name yet.
        size: The number of bytes that it will have. The room for them is taken now.
        direct: True where the file system takes direct writes.

    Raises:
        OSError: There is no room.
    """

    def __init__(self, path: Path, size: int = 0, *, direct: bool = False) -> None:
        self._digester = Digester()
        self._fd = files.open_new(path)
        self._direct: int | None = None
        self._refused = False
        try:
            if size >= _WORTH_BYTES:
                _take_room(self._fd, size, path)
                if direct:
                    self._direct = os.open(path, _DIRECT)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> "BlockFile":
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._fd)
        if self._direct is not None:
            os.close(self._direct)

    def digest(self, parts: Iterable[memoryview], offset: int) -> list[int]:
        """Takes the digest of a block that is to be written at `offset`, as `Digester.update` does."""
        return self._digester.update(parts, offset)

    def digests(self) -> str:
        """Returns the digests of all that has come to `digest`."""
        return self._digester.digests()

    def write(self, data: memoryview, offset: int) -> None:
        """Writes all of `data` at `offset`. The system takes a short write for no error, so this loops."""
        while data:
            written = self._past_the_cache(data, offset) or self._through_the_cache(data, offset)
            data = data[written:]
            offset += written

    def sync(self) -> None:
        """Makes what was written durable. Files that are synced beside each other take little longer than one."""
        os.fsync(self._fd)

    def _past_the_cache(self, data: memoryview, offset: int) -> int:
        """Writes the whole pages that `data` begins with; 0 where that cannot be done."""
        whole = len(data) - len(data) % _PAGE
        if self._direct is None or self._refused or not whole or offset % _PAGE:
            return 0
        try:
            return os.pwrite(self._direct, data[:whole], offset)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            self._refused = True
            return 0

    def _through_the_cache(self, data: memoryview, offset: int) -> int:
        written = os.pwrite(self._fd, data, offset)
        if not written:
            raise OSError(errno.EIO, "the file system takes nothing of a write and gives no reason")
        start_writing(self._fd, offset, written)
        return written


def start_writing(fd: int, offset: int, size: int) -> None:
    """Has the disk begin with a range that was just written, if that can be asked for. Else it idles until the sync."""
    if size >= _WORTH_BYTES and hasattr(_libc, "sync_file_range"):
        _libc.sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(size), _START_WRITING)


def _take_room(fd: int, size: int, path: Path) -> None:
    """Reserves a file's blocks: in one piece, and a full disk is met before anything is written.

    Not by `os.posix_fallocate`: where the file system cannot reserve, that writes into every block.
    """
    if not hasattr(_libc, "fallocate64"):
        return
    while _libc.fallocate64(fd, 0, ctypes.c_int64(0), ctypes.c_int64(size)):
        number = ctypes.get_errno()
        if number in _REFUSED:
            return
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number), str(path))
