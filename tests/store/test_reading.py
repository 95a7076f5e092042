import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

from helpers.parts import digests_of, listed
from holdfast.store import files, range_reading, reading
from holdfast.store.digest import BLOCK_BYTES
from holdfast.store.folder import Folder
from holdfast.store.manifest import File
from holdfast.store.reading import Source, Span

DIRECT, CACHED = "direct", "cached"


def written(path: Path, size: int) -> bytes:
    data = Random(size).randbytes(size)
    path.write_bytes(data)
    return data


def source(path: Path, data: bytes, ranges: Sequence[tuple[int, int]] = ()) -> tuple[Source, list[bytearray]]:
    """A file of which some ranges are wanted, and where they go; without ranges it is only digested."""
    into = [bytearray(end - begin) for begin, end in ranges]
    spans = [Span(begin, memoryview(one)) for (begin, _), one in zip(ranges, into, strict=True)]
    return Source(File(path.name, len(data), digests_of(data)), spans if ranges else None), into


def read(folder: Path, sources: Sequence[Source], *, through_cache: bool = False) -> list[str | None]:
    with Folder.open(folder) as opened:
        reading.read(opened, sources, through_cache=through_cache)
    return [one.problem for one in sources]


def drop_from_cache(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.fixture(params=[DIRECT, CACHED])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the bytes come: the system's own choice between the two depends on what else the machine does."""
    way: str = request.param
    monkeypatch.setattr(range_reading, "is_cached", lambda *_: way == CACHED)
    return way


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES + 12_345])
def test_every_byte_of_a_file_of_any_length_arrives_where_it_belongs(tmp_path: Path, way: str, size: int) -> None:
    data = written(tmp_path / "f", size)
    whole, into = source(tmp_path / "f", data, [(0, size)] if size else [])
    assert read(tmp_path, [whole]) == [None] and b"".join(into) == data


def test_ranges_of_any_place_and_length_arrive(tmp_path: Path, way: str) -> None:
    size = 3 * BLOCK_BYTES + 77
    data = written(tmp_path / "f", size)
    chance = Random(1)
    cuts = sorted({0, size, BLOCK_BYTES - 1, 2 * BLOCK_BYTES, *(chance.randrange(size) for _ in range(400))})
    ranges = [pair for number, pair in enumerate(pairwise(cuts)) if number % 3]
    some, into = source(tmp_path / "f", data, ranges)
    assert read(tmp_path, [some]) == [None]
    assert all(one == data[begin:end] for one, (begin, end) in zip(into, ranges, strict=True))


def test_more_ranges_in_a_block_than_the_system_takes_in_one_call(tmp_path: Path, way: str) -> None:
    data = written(tmp_path / "f", 30_000)
    ranges = [(begin, begin + 1) for begin in range(0, 30_000, 3)]
    some, into = source(tmp_path / "f", data, ranges)
    assert read(tmp_path, [some]) == [None]
    assert b"".join(into) == data[::3]


def test_many_files_at_once_each_with_its_own_digest(tmp_path: Path, way: str) -> None:
    content = {f"f{number}": written(tmp_path / f"f{number}", number * 700_001) for number in range(12)}
    flipped = bytearray(content["f11"])
    flipped[-1] ^= 1
    (tmp_path / "f11").write_bytes(flipped)
    (tmp_path / "f3").unlink()
    os.truncate(tmp_path / "f5", 9)
    found = read(tmp_path, [source(tmp_path / name, data)[0] for name, data in content.items()])
    assert {f"f{number}": problem for number, problem in enumerate(found) if problem} == {
        "f3": "f3: is missing",
        "f5": "f5: is 9 bytes long, was written with 3,500,005",
        "f11": "f11: its bytes have changed since it was written",
    }


@pytest.mark.parametrize("place", [0, BLOCK_BYTES - 1, BLOCK_BYTES, 2 * BLOCK_BYTES + 4])
def test_a_changed_byte_is_found_wherever_it_is(tmp_path: Path, way: str, place: int) -> None:
    data = written(tmp_path / "f", 2 * BLOCK_BYTES + 5)
    one, _ = source(tmp_path / "f", data, [(5, 2 * BLOCK_BYTES + 1)])
    with (tmp_path / "f").open("r+b") as file:
        file.seek(place)
        file.write(bytes([data[place] ^ 1]))
    assert read(tmp_path, [one]) == ["f: its bytes have changed since it was written"]


