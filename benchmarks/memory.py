"""How much memory a saver takes, and how free memory is made what it is on a machine that has been up for a while."""

import contextlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

_EVERY_SECONDS = 0.01
# Left free, so that what follows has something to take from; and the most that is worth filling.
_LEFT_FREE = 2 << 30
_MOST = 32 << 30
_PIECE = 64 << 20
# Pages that the host has to find keep a core waiting.
_FILLERS = 2


class Peak:
    """The most memory that this process and its children held in between, above what they held at the beginning.

    Private pages of each, and shared memory once. Pages of files do not count: they can be had back.
    """

    extra = 0

    def __enter__(self) -> "Peak":
        self._before = held()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._ended.wait(_EVERY_SECONDS):
            self._look()

    def _look(self) -> None:
        self.extra = max(self.extra, held() - self._before)


def held() -> int:
    """Returns the bytes that this process and its children hold: private pages of each, and all shared memory once."""
    processes = [str(os.getpid()), *_children("self")]
    return _field(Path("/proc/meminfo"), "Shmem") + sum(
        _field(Path(f"/proc/{process}/status"), "RssAnon") for process in processes
    )


def high_water(*, reset: bool = False) -> int:
    """Returns the most that this process had resident at a time since the last reset. Nobody needs to watch for it."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return _field(Path("/proc/self/status"), "VmHWM")


def resident() -> int:
    """Returns the bytes that this process has resident now."""
    return _field(Path("/proc/self/status"), "VmRSS")


def available() -> int:
    """Returns the bytes that the machine could still give."""
    return _field(Path("/proc/meminfo"), "MemAvailable")


class Ballast:
    """Keeps free memory filled with clean pages of a file that is read and never written.

    A virtual machine may hand pages that are free back to its host; to touch one again then costs ten times as much.
    That, and not the savers, would be measured: it comes and goes with what ran a second before.

    Args:
        folder: Where the file is; it takes no space.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "ballast"
        self._offset = 0

    def __enter__(self) -> "Ballast":
        with self._path.open("wb") as file:
            file.truncate(_MOST)
        return self

    def __exit__(self, *error: object) -> None:
        self._path.unlink()

    def fill(self) -> None:
        """Fills what has become free."""
        with (
            self._path.open("rb") as file,
            Path(os.devnull).open("wb") as nowhere,
            ThreadPoolExecutor(_FILLERS) as fillers,
        ):

            def make(offset: int) -> None:
                # Not read: that would copy what nobody looks at.
                os.sendfile(nowhere.fileno(), file.fileno(), offset, _PIECE)

            left = _MOST // _PIECE
            while (pieces := min(left, (_field(Path("/proc/meminfo"), "MemFree") - _LEFT_FREE) // _PIECE)) > 0:
                offsets = [(self._offset + number * _PIECE) % _MOST for number in range(pieces)]
                list(fillers.map(make, offsets))
                self._offset = (offsets[-1] + _PIECE) % _MOST
                left -= pieces


@contextlib.contextmanager
def ballast(folder: Path, *, wanted: bool) -> Iterator[Ballast | None]:
    """A `Ballast`, filled; None where none is wanted."""
    if not wanted:
        yield None
        return
    with Ballast(folder) as filled:
        filled.fill()
        yield filled


def _children(process: str) -> Iterator[str]:
    # Not psutil's: it reads the whole process table, which takes longer than what is watched.
    for thread in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in thread.read_text().split():
                yield child
                yield from _children(child)


def _field(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0  # a process that has ended since
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))
