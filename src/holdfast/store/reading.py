"""Files of a checkpoint, read in blocks by several threads, each block digested as it passes and put where it belongs.

What is in the page cache is read through it, straight into place. What is not comes past it, through blocks of a few
megabytes: to fill the cache on the way costs as much as the reading itself. What belongs into memory that is not the
host's goes through such blocks too, and on from there when its digest is proved.

Standard library, and the digest's.
"""

import itertools
import mmap
import os
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol

from holdfast.store import digest, files
from holdfast.store.digest import BLOCK_BYTES
from holdfast.store.folder import Folder
from holdfast.store.manifest import File
from holdfast.store.range_reading import Target, read_range

READERS = 4


class Elsewhere(Protocol):
    """Bytes that are not in the host's memory: they can be counted and cut, and `Uploads` writes them."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: slice, /) -> "Elsewhere": ...


class Uploads(Protocol):
    """The way to bytes elsewhere: through blocks of the host, which are copied from while others are read into.

    Any thread may call it.
    """

    def take(self) -> memoryview:
        """Returns a block of `BLOCK_BYTES`, aligned to pages. Waits until nothing is copied from it any more."""

    def send(self, block: memoryview, parts: Sequence[tuple[int, Elsewhere]]) -> None:
        """Takes a block back, and begins to copy from it.

        Args:
            block: The block.
            parts: The first byte in the block of each part, and where the part goes.
        """


@dataclass(frozen=True)
class Span:
    """A range of a file, and the memory that it goes to, of as many bytes."""

    offset: int
    into: memoryview | Elsewhere


@dataclass
class Source:
    """A file that is read, whole or as far as some of it is wanted.

    Args:
        file: The manifest's entry for it.
        spans: The ranges that are wanted, in the order of their offsets. The blocks that hold them are read, and
            digested whole; None: all are, and nothing goes anywhere.
    """

    file: File
    spans: Sequence[Span] | None = None
    problem: str | None = field(default=None, init=False)
    """The problem of the file, once it was read; None where there is none."""


def read(
    folder: Folder, sources: Sequence[Source], *, through_cache: bool = False, uploads: Uploads | None = None
) -> None:
    """Reads files, and leaves in each source its problem, if any. What arrived of such a one is worth nothing.

    Args:
        folder: The open directory of the checkpoint.
        sources: The files.
        through_cache: Has all go through the page cache: somebody else is about to read the same.
        uploads: The way to what is elsewhere; needed where anything is. Its copies may be under way afterwards.
    """
    _Reader(folder, sources, through_cache, uploads).run()


class _Open:
    """A file while it is read, by any number of threads: the last to leave it closes it."""

    def __init__(self, folder: Folder, source: Source, through_cache: bool) -> None:
        self.source = source
        self.starts = [span.offset for span in source.spans or ()]
        self.users = 1
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

    def leave(self) -> None:
        self.users -= 1
        if not self.users:
            self.close()

    def close(self) -> None:
        self._closing.close()


@dataclass(frozen=True)
class _Unit:
    """One block of a file, and the memory that parts of it go to."""

    opened: _Open
    offset: int
    size: int
    targets: Sequence[Target]
    elsewhere: Sequence[tuple[int, Elsewhere]]


class _Reader:
    def __init__(self, folder: Folder, sources: Sequence[Source], through_cache: bool, uploads: Uploads | None) -> None:
        self._folder = folder
        self._sources = sources
        self._through_cache = through_cache
        self._uploads = uploads
        self._units = self._cut()
        self._opened: list[_Open] = []
        self._lock = threading.Lock()
        self._error: BaseException | None = None

    def run(self) -> None:
        blocks = sum(source.file.size for source in self._sources) // BLOCK_BYTES
        others = [
            threading.Thread(target=self._guarded, name=f"holdfast-load-{number}", daemon=True)
            for number in range(1, min(READERS, blocks))
        ]
        for other in others:
            other.start()
        self._guarded()
        for other in others:
            other.join()
        for opened in self._opened:
            opened.close()
        if self._error is not None:
            raise self._error

    def _cut(self) -> Iterator[_Unit]:
        """Yields the blocks of all files. They are not listed: a manifest may claim any size."""
        for source in self._sources:
            opened = _Open(self._folder, source, self._through_cache)
            self._opened.append(opened)
            for offset in range(0, source.file.size or 1, BLOCK_BYTES):
                if source.problem is not None:
                    break
                size = min(BLOCK_BYTES, source.file.size - offset)
                targets, elsewhere = _targets(opened, offset, size)
                if targets or elsewhere or source.spans is None:
                    opened.users += 1
                    yield _Unit(opened, offset, size, targets, elsewhere)
            opened.leave()

    def _guarded(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that asked for the work
            self._error = self._error or error

    def _work(self) -> None:
        uploads = self._uploads
        block = memoryview(mmap.mmap(-1, BLOCK_BYTES)) if uploads is None else memoryview(b"")
        while self._error is None:
            with self._lock:
                unit = next(self._units, None)
            if unit is None:
                return
            if uploads is not None:
                block = uploads.take()
            _read(unit, block)
            if uploads is not None:  # nothing of a file that is known to be damaged goes on
                uploads.send(block, unit.elsewhere if unit.opened.source.problem is None else ())
            with self._lock:
                unit.opened.leave()


def _read(unit: _Unit, block: memoryview) -> None:
    """Reads a unit to where it belongs, and digests its bytes from there."""
    opened, source = unit.opened, unit.opened.source
    block_digest = digest.new()
    try:
        for view in read_range(opened.cached, opened.direct, unit.offset, unit.size, unit.targets, block):
            block_digest.update(view)
    except EOFError:
        source.problem = changed(source.file)
    except OSError as error:
        source.problem = unreadable(source.file, error)
    else:
        if block_digest.hexdigest() != digest.at(source.file.digests, unit.offset):
            source.problem = changed(source.file)


def _targets(opened: _Open, offset: int, size: int) -> tuple[list[Target], list[tuple[int, Elsewhere]]]:
    """Returns the memory that parts of a block go to, the host's and other, each with the first byte in the block."""
    targets: list[Target] = []
    elsewhere: list[tuple[int, Elsewhere]] = []
    first = max(0, bisect_right(opened.starts, offset) - 1)
    for span in itertools.islice(opened.source.spans or (), first, None):
        begin = max(span.offset, offset)
        end = min(span.offset + len(span.into), offset + size)
        if begin < end:
            into = span.into[begin - span.offset : end - span.offset]
            if isinstance(into, memoryview):
                targets.append((begin - offset, into))
            else:
                elsewhere.append((begin - offset, into))
        elif span.offset >= offset + size:
            break
    return targets, elsewhere


def read_small(folder: Folder, file: File, limit: int) -> tuple[bytes, str | None]:
    """Reads a small file in one piece. Returns its bytes, and their problem, if any.

    Args:
        folder: The open directory of the checkpoint.
        file: The manifest's entry for it.
        limit: The most bytes that are read.
    """
    try:
        with files.open_inside(folder, file.path) as fd:
            data = files.read_open(fd, limit, file.path)
    except OSError as error:
        return b"", unreadable(file, error)
    if len(data) != file.size:
        return data, size_problem(file, len(data))
    return data, None if digest.of_bytes(data) == file.digests else changed(file)


def size_problem(file: File, size: int) -> str:
    """Returns the problem of a file of another size."""
    return f"{file.path}: is {size:,} bytes long, was written with {file.size:,}"


def unreadable(file: File, error: OSError) -> str:
    """Returns the problem of a file that cannot be read."""
    if isinstance(error, FileNotFoundError):
        return f"{file.path}: is missing"
    return f"{file.path}: cannot be read: {error.strerror or error}"


def changed(file: File) -> str:
    """Returns the problem of a file of another digest."""
    return f"{file.path}: its bytes have changed since it was written"
