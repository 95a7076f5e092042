"""One save and one load of a saver, with everything that is asked of them."""

import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.peers.saver import Saver
from benchmarks.states import State

Seconds = dict[str, float]


def save_once(saver: Saver, number: int) -> tuple[Path, Seconds]:
    """Saves once, with an update waiting to come right after.

    Returns:
        What was written, and seconds since the call: until it returned (`stall`), until the tensors may be changed
        (`safe`), and until files and directories are on disk (`durable`).
    """
    saver.prepare()
    saver.state.settle()
    begun = time.perf_counter()
    path = saver.save(number)
    stall = time.perf_counter() - begun
    saver.gate()
    saver.state.settle()
    safe = time.perf_counter() - begun
    finish(saver, path)
    return path, {"stall": stall, "safe": safe, "durable": time.perf_counter() - begun}


def finish(saver: Saver, path: Path) -> None:
    """Returns when what was begun is on disk, whatever the saver itself leaves to the operating system."""
    saver.wait()
    if not saver.syncs:
        sync(path)


def sync(path: Path) -> None:
    """Takes a file, or a directory with all that is in it, to the disk, and the name of it too."""
    for found in (*_all(path), path.parent):
        descriptor = os.open(found, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def bytes_on_disk(path: Path) -> int:
    """What a file or a directory takes."""
    return sum(512 * found.lstat().st_blocks for found in _all(path))


def load_once(saver: Saver, path: Path) -> float:
    """Seconds that a load takes."""
    begun = time.perf_counter()
    saver.load(path)
    saver.state.settle()
    seconds = time.perf_counter() - begun
    saver.after_load()
    return seconds


def load_twice(state: State, load: Callable[[Path], float], path: Path, expected: Mapping[str, str]) -> Seconds:
    """Loads from the disk, and from the page cache. What comes back must be what was there.

    Args:
        state: Where it is loaded to. It is set to zero before.
        load: Does it, and gives the seconds that it took.
        path: What is read.
        expected: The state's digests before.

    Returns:
        Seconds: `cold` and `warm`.
    """
    seconds = {}
    for name, prepare in CACHES.items():
        prepare(path)
        state.clear()
        seconds[name] = load(path)
        if (now := state.digests()) != expected:
            wrong = [key for key in expected if now.get(key) != expected[key]]
            raise AssertionError(f"{path} came back otherwise: {len(wrong)} of {len(expected)} tensors, {wrong[:3]}")
    return seconds


def remove(path: Path) -> None:
    """Deletes a file or a directory."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _all(path: Path) -> list[Path]:
    return [*sorted(path.rglob("*"), reverse=True), path] if path.is_dir() else [path]


def _files(path: Path) -> list[Path]:
    return [found for found in _all(path) if found.is_file()]


def _drop_from_cache(path: Path) -> None:
    for found in _files(path):
        with found.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read(path: Path) -> None:
    buffer = bytearray(8 << 20)
    for found in _files(path):
        with found.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


CACHES: Mapping[str, Callable[[Path], None]] = {"cold": _drop_from_cache, "warm": _read}
"""What makes that of a checkpoint's files in the page cache, by column."""
