"""Files of a checkpoint, read in blocks by several threads: digested in order as they pass, and put where they belong.

What is in the page cache is read through it, straight into place. What is not comes past it, through blocks of a few
megabytes: to fill the cache on the way costs as much as the reading itself.

Standard library and xxhash.
"""

import ctypes
import errno
import itertools
import mmap
import os
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import xxhash

from holdfast.store import files
from holdfast.store.manifest import File

READERS = 4
BLOCK_BYTES = 4 << 20
_PAGE = 4096  # what direct reads are aligned to: no disk has larger sectors
_MOST_VIEWS = 1000  # of one call; the system takes 1024
# What a file system answers that has no direct reads, or no way to tell what is cached.
_REFUSED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


@dataclass(frozen=True)
class Span:
    """Where a range of a file goes: bytes that may be written, as many as the range has."""

    offset: int
    into: memoryview


@dataclass
class Source:
    """A file that is read whole.

    Args:
        file: What the manifest says of it.
        spans: What of it goes where, in the order of their offsets; the rest is only digested.
    """

    file: File
    spans: Sequence[Span] = ()
    problem: str | None = field(default=None, init=False)
    """What is wrong with it."""


def read(folder: int, sources: Sequence[Source], *, through_cache: bool = False) -> None:
    """Reads files, and leaves in each source what is wrong with it. What arrived of such a one is worth nothing.

    Args:
        folder: The open directory of the checkpoint.
        sources: The files.
        through_cache: Whether all goes through the page cache: somebody else is about to read the same.
    """
    _Reader(folder, sources, through_cache).run()


@dataclass(frozen=True)
class _Unit:
    """One block of a file; the last that is looked at of it closes it."""

    source: Source
    opened: "_Open"
    offset: int
    size: int
    last: bool


