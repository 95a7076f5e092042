"""The chunks that files-to-be are cut into, each for one block of memory, and the places of their bytes."""

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from itertools import count
from typing import NamedTuple, Protocol

import torch

from holdfast.store.digest import BLOCK_BYTES

# Smaller ones are copied without letting go of the interpreter: to get it back can take longer than the copy.
_SMALL_BYTES = 64 << 10


class Image(Protocol):
    """A file to be: its content in order, each piece bytes or a tensor whose bytes go there."""

    @property
    def path(self) -> str:
        """Its path inside the checkpoint."""

    @property
    def pieces(self) -> Sequence["bytes | torch.Tensor"]:
        """Its content."""

    @property
    def size(self) -> int:
        """The number of bytes that it will have."""


class ChunkPart(NamedTuple):
    """Bytes of one piece that go to a place in a block.

    Args:
        piece: The number of the piece in the file.
        begin: The first byte in the piece.
        place: The first byte in the block.
        size: The number of bytes.
    """

    piece: int
    begin: int
    place: int
    size: int


class Chunk(NamedTuple):
    """The bytes of one file that one block of memory holds.

    Args:
        offset: The first byte in the file.
        size: The number of bytes.
        parts: The parts that they consist of, in order.
    """

    offset: int
    size: int
    parts: Sequence[ChunkPart]


class Sources:
    """The live memory that the bytes of one file-to-be come from.

    Args:
        image: The file.
    """

    def __init__(self, image: Image) -> None:
        self._pieces = image.pieces
        self.memory: list[memoryview | torch.Tensor] = []
        """The bytes of each piece where they are few or bytes already; otherwise a tensor whose bytes lie in order."""
        self.rearranged: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Tensors whose bytes lie otherwise, each with the copy that is in order."""
        sizes = []
        for piece in image.pieces:
            if isinstance(piece, bytes):
                sizes.append(len(piece))
                self.memory.append(memoryview(piece))
                continue
            source = in_order(piece).cpu()  # no other device than `devices` knows is read while training goes on
            if source is not piece and source.data_ptr() != piece.data_ptr():
                self.rearranged.append((piece, source))
            sizes.append(source.nbytes)
            self.memory.append(_window(source) if 0 < source.nbytes <= _SMALL_BYTES else source)
        self.chunks = cut(tuple(sizes))

    def tensor(self, part: ChunkPart) -> torch.Tensor | None:
        """Returns the tensor that a part's bytes come from; None where they are bytes."""
        piece = self._pieces[part.piece]
        return piece if isinstance(piece, torch.Tensor) else None


# What is cut is the same from save to save, and to cut it takes milliseconds that training could have had.
@lru_cache(maxsize=64)
def cut(sizes: tuple[int, ...]) -> Sequence[Chunk]:
    """Returns the chunks of a file whose pieces have these sizes."""
    chunks: list[Chunk] = []
    parts: list[ChunkPart] = []
    filled = 0
    offsets = count(0, BLOCK_BYTES)
    for piece, size in enumerate(sizes):
        begin = 0
        while begin < size:
            fits = min(size - begin, BLOCK_BYTES - filled)
            parts.append(ChunkPart(piece, begin, filled, fits))
            filled += fits
            begin += fits
            if filled == BLOCK_BYTES:
                chunks.append(Chunk(next(offsets), filled, parts))
                parts, filled = [], 0
    if filled:
        chunks.append(Chunk(next(offsets), filled, parts))
    return chunks


def in_order(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the tensor itself if its bytes lie in order; else a copy (of channels_last, of a conjugate view)."""
    if tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg():
        return tensor
    return tensor.detach().resolve_conj().resolve_neg().contiguous()


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the bytes of a tensor that lies in order, as a flat view."""
    return tensor.detach().reshape(-1).view(torch.uint8)


def _window(tensor: torch.Tensor) -> memoryview:
    return memoryview((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())).cast("B")
