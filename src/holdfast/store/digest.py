"""The digest that files of a checkpoint carry: xxh3_128, which anybody can check with `xxhsum -H2`.

It runs at memory speed (27 GB/s where sha256 does 1.4), and finds every accident. It is no proof against intent: the
manifest says what was written, not by whom.
"""

import os

import xxhash

_BLOCK = 8 << 20


def of_descriptor(fd: int) -> str:
    """The xxh3_128 of a whole open file, from its beginning, as 32 hexadecimal digits."""
    found = xxhash.xxh3_128()
    offset = 0
    while block := os.pread(fd, _BLOCK, offset):
        found.update(block)
        offset += len(block)
    return found.hexdigest()
