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
from holdfast.text import quoted

SHARD = re.compile(r"-[0-9]{5,}-of-[0-9]{5,}(?=\.safetensors$)")
"""The part of a file's name that numbers several of its kind: those of one model, or one of each rank."""


@dataclass(frozen=True)
class Piece:
    """One piece: its file, its entry in the header there, and its beginning in the whole tensor."""

    file: str
    tensor: Tensor
    offset: tuple[int, ...]


@dataclass(frozen=True)
class Whole:
    """A tensor. `file` is the file that it is in, or would be in if one process had written it."""

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
        """The size of all of it in bytes."""
        return sum(piece.tensor.bytes for piece in self.pieces)

    def read(self, opened: Mapping[str, int], at: int, count: int) -> bytearray:
        """Reads some of its bytes, which count from its beginning in the order of its indices.

        Args:
            opened: The open files.
            at: The first of them.
            count: Their number.

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
        """Copies a piece's share of the rows from `first` to `last` into its place among them."""
        top, height = piece.offset[0], piece.tensor.shape[0]
        begin, end = max(first, top), min(last, top + height)
        if begin >= end:
            return
        row = piece.tensor.bytes // height
        source = memoryview(exactly(fd, (end - begin) * row, piece.tensor.offset + (begin - top) * row))
        offset, lengths = (begin - first, *piece.offset[1:]), (end - begin, *piece.tensor.shape[1:])
        strides = [self.bytes // math.prod(self.shape[: dimension + 1]) for dimension in range(len(lengths))]
        # What lies behind the last dimension that is cut is without gaps, here and there.
        cut = max(d for d, (part, whole) in enumerate(zip(lengths, self.shape, strict=True)) if not d or part < whole)
        run = lengths[cut] * strides[cut]
        for number, index in enumerate(product(*map(range, lengths[:cut]))):
            place = [start + step for start, step in zip(offset, (*index, 0), strict=False)]
            at = sum(step * stride for step, stride in zip(place, strides, strict=False))
            rows[at : at + run] = source[number * run : (number + 1) * run]


def gather(manifest: Manifest, headers: Mapping[str, Sequence[Tensor]]) -> list[Whole]:
    """Returns the tensors of a checkpoint, ordered by file and name.

    Args:
        manifest: Its manifest.
        headers: The tensors in the headers of its files, by path. A tensor with pieces in other files is left out.

    Raises:
        HeaderError: A file holds another thing than the manifest says.
    """
    left = {(path, tensor.name): tensor for path, tensors in headers.items() for tensor in tensors}
    wholes = []
    for entries in manifest.tensors.values():
        for name, entry in entries.items():
            own = name.removeprefix(SIDECAR_PREFIX)
            if len(entry["pieces"]) > 1 and all(piece["file"] in headers for piece in entry["pieces"]):
                taken = [(piece, left.pop((piece["file"], own), None)) for piece in entry["pieces"]]
                wholes.append(_whole(own, entry["shape"], taken))
    listed = {
        piece["file"]
        for entries in manifest.tensors.values()
        for entry in entries.values()
        for piece in entry["pieces"]
    }
    for (path, name), tensor in left.items():
        file = SHARD.sub("", path) if path in listed else path
        wholes.append(Whole(file, name, tensor.shape, (Piece(path, tensor, (0,) * len(tensor.shape)),)))
    return sorted(wholes, key=lambda whole: (whole.file, whole.name))


def _whole(name: str, shape: Sequence[int], taken: Sequence[tuple[Mapping[str, Any], Tensor | None]]) -> Whole:
    pieces = []
    for entry, tensor in taken:
        rank = len(entry["lengths"])
        if tensor is None or list(tensor.shape[:rank]) != entry["lengths"]:
            is_there = "no such tensor is there" if tensor is None else f"it has the shape {list(tensor.shape)}"
            raise HeaderError(
                f"the manifest says that {entry['file']} holds {entry['lengths']} of {quoted(name)}, and {is_there}"
            )
        # Complex numbers may be written as pairs, in one dimension more.
        more = tensor.shape[rank:]
        pieces.append(Piece(entry["file"], tensor, (*entry["offset"], *(0 for _ in more))))
    whole = Whole(SHARD.sub("", pieces[0].file), name, (*shape, *more), tuple(pieces))
    width = whole.bytes / math.prod(whole.shape)
    for piece in pieces:
        alike = (piece.tensor.dtype, piece.tensor.shape[rank:]) == (whole.dtype, more)
        if not alike or not width.is_integer() or piece.tensor.bytes != math.prod(piece.tensor.shape) * width:
            raise HeaderError(f"the pieces of {quoted(name)} are of several types, or of one that has no whole bytes")
    return whole
