"""The search for NaN and infinity, in the blocks that the bytes of tensors have been copied into.

Seen as whole numbers, values that are not finite are the greatest: the positive ones of all signed numbers, the
negative ones of all unsigned. So two maxima tell, of memory that is in the processor's cache anyway.

No value is cut by the edge of a block: every writer puts a tensor where the width of its elements divides its place in
the file, and it divides the size of a block too.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol

import numpy as np
import torch

from holdfast.capture.chunks import Chunk, ChunkPart

# The second look at so much finds it in a nearer cache than the first. For less the calls take longer than the looks.
_STRIDE_BYTES = 512 << 10


class _Kind(NamedTuple):
    """Numbers of a `width` in bytes, and the bits from which on positive and negative ones are not finite."""

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


class Pieces(Protocol):
    """The pieces of a file-to-be."""

    def tensor(self, part: ChunkPart) -> torch.Tensor | None:
        """Returns the tensor that a part's bytes come from; None where they are bytes."""


class _Span(NamedTuple):
    """The place of a tensor in a piece of a file, in bytes; part of it may be outside."""

    name: str
    kind: _Kind
    begin: int
    end: int


class TensorRanges:
    """The places in memory of the tensors that are to hold finite numbers alone.

    Args:
        tensors: The tensors, by name. Sparse ones, and those of a dtype that is not looked at, are passed over.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._whole: dict[tuple[int, int], _Span] = {}
        dense = []
        for name, tensor in tensors.items():
            if not _can_be_examined(tensor):
                continue
            pointer, span = tensor.data_ptr(), _Span(name, _KINDS[tensor.dtype], 0, tensor.nbytes)
            self._whole.setdefault((pointer, span.end), span)
            if _is_dense(tensor):
                dense.append((pointer, span))
        self._dense = sorted(dense)
        # Some may be views of others, so that one that begins early may still end late.
        self._reach = list(accumulate((pointer + span.end for pointer, span in self._dense), max))

    def within(self, piece: torch.Tensor) -> Sequence[_Span]:
        """Returns the tensors that a piece of a file holds: it is one, or a part of one, or the storage of some."""
        begin, size = piece.data_ptr(), piece.nbytes
        if (whole := self._whole.get((begin, size))) is not None:
            return (whole,)
        spans = []
        index = bisect_left(self._dense, begin + size, key=lambda entry: entry[0]) - 1
        while index >= 0 and self._reach[index] > begin:
            pointer, span = self._dense[index]
            place = pointer - begin
            # One that lies otherwise has a storage of its own over the same memory, which is a piece of its own.
            if place + span.end > 0 and not place % span.kind.width:
                spans.append(span._replace(begin=place, end=place + span.end))
            index -= 1
        return spans


class NonFiniteScan:
    """The search for NaN and infinity in the blocks of one snapshot.

    Args:
        ranges: The places of the tensors when it was taken.
    """

    def __init__(self, ranges: TensorRanges) -> None:
        self._ranges = ranges
        self.failing: set[str] = set()
        """The names of tensors in which there was some."""

    def examine(self, sources: Pieces, chunk: Chunk, view: memoryview) -> None:
        """Looks at what a block holds. Any number of threads may do so, in any order."""
        spans = []
        for part in chunk.parts:
            if (piece := sources.tensor(part)) is not None:
                spans += [(part, span) for span in self._ranges.within(piece)]
        for part, span in spans:
            place = part.place - part.begin + span.begin
            assert place % span.kind.width == 0, f"a file has values of {span.name} that the edge of a block cuts"
        kinds = {span.kind for _, span in spans}
        # Usually one look at all of it is enough. What else is there seems finite as well, or costs the others.
        if len(kinds) == 1 and is_finite(view[: chunk.size], *kinds):
            return
        self.failing |= {span.name for part, span in spans if not _is_finite_in(part, span, view)}


def is_finite(view: memoryview, kind: _Kind) -> bool:
    """Tells if all values that lie in memory are finite numbers. What is left at the end is no value."""
    end = len(view) - len(view) % kind.width
    for begin in range(0, end, _STRIDE_BYTES):
        values = np.frombuffer(view[begin : min(begin + _STRIDE_BYTES, end)], f"u{kind.width}")
        if int(values.max()) >= kind.negative or int(values.view(f"i{kind.width}").max()) >= kind.positive:
            return False
    return True


def _is_finite_in(part: ChunkPart, span: _Span, view: memoryview) -> bool:
    begin, end = max(part.begin, span.begin), min(part.begin + part.size, span.end)
    offset = part.place - part.begin
    return begin >= end or is_finite(view[offset + begin : offset + end], span.kind)


def _can_be_examined(tensor: torch.Tensor) -> bool:
    return tensor.dtype in _KINDS and tensor.layout == torch.strided and tensor.nbytes > 0


def _is_dense(tensor: torch.Tensor) -> bool:
    """Tells if the bytes between its first and its last are its own, in whatever order."""
    if tensor.is_contiguous():
        return True
    reach = sum((length - 1) * step for length, step in zip(tensor.shape, tensor.stride(), strict=True))
    return reach + 1 == tensor.numel()
