"""The tensors of a checkpoint, each of them whole, in whichever files its pieces lie."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from holdfast.layouts.safetensors.header import HeaderError, Tensor, exactly
from holdfast.state.part import SIDECAR_PREFIX
from holdfast.store.manifest import Manifest

SHARD = re.compile(r"-[0-9]{5,}-of-[0-9]{5,}(?=\.safetensors$)")
"""What the name of a file has when there are several of its kind: those of one model, or one of each rank."""


@dataclass(frozen=True)
class Piece:
    """One piece: its file, where it is there, and where it begins in the whole tensor."""

    file: str
    tensor: Tensor
    offset: tuple[int, ...]


@dataclass(frozen=True)
class Whole:
    """A tensor. `file` is where it is, or would be if one process had written it."""

    file: str
    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def dtype(self) -> str:
        """The format's name of its type."""
        return self.pieces[0].tensor.dtype

    @property
    def bytes(self) -> int:
        """The bytes of all of it."""
        return sum(piece.tensor.bytes for piece in self.pieces)

    def read(self, opened: Mapping[str, int], at: int, count: int) -> bytearray:
        """Reads some of its bytes, which count from its beginning in the order of its indices.

        Args:
            opened: The open files.
            at: Where they begin.
            count: How many.

        Raises:
            HeaderError: A file is cut short.
        """
        if len(self.pieces) == 1:
            (piece,) = self.pieces
            return exactly(opened[piece.file], count, piece.tensor.offset + at)
        row = self.bytes // self.shape[0]
        first, last = at // row, -(-(at + count) // row)
        rows = bytearray((last - first) * row)
        for piece in self.pieces:
            self._put(opened[piece.file], piece, first, last, rows)
        return rows[at - first * row : at - first * row + count]

    def _put(self, fd: int, piece: Piece, first: int, last: int, rows: bytearray) -> None:
        """Puts what a piece has of the rows from `first` to `last` into its place among them."""
        top, height = piece.offset[0], piece.tensor.shape[0]
        begin, end = max(first, top), min(last, top + height)
        if begin >= end:
            return
        row = piece.tensor.bytes // height
        held = memoryview(exactly(fd, (end - begin) * row, piece.tensor.offset + (begin - top) * row))
        offset, lengths = (begin - first, *piece.offset[1:]), (end - begin, *piece.tensor.shape[1:])
        strides = [self.bytes // math.prod(self.shape[: dimension + 1]) for dimension in range(len(lengths))]
        # What lies behind the last dimension that is cut is without gaps, here and there.
        cut = max(d for d, (part, whole) in enumerate(zip(lengths, self.shape, strict=True)) if not d or part < whole)
        run = lengths[cut] * strides[cut]
        for number, index in enumerate(product(*map(range, lengths[:cut]))):
            place = [start + step for start, step in zip(offset, (*index, 0), strict=False)]
            at = sum(step * stride for step, stride in zip(place, strides, strict=False))
            rows[at : at + run] = held[number * run : (number + 1) * run]


def gather(manifest: Manifest, headers: Mapping[str, Sequence[Tensor]]) -> list[Whole]:
    """The tensors of a checkpoint.

    Args:
        manifest: Its manifest.
        headers: What each of its files says that it holds. Tensors that have pieces in others are left out.

    Raises:
        HeaderError: A file holds another thing than the manifest says.
    """
    held = {(path, tensor.name): tensor for path, tensors in headers.items() for tensor in tensors}
    found = []
    for tensors in manifest.tensors.values():
        for name, told in tensors.items():
            own = name.removeprefix(SIDECAR_PREFIX)
            if len(told["pieces"]) > 1 and all(piece["file"] in headers for piece in told["pieces"]):
                taken = [(piece, held.pop((piece["file"], own), None)) for piece in told["pieces"]]
                found.append(_whole(own, told["shape"], taken))
    listed = {piece["file"] for told in manifest.tensors.values() for one in told.values() for piece in one["pieces"]}
    for (path, name), tensor in held.items():
        file = SHARD.sub("", path) if path in listed else path
        found.append(Whole(file, name, tensor.shape, (Piece(path, tensor, (0,) * len(tensor.shape)),)))
    return sorted(found, key=lambda whole: (whole.file, whole.name))


def _whole(name: str, shape: Sequence[int], taken: Sequence[tuple[Mapping[str, Any], Tensor | None]]) -> Whole:
    pieces = []
    for said, tensor in taken:
        rank = len(said["lengths"])
        if tensor is None or list(tensor.shape[:rank]) != said["lengths"]:
            is_there = "no such tensor is there" if tensor is None else f"it has the shape {list(tensor.shape)}"
            raise HeaderError(
                f"the manifest says that {said['file']} holds {said['lengths']} of {name!r}, and {is_there}"
            )
        # Complex numbers may be written as pairs, in one dimension more.
        more = tensor.shape[rank:]
        pieces.append(Piece(said["file"], tensor, (*said["offset"], *(0 for _ in more))))
    found = Whole(SHARD.sub("", pieces[0].file), name, (*shape, *more), tuple(pieces))
    width = found.bytes / math.prod(found.shape)
    for piece in pieces:
        alike = (piece.tensor.dtype, piece.tensor.shape[rank:]) == (found.dtype, more)
        if not alike or not width.is_integer() or piece.tensor.bytes != math.prod(piece.tensor.shape) * width:
            raise HeaderError(f"the pieces of {name!r} are of several types, or of one that has no whole bytes")
    return found
