"""Which tensors hold NaN or infinity, seen in the blocks that their bytes have been copied into.

Seen as whole numbers, values that are not finite are the greatest: the positive ones of all signed numbers, the
negative ones of all unsigned. So two maxima tell, of memory that is in the processor's cache anyway.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch

from holdfast.capture.chunks import Chunk, ChunkPart, Sources

# The second look at so much finds it in a nearer cache than the first. For less the calls take longer than the looks.
_PIECE_BYTES = 512 << 10


class _Kind(NamedTuple):
    """Numbers of a `width`: from which bits on they are not finite, positive and negative ones."""

    width: int
    positive: int
    negative: int


_HALF = _Kind(2, 0x7C00, 0xFC00)
_SINGLE = _Kind(4, 0x7F80_0000, 0xFF80_0000)
_DOUBLE = _Kind(8, 0x7FF0_0000_0000_0000, 0xFFF0_0000_0000_0000)
# A complex number is two. Of the dtypes with 8 bits, others have their NaN elsewhere, or none, and are not looked at.
_KINDS = {
    torch.float16: _HALF,
    torch.bfloat16: _Kind(2, 0x7F80, 0xFF80),
    torch.float32: _SINGLE,
    torch.float64: _DOUBLE,
    torch.complex32: _HALF,
    torch.complex64: _SINGLE,
    torch.complex128: _DOUBLE,
    torch.float8_e5m2: _Kind(1, 0x7C, 0xFC),
    torch.float8_e4m3fn: _Kind(1, 0x7F, 0xFF),
}


class _Span(NamedTuple):
    """Where a tensor lies in a piece of a file; part of it may be outside."""

    name: str
    kind: _Kind
    begin: int
    end: int


class TensorRanges:
    """Where the tensors lie that are to hold finite numbers alone.

    Args:
        tensors: By name. Sparse ones, and those of a dtype that is not looked at, are passed over.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        named = [(name, one, _KINDS[one.dtype]) for name, one in tensors.items() if _can_be_told(one)]
        self._whole: dict[tuple[int, int], _Span] = {}
        dense = []
        for name, tensor, kind in named:
            pointer, span = tensor.data_ptr(), _Span(name, kind, 0, tensor.nbytes)
            self._whole.setdefault((pointer, span.end), span)
            if _is_dense(tensor):
                dense.append((pointer, span))
        self._dense = sorted(dense)
        # Some may be views of others, so that one that begins early may still end late.
        self._reach = list(accumulate((pointer + span.end for pointer, span in self._dense), max))

    def of(self, piece: torch.Tensor) -> Sequence[_Span]:
        """What a piece of a file holds of them: it is one, or a part of one, or the storage of some."""
        begin, size = piece.data_ptr(), piece.nbytes
        if (whole := self._whole.get((begin, size))) is not None:
            return (whole,)
        found = []
        index = bisect_left(self._dense, begin + size, key=lambda one: one[0]) - 1
        while index >= 0 and self._reach[index] > begin:
            pointer, span = self._dense[index]
            if pointer + span.end > begin:
                found.append(span._replace(begin=pointer - begin, end=pointer - begin + span.end))
            index -= 1
        return found


class NonFiniteScan:
    """Looks for NaN and infinity in the blocks of one snapshot.

    Args:
        places: Where the tensors lay when it was taken.
    """

    def __init__(self, places: TensorRanges) -> None:
        self._places = places
        self._cut: dict[tuple[int, int, str, int], bytearray] = {}
        self.failing: set[str] = set()
        """The names of tensors in which there was some."""

    def look(self, sources: Sources, chunk: Chunk, view: memoryview) -> None:
        """Looks at what a block holds. Any number of threads may do so, in any order."""
        found = []
        for part in chunk.parts:
            if (piece := sources.tensor(part)) is not None:
                found += [(part, span) for span in self._places.of(piece)]
        kinds = {span.kind for _, span in found}
        aligned = all(not (part.place - part.begin + span.begin) % span.kind.width for part, span in found)
        # Usually one look at all of it is enough. What else is there seems finite as well, or costs the others.
        if len(kinds) == 1 and aligned and is_finite(view[: chunk.size], *kinds):
            return
        for part, span in found:
            if not self._holds(part, span, view, id(sources)):
                self.failing.add(span.name)

    def _holds(self, part: ChunkPart, span: _Span, view: memoryview, file: int) -> bool:
        begin, end = max(part.begin, span.begin), min(part.begin + part.size, span.end)
        if begin >= end:
            return True
        at, width = part.place - part.begin, span.kind.width
        # A value that the beginning or the end of the block goes through has its other half in another block.
        first, last = begin + (span.begin - begin) % width, end - (end - span.begin) % width
        holds = is_finite(view[at + first : at + last], span.kind)
        for value, cut in ((first - width, slice(begin, first)), (last, slice(last, end))):
            if cut.start < cut.stop:
                half = bytearray(view[at + cut.start : at + cut.stop])
                other = self._cut.setdefault((file, part.piece, span.name, value), half)
                if other is not half:
                    both = half + other if cut.start == value else other + half
                    holds &= is_finite(memoryview(both), span.kind)
        return holds


def is_finite(view: memoryview, kind: _Kind) -> bool:
    """Whether all values that lie in memory are finite numbers. What is left at the end is no value."""
    end = len(view) - len(view) % kind.width
    for begin in range(0, end, _PIECE_BYTES):
        seen = np.frombuffer(view[begin : min(begin + _PIECE_BYTES, end)], f"u{kind.width}")
        if int(seen.max()) >= kind.negative or int(seen.view(f"i{kind.width}").max()) >= kind.positive:
            return False
    return True


def _can_be_told(tensor: torch.Tensor) -> bool:
    return tensor.dtype in _KINDS and tensor.layout == torch.strided and tensor.nbytes > 0


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether the bytes between its first and its last are its own, in whatever order."""
    if tensor.is_contiguous():
        return True
    reach = sum((length - 1) * step for length, step in zip(tensor.shape, tensor.stride(), strict=True))
    return reach + 1 == tensor.numel()
