"""One range of a file, read to where its bytes belong: through the page cache where it is there, else past it.

Standard library alone.
"""

import ctypes
import errno
import os
from collections.abc import Iterator, Sequence

_PAGE = 4096  # the alignment of direct reads: no disk has larger sectors
_MOST_VIEWS = 1000  # of one call; the system takes 1024
# The answers of a file system that has no direct reads, or no way to tell what is cached.
_REFUSED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)

Target = tuple[int, memoryview]
"""The first byte in the range, and the memory that the bytes go to."""


def read_range(
    cached: int, direct: int | None, offset: int, size: int, targets: Sequence[Target], block: memoryview
) -> list[memoryview]:
    """Reads a range of a file. Returns its bytes in their order, to be digested from where they are.

    Args:
        cached: The open file.
        direct: The same, opened to be read past the page cache; None where that cannot be.
        offset: The beginning of the range. It is a multiple of the page's size, or nothing is read past the cache.
        size: Its length.
        targets: The memory that parts of it go to, in order.
        block: Aligned memory that holds as much.

    Raises:
        EOFError: The file ends before.
        OSError: It cannot be read.
    """
    got = 0
    if direct is not None and not is_cached(cached, offset, size):
        got = _directly(direct, offset, size, block)
    elif len(views := _in_place(targets, size, block)) <= _MOST_VIEWS:
        _fill(cached, views, offset)
        return views
    _fill(cached, [block[got:size]], offset + got)
    for begin, into in targets:
        ctypes.memmove(_address(into), _address(block) + begin, len(into))
    return [block[:size]]


def is_cached(fd: int, offset: int, size: int) -> bool:
    """Tells whether the system has a range in memory, as far as its two ends show."""
    try:
        ends = (offset, offset + size - 1)
        return all(os.preadv(fd, [bytearray(1)], end, os.RWF_NOWAIT) for end in ends)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _REFUSED:
            return True
        raise


def _directly(fd: int, offset: int, size: int, block: memoryview) -> int:
    """Reads a range past the cache. Returns the number of bytes that came: the file system may refuse, or give less."""
    got = 0
    aligned = -(-size // _PAGE) * _PAGE
    while got < size and got % _PAGE == 0:
        try:
            count = os.preadv(fd, [block[got:aligned]], offset + got)
        except OSError as error:
            if error.errno in _REFUSED:
                break
            raise
        if not count:
            raise EOFError
        got = min(got + count, size)
    return got


def _in_place(targets: Sequence[Target], size: int, block: memoryview) -> list[memoryview]:
    """Returns views of all bytes of a range in order: of where they belong, or of the block."""
    views, at = [], 0
    for begin, into in targets:
        if at < begin:
            views.append(block[at:begin])
        views.append(into)
        at = begin + len(into)
    return [*views, block[at:size]] if at < size else views


def _fill(fd: int, views: Sequence[memoryview], offset: int) -> None:
    """Reads until all views are full. The system takes a short read for no error, so this loops."""
    left = [view for view in views if len(view)]
    while left:
        count = os.preadv(fd, left, offset)
        if not count:
            raise EOFError
        offset += count
        left = list(_after(left, count))


def _after(views: Sequence[memoryview], count: int) -> Iterator[memoryview]:
    for view in views:
        if count < len(view):
            yield view[count:]
        count = max(0, count - len(view))


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))
