"""The slabs that a snapshot of state on cards is cut into, and where each byte of them comes from.

A slab is one piece of the arena, with as many chunks of files as it has room for; each of them has a digest of its own.
What is copied from a card is cut as coarsely as it can be, because every copy costs the host a launch.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from holdfast.capture.chunks import Chunk, ChunkPart, Image, bytes_of, cut, in_order
from holdfast.devices.device import Device

_PAGE_BYTES = 4096


class FileSource:
    """The memory that the bytes of one file-to-be come from, of the host and of cards.

    Args:
        image: The file.
        device: The device. What is on the host must be as at the boundary by now.
    """

    def __init__(self, image: Image, device: Device) -> None:
        self._pieces = image.pieces
        self.cards: list[int | None] = []
        """The card that each piece is on; None for those of the host."""
        self.memory: list[memoryview | torch.Tensor] = []
        """The bytes of each piece: bytes, or a tensor whose bytes lie in order; on a card also others."""
        self.rearranged: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Tensors of the host whose bytes lie otherwise, each with the copy that is in order."""
        for piece in image.pieces:
            card = None if isinstance(piece, bytes) else device.card_of(piece)
            self.cards.append(card)
            if isinstance(piece, bytes):
                self.memory.append(memoryview(piece))
            elif card is None:
                source = in_order(piece)
                if source is not piece and source.data_ptr() != piece.data_ptr():
                    self.rearranged.append((piece, source))
                self.memory.append(source)
            else:
                self.memory.append(bytes_of(piece) if is_in_order(piece) else piece.detach())
        self.chunks = cut(tuple(len(p) if isinstance(p, bytes) else p.nbytes for p in image.pieces))

    def tensor(self, part: ChunkPart) -> torch.Tensor | None:
        """Returns the tensor that a part's bytes come from; None where they are bytes."""
        piece = self._pieces[part.piece]
        return piece if isinstance(piece, torch.Tensor) else None


class PlacedChunk(NamedTuple):
    """A chunk of a file in a slab.

    Args:
        file: The file's number.
        chunk: The chunk.
        place: Its first byte in the slab.
    """

    file: int
    chunk: Chunk
    place: int


class Run(NamedTuple):
    """Bytes of one piece that follow each other there and in the slab.

    Args:
        file: The file's number.
        part: The piece, the first byte in it, the first byte in the slab, and the number of bytes.
    """

    file: int
    part: ChunkPart


Slab = Sequence[PlacedChunk]


def slabs_of(sources: Sequence[FileSource], slab_bytes: int) -> Sequence[Slab]:
    """Returns the slabs of all files, in order. Small files share one; each chunk begins at a page."""
    slabs: list[list[PlacedChunk]] = []
    filled = slab_bytes
    for file, source in enumerate(sources):
        for chunk in source.chunks:
            if filled + chunk.size > slab_bytes:
                slabs.append([])
                filled = 0
            slabs[-1].append(PlacedChunk(file, chunk, filled))
            filled += -(-chunk.size // _PAGE_BYTES) * _PAGE_BYTES
    return slabs


def runs_of(slab: Slab, most_bytes: int) -> Iterator[Run]:
    """Yields a slab's bytes in runs, each as long as its piece goes on, of at most `most_bytes`."""
    run: Run | None = None
    for file, chunk, place in slab:
        for part in chunk.parts:
            here = Run(file, part._replace(place=place + part.place))
            if run is not None and _follows(run, here) and run.part.size + part.size <= most_bytes:
                run = Run(file, run.part._replace(size=run.part.size + part.size))
                continue
            if run is not None:
                yield run
            run = here
    if run is not None:
        yield run


def stretches_of(slab: Slab) -> Iterator[tuple[int, int, int, int]]:
    """Yields what of a slab follows each other in a file: the file, the place in it, that in the slab, the size."""
    begun: tuple[int, int, int, int] | None = None
    for file, chunk, place in slab:
        if begun is not None and begun[0] == file and begun[1] + begun[3] == chunk.offset:
            begun = (*begun[:3], begun[3] + chunk.size)
            continue
        if begun is not None:
            yield begun
        begun = (file, chunk.offset, place, chunk.size)
    if begun is not None:
        yield begun


def is_in_order(tensor: torch.Tensor) -> bool:
    """Tells whether a tensor's bytes lie in the order of its indices, and mean what they say."""
    return tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def _follows(run: Run, here: Run) -> bool:
    same = run.file == here.file and run.part.piece == here.part.piece
    return (
        same and run.part.begin + run.part.size == here.part.begin and run.part.place + run.part.size == here.part.place
    )
