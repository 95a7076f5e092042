"""Tensors put together from the pieces that several processes wrote. Of each file only the wanted ranges are read.

The intersections of boxes are computed here and not by the planner of `torch.distributed.checkpoint`: it gives the same
(a test compares them), and to import it takes a second and a half, which a resume of one process and the verbs would
pay too.
"""

import ctypes
import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.errors import CheckpointError, DamagedCheckpointError
from holdfast.layouts.safetensors.reading import TensorFile
from holdfast.state.sharding import ShardRange
from holdfast.store import reading
from holdfast.store.manifest import File

if TYPE_CHECKING:
    import torch

    LiveMemory = Callable[[tuple[int, ...], torch.dtype], torch.Tensor | None]

_HUGE = 2 << 20


@dataclass(frozen=True)
class Read:
    """One range to read of one piece.

    Args:
        begin: The range's beginning in the piece, along each dimension.
        lengths: Its lengths.
        place: Its beginning in the tensor that is put together.
        piece: The shape of the piece.
    """

    begin: tuple[int, ...]
    lengths: tuple[int, ...]
    place: tuple[int, ...]
    piece: tuple[int, ...]


class PiecesReader:
    """The tensor files of one checkpoint. Ranges of tensors are planned first, then read together.

    Args:
        directory: The checkpoint.
        folder: It, open.
        listed: The files that its manifest lists, by path.
    """

    def __init__(self, directory: Path, folder: int, listed: Mapping[str, File]) -> None:
        self._directory = directory
        self._folder = folder
        self._listed = listed
        self._files: dict[str, TensorFile] = {}

    def file(self, path: str) -> TensorFile:
        """Returns a file of tensors; its header is read and checked once.

        Raises:
            DamagedCheckpointError: It is not what the manifest says.
            CheckpointError: It is no file of tensors.
        """
        if path not in self._files:
            self._files[path] = TensorFile(self._folder, self._listed[path], self._directory / path)
        return self._files[path]

    def plan(
        self,
        name: str,
        pieces: Sequence[Mapping[str, Any]],
        place: ShardRange,
        inside: str | None = None,
        live: "LiveMemory | None" = None,
    ) -> "tuple[torch.Tensor, bool]":
        """Plans to read a range of a tensor.

        Args:
            name: The tensor, for messages.
            pieces: The manifest's entries for its pieces.
            place: The range.
            inside: Its name in the files, where that is another one.
            live: Called with the range's shape and dtype; returns live memory to read it into, or None.

        Returns:
            The tensor, which has its values once `read` has returned, and whether it is live memory.

        Raises:
            DamagedCheckpointError: A file holds another thing than the manifest says.
            CheckpointError: The tensor does not fit into memory.
        """
        inside = inside or name
        parts = [(self.file(path), read) for path, read in reads(pieces, place)]
        for file, read in parts:
            require_shape(file.file.path, inside, read.piece, file.shape(inside))
        first = parts[0][0]
        if inside in first.sparse:  # always whole
            return first.sparse[inside], False
        dtype = first.dense[inside].dtype
        if any(inside not in file.dense or file.dense[inside].dtype != dtype for file, _ in parts):
            raise DamagedCheckpointError(f"{self._directory}: the pieces of {name!r} are of several dtypes")
        memory = live(place.lengths, dtype) if live is not None else None
        tensor = new_memory(name, place.lengths, dtype) if memory is None else memory
        for file, read in parts:
            into = tensor
            for dimension, (begin, length) in enumerate(zip(read.place, read.lengths, strict=True)):
                into = into.narrow(dimension, begin, length)
            file.bring(inside, read.begin, read.lengths, into)
        return tensor, memory is not None

    def read(self, *, through_cache: bool = False) -> None:
        """Reads all that was planned since the last time, several files and blocks at a time, and digests it.

        Args:
            through_cache: Whether other processes of this machine read the same files.

        Raises:
            DamagedCheckpointError: The bytes are not those that were written. The tensors they went into are worthless.
        """
        sources = [file.source() for file in self._files.values()]
        reading.read(self._folder, sources, through_cache=through_cache)
        problems = [source.problem for source in sources if source.problem is not None]
        if not problems:
            problems = [problem for file in self._files.values() if (problem := file.finish()) is not None]
        if problems:
            raise DamagedCheckpointError(f"{self._directory}: {'; '.join(problems)}", problems)


def reads(pieces: Sequence[Mapping[str, Any]], place: ShardRange) -> list[tuple[str, Read]]:
    """Returns the ranges of pieces that make up a place, each with its file; an empty one of the first if it is empty.

    Args:
        pieces: The manifest's entries for a tensor's pieces.
        place: The range that is put together.
    """
    parts = []
    for piece in pieces:
        offset, lengths = tuple(piece["offset"]), tuple(piece["lengths"])
        begin = tuple(map(max, offset, place.offset))
        end = tuple(min(a + b, c + d) for a, b, c, d in zip(offset, lengths, place.offset, place.lengths, strict=True))
        if all(first < last for first, last in zip(begin, end, strict=True)):
            inside = tuple(first - start for first, start in zip(begin, offset, strict=True))
            into = tuple(first - start for first, start in zip(begin, place.offset, strict=True))
            size = tuple(last - first for first, last in zip(begin, end, strict=True))
            parts.append((piece["file"], Read(inside, size, into, lengths)))
    if not parts:  # the piece still says of which dtype nothing is
        piece, zeros = pieces[0], (0,) * len(place.lengths)
        nothing = tuple(map(min, place.lengths, piece["lengths"]))
        parts.append((piece["file"], Read(zeros, nothing, zeros, tuple(piece["lengths"]))))
    return parts


def require_shape(file: str, name: str, listed: tuple[int, ...], present: tuple[int, ...] | None) -> None:
    """Compares the shape that the manifest gives a piece with the one that its file has.

    Raises:
        DamagedCheckpointError: They differ.
    """
    if listed != present:
        is_there = "is not" if present is None else f"has the shape {list(present)}"
        raise DamagedCheckpointError(
            f"the manifest says that {file} holds {list(listed)} of {name!r}, which {is_there} there"
        )


def new_memory(name: str, lengths: tuple[int, ...], dtype: "torch.dtype") -> "torch.Tensor":
    """Returns memory for a tensor, with no values yet.

    Raises:
        CheckpointError: There is not so much.
    """
    import torch

    try:
        tensor = torch.empty(lengths, dtype=dtype)
    except RuntimeError as error:
        raise CheckpointError(f"{name!r}, of the shape {list(lengths)}, does not fit into memory: {error}") from error
    _use_huge_pages(tensor)
    return tensor


def _use_huge_pages(tensor: "torch.Tensor") -> None:
    """Has memory that nobody has touched come in large pages: in small ones that takes longer than to read into it.

    Where the system has none, it stays as it is.
    """
    begin = -(-tensor.data_ptr() // _HUGE) * _HUGE
    whole = (tensor.data_ptr() + tensor.nbytes - begin) // _HUGE * _HUGE
    if whole > 0 and hasattr(mmap, "MADV_HUGEPAGE"):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(whole), mmap.MADV_HUGEPAGE)