@pytest.mark.parametrize(("place", "is_found"), [(2, False), (BLOCK_BYTES + 5, True), (3 * BLOCK_BYTES + 4, False)])
def test_of_a_file_of_which_some_is_wanted_its_blocks_alone_are_read(
    tmp_path: Path, way: str, place: int, is_found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = written(tmp_path / "f", 3 * BLOCK_BYTES + 5)
    one, (into,) = source(tmp_path / "f", data, [(BLOCK_BYTES + 70_000, 2 * BLOCK_BYTES + 1)])
    asked = []
    read_unit = reading._read

    def counting(unit: reading._Unit, block: memoryview) -> None:
        asked.append((unit.offset, unit.size))
        read_unit(unit, block)

    monkeypatch.setattr(reading, "_read", counting)
    with (tmp_path / "f").open("r+b") as file:
        file.seek(place)
        file.write(bytes([data[place] ^ 1]))
    assert read(tmp_path, [one]) == ["f: its bytes have changed since it was written" if is_found else None]
    if not is_found:
        assert sorted(asked) == [(BLOCK_BYTES, BLOCK_BYTES), (2 * BLOCK_BYTES, BLOCK_BYTES)]
        assert into == data[BLOCK_BYTES + 70_000 : 2 * BLOCK_BYTES + 1]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_more_files_are_open_than_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {f"f{number}": written(tmp_path / f"f{number}", number) for number in range(300)}
    most, read_unit = [0], reading._read

    def counting(unit: reading._Unit, block: memoryview) -> None:
        most[0] = max(most[0], open_files())
        read_unit(unit, block)

    monkeypatch.setattr(reading, "_read", counting)
    before = open_files()
    assert read(tmp_path, [source(tmp_path / name, data)[0] for name, data in content.items()]) == [None] * 300
    assert most[0] - before <= 2 * reading.READERS + 4
    assert open_files() == before


def test_a_file_that_claims_any_size_is_not_waited_for(tmp_path: Path) -> None:
    written(tmp_path / "f", 10)
    assert read(tmp_path, [Source(File("f", 2**62, "0" * 32))]) == [
        "f: is 10 bytes long, was written with 4,611,686,018,427,387,904"
    ]


def short_reads(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    """Has the system give less than it is asked for, as it may."""
    preadv = os.preadv

    def short(fd: int, buffers: Sequence[memoryview], offset: int, *flags: int) -> int:
        left, given = length, []
        for buffer in buffers:
            given.append(buffer[:left])
            left -= len(given[-1])
        return preadv(fd, given, offset, *flags)

    monkeypatch.setattr(os, "preadv", short)


@pytest.mark.parametrize("length", [70_000, 8192])
def test_short_reads_are_gone_on_with(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    data = written(tmp_path / "f", BLOCK_BYTES + 123_457)
    some, into = source(tmp_path / "f", data, [(0, 10), (100_000, BLOCK_BYTES + 5), (BLOCK_BYTES + 6, len(data))])
    short_reads(monkeypatch, length)
    assert read(tmp_path, [some]) == [None]
    assert into == [data[:10], data[100_000 : BLOCK_BYTES + 5], data[BLOCK_BYTES + 6 :]]


def test_a_file_that_gets_shorter_while_it_is_read_is_changed(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = written(tmp_path / "f", BLOCK_BYTES + 100)
    one, _ = source(tmp_path / "f", data)
    targets = reading._targets

    def truncating(*given: Any) -> Any:
        os.truncate(tmp_path / "f", 50)
        return targets(*given)

    monkeypatch.setattr(reading, "_targets", truncating)
    assert read(tmp_path, [one]) == ["f: its bytes have changed since it was written"]


def test_where_direct_reads_are_refused_all_comes_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = written(tmp_path / "f", BLOCK_BYTES + 100)
    one, (into,) = source(tmp_path / "f", data, [(0, len(data))])
    open_ = os.open

    def refusing(path: object, flags: int, *given: object, **named: object) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return open_(path, flags, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refusing)
    assert read(tmp_path, [one]) == [None] and into == data


def test_a_file_system_in_memory_is_read_too() -> None:
    folder = Path("/dev/shm") / f"holdfast-{os.getpid()}"
    folder.mkdir()
    try:
        data = written(folder / "f", BLOCK_BYTES + 100)
        one, (into,) = source(folder / "f", data, [(0, len(data))])
        assert read(folder, [one]) == [None] and into == data
    finally:
        files.remove_tree(folder)


def test_what_is_cached_is_read_through_the_cache_and_what_is_not_past_it(tmp_path: Path) -> None:
    data = written(tmp_path / "f", 2 * BLOCK_BYTES)
    path = tmp_path / "f"
    with path.open("rb") as file:
        assert range_reading.is_cached(file.fileno(), 0, len(data))
        drop_from_cache(path)
        if range_reading.is_cached(file.fileno(), 0, len(data)):
            pytest.skip("THIS FILE SYSTEM KEEPS WHAT IT IS TOLD TO DROP")


def test_an_error_in_one_of_the_threads_ends_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = written(tmp_path / "f", 8 * BLOCK_BYTES)

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(reading, "_targets", fail)
    with pytest.raises(MemoryError):
        read(tmp_path, [source(tmp_path / "f", data)[0]])


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES + 9])
def test_a_small_file_is_proved_in_one_piece_also_where_it_has_several_blocks(tmp_path: Path, size: int) -> None:
    data = written(tmp_path / "f", size)
    file = listed(tmp_path, "f")
    with Folder.open(tmp_path) as folder:
        assert reading.read_small(folder, file, 1 << 30) == (data, None)
        if size:
            (tmp_path / "f").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
            assert reading.read_small(folder, file, 1 << 30)[1] == "f: its bytes have changed since it was written"
