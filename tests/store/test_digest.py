import os
from pathlib import Path
from random import Random

import pytest
import xxhash

from holdfast.store import digest
from holdfast.store.digest import Digester
from holdfast.store.manifest import BLOCK_BYTES, File

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


@pytest.mark.parametrize("step", [1, 2, 3])
def test_blocks_may_come_several_at_once_and_in_any_order(step: int) -> None:
    data = Random(step).randbytes(4 * BLOCK_BYTES + 5)
    digester = Digester()
    for begin in reversed(range(0, len(data), step * BLOCK_BYTES)):
        digester.update(memoryview(data)[begin : begin + step * BLOCK_BYTES], begin)
    assert digester.digests() == expected(data)


def test_bytes_that_no_block_begins_with_are_refused() -> None:
    with pytest.raises(ValueError, match="no block of 4,194,304 bytes begins at 5"):
        Digester().update(bytes(1), 5)


@pytest.mark.parametrize("size", SIZES)
def test_a_listed_file_tells_what_each_block_must_be(size: int) -> None:
    data = Random(size).randbytes(size)
    file = File("f", size, expected(data))
    for begin in range(0, size or 1, BLOCK_BYTES):
        assert file.expected(begin) == xxhash.xxh3_128_hexdigest(data[begin : begin + BLOCK_BYTES])
