"""Tensors put together from the pieces that several processes wrote. Of each file that alone is read which is wanted.

What two boxes share is found here and not by the planner of `torch.distributed.checkpoint`: it gives the same (a test
compares them), and to import it takes a second and a half, which a resume of one process and the verbs would pay too.
"""

import ctypes
import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.errors import CheckpointError, DamagedCheckpointError
from holdfast.layouts.safetensors.reading import Opened, opened
from holdfast.state.part import SIDECAR_PREFIX
from holdfast.state.sharding import ShardRange

if TYPE_CHECKING:
    import torch

_HUGE = 2 << 20

Wanted = Callable[[str, tuple[int, ...]], ShardRange | None]
"""Which range of a tensor, of a name and a whole shape, a process needs; None for all of it."""


@dataclass(frozen=True)
class Read:
    """One range to read of one piece.

    Args:
        name: The tensor.
        begin: Where the range begins in the piece, along each dimension.
        lengths: How long it is there.
        place: Where it goes in what is wanted.
        piece: The shape of the piece.
    """

    name: str
    begin: tuple[int, ...]
    lengths: tuple[int, ...]
    place: tuple[int, ...]
    piece: tuple[int, ...]


def assemble(directory: Path, told: Mapping[str, Mapping[str, Any]], wanted: Wanted) -> dict[str, "torch.Tensor"]:
    """Reads what is wanted of some tensors. What lies in one piece is the file's memory.

    Args:
        directory: The checkpoint.
        told: What its manifest says of the tensors.
        wanted: Which ranges. Where it speaks of another whole shape than there is, the tensor is given whole: whoever
            asks was told the shape, and has to say that it does not fit.

    Raises:
        CheckpointError: A file is not what the manifest says.
    """
    plan: dict[str, list[Read]] = {}
    lengths: dict[str, tuple[int, ...]] = {}
    for name, entry in told.items():
        place = wanted_place(name, tuple(entry["shape"]), wanted)
        lengths[name] = place.lengths
        for file, read in reads(name, entry["pieces"], place):
            plan.setdefault(file, []).append(read)
    found: dict[str, torch.Tensor] = {}
    for file, planned in plan.items():
        with opened(directory / file) as source:
            shapes = source.shapes()
            for read in planned:
                part = _take(source, shapes, file, read)
                if read.lengths == lengths[read.name]:
                    found[read.name] = part
                    continue
                if read.name not in found:
                    found[read.name] = room(read.name, lengths[read.name], part.dtype)
                if found[read.name].dtype != part.dtype:
                    raise DamagedCheckpointError(f"{directory}: the pieces of {read.name!r} are of several dtypes")
                into = found[read.name]
                for dimension, (begin, length) in enumerate(zip(read.place, read.lengths, strict=True)):
                    into = into.narrow(dimension, begin, length)
                into.copy_(part)
    return {name: found[name] for name in told}


def reads(name: str, pieces: Sequence[Mapping[str, Any]], place: ShardRange) -> list[tuple[str, Read]]:
    """The ranges of pieces that make up a place, each with its file; nothing of the first where the place is empty."""
    found = []
    for piece in pieces:
        offset, lengths = tuple(piece["offset"]), tuple(piece["lengths"])
        begin = tuple(map(max, offset, place.offset))
        end = tuple(min(a + b, c + d) for a, b, c, d in zip(offset, lengths, place.offset, place.lengths, strict=True))
        if all(first < last for first, last in zip(begin, end, strict=True)):
            inside = tuple(first - start for first, start in zip(begin, offset, strict=True))
            into = tuple(first - start for first, start in zip(begin, place.offset, strict=True))
            size = tuple(last - first for first, last in zip(begin, end, strict=True))
            found.append((piece["file"], Read(name, inside, size, into, lengths)))
    if not found:  # the piece still says of which dtype nothing is
        piece, zeros = pieces[0], (0,) * len(place.lengths)
        nothing = tuple(map(min, place.lengths, piece["lengths"]))
        found.append((piece["file"], Read(name, zeros, nothing, zeros, tuple(piece["lengths"]))))
    return found


def require_shape(file: str, name: str, told: tuple[int, ...], there: tuple[int, ...] | None) -> None:
    """Compares what the manifest tells of a piece with what its file has.

    Raises:
        DamagedCheckpointError: It lies.
    """
    if told != there:
        is_there = "is not" if there is None else f"has the shape {list(there)}"
        raise DamagedCheckpointError(
            f"the manifest says that {file} holds {list(told)} of {name!r}, which {is_there} there"
        )


def wanted_place(name: str, shape: tuple[int, ...], wanted: Wanted) -> ShardRange:
    """The range that is read of a tensor."""
    place = wanted(name, shape)
    return place if place is not None and place.shape == shape else ShardRange.whole(shape)


def _take(source: Opened, shapes: Mapping[str, tuple[int, ...]], file: str, read: Read) -> "torch.Tensor":
    own = read.name.removeprefix(SIDECAR_PREFIX)
    require_shape(file, own, read.piece, shapes.get(own))
    # A sparse one, which is always whole, has no ranges.
    return source.take(own) if read.lengths == read.piece else source.take(own, read.begin, read.lengths)


def room(name: str, lengths: tuple[int, ...], dtype: "torch.dtype") -> "torch.Tensor":
    """Memory for a tensor.

    Raises:
        CheckpointError: There is not so much.
    """
    import torch

    try:
        tensor = torch.empty(lengths, dtype=dtype)
    except RuntimeError as error:
        raise CheckpointError(f"{name!r}, of the shape {list(lengths)}, does not fit into memory: {error}") from error
    _in_huge_pages(tensor)
    return tensor


def _in_huge_pages(tensor: "torch.Tensor") -> None:
    """Has memory that nobody has touched come in large pages: in small ones that takes longer than to read into it.

    Where the system has none, it stays as it is.
    """
    begin = -(-tensor.data_ptr() // _HUGE) * _HUGE
    whole = (tensor.data_ptr() + tensor.nbytes - begin) // _HUGE * _HUGE
    if whole > 0 and hasattr(mmap, "MADV_HUGEPAGE"):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(whole), mmap.MADV_HUGEPAGE)
