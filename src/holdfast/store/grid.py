"""The pieces of tensors as ranks and manifests describe them, and the rules for that. Format: `docs/format.md`.

Standard library alone.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from holdfast.text import quoted

_MOST_DIMENSIONS = 64  # torch's own limit


def problem(entry: Any, paths: set[str] | None = None) -> str:
    """Returns the problem of an entry for one tensor; empty if there is none.

    Args:
        entry: Its `shape` and `pieces`. It may have been written by anybody.
        paths: The files that there are; None where that is not known yet.
    """
    if not isinstance(entry, dict) or set(entry) != {"shape", "pieces"} or not _counts(entry["shape"]):
        return "it is not described by a shape and pieces"
    shape, pieces = entry["shape"], entry["pieces"]
    if not isinstance(pieces, list) or not pieces:
        return "it has no pieces"
    for piece in pieces:
        if not isinstance(piece, dict) or set(piece) != {"file", "offset", "lengths"}:
            return "a piece is not described by a file, an offset and lengths"
        file, offset, lengths = piece["file"], piece["offset"], piece["lengths"]
        if not isinstance(file, str) or not file.endswith(".safetensors") or (paths is not None and file not in paths):
            return f"a piece is said to be in {quoted(file)}, which is no file of tensors that the manifest lists"
        if not _counts(offset) or not _counts(lengths) or not len(offset) == len(lengths) == len(shape):
            return f"its piece in {file} has no place"
        if any(begin + length > most for begin, length, most in zip(offset, lengths, shape, strict=True)):
            return f"its piece in {file} lies outside of it"
    if not _fill(shape, [(tuple(piece["offset"]), piece["lengths"]) for piece in pieces]):
        count = sum(math.prod(piece["lengths"]) for piece in pieces)
        return f"its {len(pieces)} pieces, {count:,} values in all, do not fill its shape {shape} once, as a grid"
    return ""


def _fill(shape: Sequence[int], pieces: Sequence[tuple[tuple[int, ...], Sequence[int]]]) -> bool:
    """Tells whether pieces are the cells of a grid, each once. That is what ranks write, and quick to check."""
    if 0 in shape:
        return len(pieces) == 1
    ends = []
    for dimension, length in enumerate(shape):
        cuts = sorted({0, length, *(offset[dimension] for offset, _ in pieces)})
        ends.append(dict(pairwise(cuts)))
    return len({offset for offset, _ in pieces}) == len(pieces) == math.prod(map(len, ends)) and all(
        end.get(begin) == begin + length
        for offset, lengths in pieces
        for end, begin, length in zip(ends, offset, lengths, strict=True)
    )


def _counts(value: Any) -> bool:
    if not isinstance(value, list) or len(value) > _MOST_DIMENSIONS:
        return False
    return all(type(count) is int and 0 <= count < 2**63 for count in value) and math.prod(value) < 2**63
