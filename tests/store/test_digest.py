import os
from pathlib import Path
from random import Random

import pytest
import xxhash

from holdfast.store import digest
from holdfast.store.digest import BLOCK_BYTES, Digester

SIZES = (0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES, 2 * BLOCK_BYTES + 7)


def expected(data: bytes) -> str:
    blocks = [data[begin : begin + BLOCK_BYTES] for begin in range(0, len(data), BLOCK_BYTES)]
    return "".join(map(xxhash.xxh3_128_hexdigest, blocks or [b""]))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("most", [1 << 30, 1 << 20, 1_000_003])
def test_a_file_has_the_digest_of_each_block_however_it_is_read(
    tmp_path: Path, size: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Random(size).randbytes(size)
    (tmp_path / "f").write_bytes(data)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: pread(fd, min(length, most), offset))
    with (tmp_path / "f").open("rb") as file:
        assert digest.of_descriptor(file.fileno()) == expected(data)


@pytest.mark.parametrize("part", [1 << 30, 1 << 20, 1_000_003])
def test_blocks_may_come_in_any_order_and_in_parts(part: int) -> None:
    data = Random(part).randbytes(4 * BLOCK_BYTES + 5)
    digester = Digester()
    for begin in reversed(range(0, len(data), BLOCK_BYTES)):
        block = memoryview(data)[begin : begin + BLOCK_BYTES]
        digester.update([block[at : at + part] for at in range(0, len(block), part)], begin)
    assert digester.digests() == expected(data)


def test_the_digests_until_each_part_tell_where_two_blocks_begin_to_differ() -> None:
    parts, digester = [bytes(range(200)), b"", b"in the middle", bytes(3)], Digester()
    before = digester.update(parts, 0)
    assert before == digester.update(parts, 0) and before[0] == before[1]
    parts[2] = b"In the middle"
    after = digester.update(parts, 0)
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, True, False, False]


@pytest.mark.parametrize(("offset", "size"), [(5, 1), (0, BLOCK_BYTES + 1), (BLOCK_BYTES - 1, BLOCK_BYTES)])
def test_what_is_no_block_is_refused(offset: int, size: int) -> None:
    with pytest.raises(ValueError, match=rf"^{size:,} bytes at {offset:,} are no block of 4,194,304 bytes$"):
        Digester().update([bytes(size)], offset)


@pytest.mark.parametrize("size", SIZES)
def test_a_listed_file_tells_what_each_block_must_be(size: int) -> None:
    data = Random(size).randbytes(size)
    digests = expected(data)
    for begin in range(0, size or 1, BLOCK_BYTES):
        assert digest.at(digests, begin) == xxhash.xxh3_128_hexdigest(data[begin : begin + BLOCK_BYTES])
