import ctypes
import errno
import fcntl
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from holdfast.capture.staging import Pool
from holdfast.devices.arena import Arena
from holdfast.store import blocks
from holdfast.store.blocks import BlockFile, takes_direct_writes
from holdfast.store.digest import BLOCK_BYTES

LARGE = 3 << 20
# Sizes around what one descriptor is worth, and with every kind of end.
SIZES = (0, 1, LARGE - 1, LARGE, LARGE + 1, LARGE + 511, LARGE + 4096, LARGE + 4097)


@pytest.fixture(scope="module")
def memory() -> memoryview:
    """Memory that begins at a page, as snapshots have it."""
    block = Pool(Arena(64 * BLOCK_BYTES))._free[0]
    block.view[:] = random.Random(1).randbytes(BLOCK_BYTES)
    return block.view


@contextmanager
def refusing(monkeypatch: pytest.MonkeyPatch, number: int, *, times: int = 1 << 30) -> Iterator[list[int]]:
    """A file system that answers direct writes with an error, so many times."""
    write, refused = os.pwrite, list[int]()

    def pwrite(fd: int, data: Any, offset: int) -> int:
        if fcntl_flags(fd) & os.O_DIRECT and len(refused) < times:
            refused.append(offset)
            raise OSError(number, os.strerror(number))
        return write(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        yield refused


def fcntl_flags(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_GETFL)


def written(path: Path, memory: memoryview, size: int, *, direct: bool, block: int = 1 << 20) -> bytes:
    with BlockFile(path, size, direct=direct) as file, ThreadPoolExecutor(2) as two:
        places = list(pairwise([*range(0, size, block), size])) if size else []
        list(two.map(lambda place: file.write(memory[place[0] : place[1]], place[0]), reversed(places)))
    return path.read_bytes()


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_a_file_of_any_size_holds_what_was_written(tmp_path: Path, memory: memoryview, size: int, direct: bool) -> None:
    assert written(tmp_path / "file", memory, size, direct=direct) == memory[:size]


def test_what_lies_at_no_page_goes_through_the_cache(tmp_path: Path, memory: memoryview) -> None:
    with BlockFile(tmp_path / "file", LARGE, direct=True) as file:
        file.write(memory[1:LARGE], 1)
        file.write(memory[:1], 0)
    assert (tmp_path / "file").read_bytes() == memory[:LARGE]


def test_where_direct_writes_work_all_but_the_end_is_written_so(
    tmp_path: Path, memory: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not takes_direct_writes(tmp_path):
        pytest.skip(f"the file system of {tmp_path} takes no direct writes")
    with refusing(monkeypatch, errno.EIO) as asked, pytest.raises(OSError, match="Input/output error"):
        written(tmp_path / "file", memory, LARGE + 7, direct=True)
    assert asked
    assert list(tmp_path.iterdir()) == [tmp_path / "file"], "the probe is gone"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_refuses_direct_writes_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with refusing(monkeypatch, number):
        assert not takes_direct_writes(tmp_path)
    assert not list(tmp_path.iterdir())


def test_one_that_refuses_to_open_a_file_so_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return open_(path, flags, *args, **kwargs)

    open_ = os.open
    monkeypatch.setattr(os, "open", refuse)
    assert not takes_direct_writes(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_probe_that_meets_a_broken_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refusing(monkeypatch, errno.EIO), pytest.raises(OSError, match="Input/output error"):
        takes_direct_writes(tmp_path)
    assert not list(tmp_path.iterdir())


def test_one_that_refuses_in_the_middle_gets_the_rest_through_the_cache(
    tmp_path: Path, memory: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refusing(monkeypatch, errno.EINVAL, times=1):
        assert written(tmp_path / "file", memory, LARGE + 5, direct=True) == memory[: LARGE + 5]


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("most", [4096 * 3, 12345])
def test_short_writes_are_gone_on_with(
    tmp_path: Path, memory: memoryview, monkeypatch: pytest.MonkeyPatch, direct: bool, most: int
) -> None:
    write = os.pwrite

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        # A direct write ends at a sector.
        return write(fd, data[: most - most % 512 if fcntl_flags(fd) & os.O_DIRECT else most], offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    assert written(tmp_path / "file", memory, LARGE + 3, direct=direct) == memory[: LARGE + 3]


def test_a_write_that_takes_nothing_is_an_error_and_no_endless_loop(
    tmp_path: Path, memory: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: 0)
    with pytest.raises(OSError, match="takes nothing"):
        written(tmp_path / "file", memory, 5, direct=False)


class Libc:
    """The C library, with a `fallocate64` that fails with these errors in turn."""

    def __init__(self, *numbers: int) -> None:
        self._numbers = list(numbers)

    def fallocate64(self, *args: Any) -> int:
        if not self._numbers:
            return 0
        ctypes.set_errno(self._numbers.pop(0))
        return -1


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOSYS, errno.EINTR])
def test_a_file_system_that_cannot_reserve_room_writes_all_the_same(
    tmp_path: Path, memory: memoryview, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(blocks, "_libc", Libc(number))
    assert written(tmp_path / "file", memory, LARGE, direct=False) == memory[:LARGE]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_where_there_is_no_room_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(blocks, "_libc", Libc(number))
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError) as raised:
        BlockFile(tmp_path / "file", LARGE, direct=True)
    assert raised.value.errno == number and raised.value.filename == str(tmp_path / "file")
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files


def test_room_is_reserved_before_anything_is_written(tmp_path: Path) -> None:
    with BlockFile(tmp_path / "file", LARGE):
        found = (tmp_path / "file").stat()
        if found.st_blocks == 0:
            pytest.skip(f"the file system of {tmp_path} reserves no room")
        assert found.st_size == LARGE and found.st_blocks * 512 >= LARGE


def test_nothing_that_is_there_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        BlockFile(tmp_path / "file", LARGE, direct=True)
    assert (tmp_path / "file").read_bytes() == b"old"
