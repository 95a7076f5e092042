"""The digests that files of a checkpoint carry: xxh3_128 of each block, which anybody can check with `xxhsum -H2`.

It runs at memory speed (17 to 27 GB/s where sha256 does 1.4), and finds every accident. It is no proof against intent:
the manifest says what was written, not by whom.

Another digest, or another size of blocks, is a change of this file and of `docs/format.md`. The manifest stands on this
file, so its import takes the standard library alone: xxhash is loaded with the first digest that is taken.
"""

import os
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xxhash import xxh3_128

NAME = "xxh3_128"
"""The digest's name in a manifest."""
DIGITS = 32
"""The length of one digest, as hexadecimal text."""
BLOCK_BYTES = 4 << 20
"""The bytes of a file that one of its digests covers."""

_DIGESTS = re.compile(rf"([0-9a-f]{{{DIGITS}}})*")


class Digester:
    """Takes the digest of each block of one file, in any order and in any number of threads."""

    def __init__(self) -> None:
        self._by_number: dict[int, str] = {}

    def update(self, parts: Iterable[memoryview | bytes], offset: int) -> list[int]:
        """Takes one block, in as many parts as it comes in: `BLOCK_BYTES`, or fewer where the file ends.

        Args:
            parts: Its bytes, in order.
            offset: Its place in the file.

        Returns:
            The digest of all until the end of each part. The first that differs from another time's tells the part
            whose bytes do.

        Raises:
            ValueError: No block begins there, or it is longer than one.
        """
        size, block, until = 0, new(), []
        for part in parts:
            size += len(part)
            block.update(part)
            until.append(block.intdigest())
        if offset % BLOCK_BYTES or size > BLOCK_BYTES:
            raise ValueError(f"{size:,} bytes at {offset:,} are no block of {BLOCK_BYTES:,} bytes")
        self._by_number[offset // BLOCK_BYTES] = block.hexdigest()
        return until

    def digests(self) -> str:
        """Returns the digests of all blocks, one after the other; of a file without bytes that of nothing."""
        return "".join(self._by_number[number] for number in range(len(self._by_number))) or of(())


def new() -> "xxh3_128":
    """Returns the digest of nothing yet, to be updated."""
    import xxhash

    return xxhash.xxh3_128()


def of(parts: "Iterable[bytes | memoryview]") -> str:
    """Returns one digest of all bytes, however many they are."""
    digest = new()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def of_bytes(data: bytes) -> str:
    """Returns the digests of a file of these bytes."""
    digester = Digester()
    for offset in range(0, len(data), BLOCK_BYTES):
        digester.update([memoryview(data)[offset : offset + BLOCK_BYTES]], offset)
    return digester.digests()


def of_descriptor(fd: int) -> str:
    """Returns the digests of an open file, from its beginning."""
    digester = Digester()
    offset = 0
    while block := block_at(fd, offset):
        digester.update([block], offset)
        offset += len(block)
    return digester.digests()


def at(digests: str, offset: int) -> str:
    """Returns, of a file's digests, that of the block that begins at an offset."""
    first = offset // BLOCK_BYTES * DIGITS
    return digests[first : first + DIGITS]


def fit(digests: Any, size: int) -> bool:
    """Tells whether a value that anybody may have written is the digests of a file of `size` bytes."""
    count = -(-size // BLOCK_BYTES) or 1
    return isinstance(digests, str) and len(digests) == count * DIGITS and _DIGESTS.fullmatch(digests) is not None


def block_at(fd: int, offset: int) -> bytes:
    """Reads the block of a file that begins at an offset, less of it only where the file ends."""
    block = b""
    while len(block) < BLOCK_BYTES and (more := os.pread(fd, BLOCK_BYTES - len(block), offset + len(block))):
        block = block + more if block else more
    return block