class _Open:
    """A file while it is read."""

    def __init__(self, folder: int, source: Source, through_cache: bool) -> None:
        self.hash = xxhash.xxh3_128()
        self.starts = [span.offset for span in source.spans]
        self._closing = ExitStack()
        try:
            self.cached = self._closing.enter_context(files.open_inside(folder, source.file.path))
            size = os.fstat(self.cached).st_size
            if size != source.file.size:
                source.problem = size_problem(source.file, size)
        except OSError as error:
            source.problem = unreadable(source.file, error)
        self.direct = None
        if source.problem is None and not through_cache:
            try:  # the same file, whatever has its name by now
                self.direct = os.open(f"/proc/self/fd/{self.cached}", os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
            except OSError:
                return
            self._closing.callback(os.close, self.direct)

    def close(self) -> None:
        self._closing.close()


class _Reader:
    def __init__(self, folder: int, sources: Sequence[Source], through_cache: bool) -> None:
        self._folder = folder
        self._sources = sources
        self._through_cache = through_cache
        self._units = enumerate(self._cut())
        self._opened: list[_Open] = []
        self._turn = 0
        self._changed = threading.Condition()
        self._error: BaseException | None = None

    def run(self) -> None:
        blocks = sum(source.file.size for source in self._sources) // BLOCK_BYTES
        helpers = [
            threading.Thread(target=self._guarded, name=f"holdfast-load-{number}", daemon=True)
            for number in range(1, min(READERS, blocks))
        ]
        for helper in helpers:
            helper.start()
        self._guarded()
        for helper in helpers:
            helper.join()
        for opened in self._opened:
            opened.close()
        if self._error is not None:
            raise self._error

    def _cut(self) -> Iterator[_Unit]:
        """The blocks of all files. They are not listed: a manifest may claim any size."""
        for source in self._sources:
            opened = _Open(self._folder, source, self._through_cache)
            self._opened.append(opened)
            for offset in range(0, source.file.size or 1, BLOCK_BYTES):
                size = min(BLOCK_BYTES, source.file.size - offset)
                last = source.problem is not None or offset + size == source.file.size
                yield _Unit(source, opened, offset, size, last)
                if last:
                    break

    def _guarded(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that asked for the work
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _work(self) -> None:
        block = memoryview(mmap.mmap(-1, BLOCK_BYTES))
        while True:
            with self._changed:
                number, unit = next(self._units, (0, None))
            if unit is None or self._error is not None:
                return
            views = _read(unit, block)
            with self._changed:
                while self._turn != number:
                    if self._error is not None:
                        return
                    self._changed.wait()
            _digest(unit, views)
            with self._changed:
                self._turn += 1
                self._changed.notify_all()


def _read(unit: _Unit, block: memoryview) -> list[memoryview]:
    """Brings a unit to where it belongs. Gives its bytes, to be digested from there; none where they cannot be had."""
    source, opened = unit.source, unit.opened
    if source.problem is not None:
        return []
    targets = _targets(unit)
    got = 0
    try:
        if opened.direct is not None and not _is_cached(unit):
            got = _directly(unit, opened.direct, block)
        elif len(views := _in_place(targets, unit, block)) <= _MOST_VIEWS:
            _fill(opened.cached, views, unit.offset)
            return views
        _fill(opened.cached, [block[got : unit.size]], unit.offset + got)
    except EOFError:
        source.problem = changed(source.file)
        return []
    except OSError as error:
        source.problem = unreadable(source.file, error)
        return []
    for begin, into in targets:
        ctypes.memmove(_address(into), _address(block) + begin, len(into))
    return [block[: unit.size]]


def _digest(unit: _Unit, views: Sequence[memoryview]) -> None:
    for view in views:
        unit.opened.hash.update(view)
    if unit.last:
        if unit.source.problem is None and unit.opened.hash.hexdigest() != unit.source.file.xxh3_128:
            unit.source.problem = changed(unit.source.file)
        unit.opened.close()


def _targets(unit: _Unit) -> list[tuple[int, memoryview]]:
    """Where the bytes of a unit go: from which of them on, and into what."""
    found = []
    first = max(0, bisect_right(unit.opened.starts, unit.offset) - 1)
    for span in itertools.islice(unit.source.spans, first, None):
        begin = max(span.offset, unit.offset)
        end = min(span.offset + len(span.into), unit.offset + unit.size)
        if begin < end:
            found.append((begin - unit.offset, span.into[begin - span.offset : end - span.offset]))
        elif span.offset >= unit.offset + unit.size:
            break
    return found


def small(folder: int, file: File, limit: int) -> tuple[bytes, str | None]:
    """Reads a small file in one piece. Gives its bytes, and what is wrong with them.

    Args:
        folder: The open directory of the checkpoint.
        file: What the manifest says of it.
        limit: How many bytes are read at most.
    """
    try:
        data = files.read(file.path, limit=limit, folder=folder)
    except OSError as error:
        return b"", unreadable(file, error)
    if len(data) != file.size:
        return data, size_problem(file, len(data))
    return data, None if xxhash.xxh3_128_hexdigest(data) == file.xxh3_128 else changed(file)


def size_problem(file: File, size: int) -> str:
    """What is said of a file of another size."""
    return f"{file.path}: is {size:,} bytes long, was written with {file.size:,}"


def unreadable(file: File, error: OSError) -> str:
    """What is said of a file that cannot be read."""
    if isinstance(error, FileNotFoundError):
        return f"{file.path}: is missing"
    return f"{file.path}: cannot be read: {error.strerror or error}"


def changed(file: File) -> str:
    """What is said of a file of another digest."""
    return f"{file.path}: its bytes have changed since it was written"


def _is_cached(unit: _Unit) -> bool:
    """Whether the system has a unit in memory, as far as its two ends show."""
    try:
        ends = (unit.offset, unit.offset + unit.size - 1)
        return all(os.preadv(unit.opened.cached, [bytearray(1)], end, os.RWF_NOWAIT) for end in ends)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _REFUSED:
            return True
        raise


def _directly(unit: _Unit, fd: int, block: memoryview) -> int:
    """Reads a unit past the cache. Gives how much of it came: the file system may refuse, or give less."""
    got = 0
    aligned = -(-unit.size // _PAGE) * _PAGE
    while got < unit.size and got % _PAGE == 0:
        try:
            count = os.preadv(fd, [block[got:aligned]], unit.offset + got)
        except OSError as error:
            if error.errno in _REFUSED:
                break
            raise
        if not count:
            raise EOFError
        got = min(got + count, unit.size)
    return got


def _in_place(targets: Sequence[tuple[int, memoryview]], unit: _Unit, block: memoryview) -> list[memoryview]:
    """All bytes of a unit in their order, each where it belongs; what belongs nowhere goes to the block."""
    found, at = [], 0
    for begin, into in targets:
        if at < begin:
            found.append(block[at:begin])
        found.append(into)
        at = begin + len(into)
    return [*found, block[at : unit.size]] if at < unit.size else found


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
