"""Tensors put together from the pieces that several processes wrote. Of each file only the wanted ranges are read.

The intersections of boxes are computed here and not by the planner of `torch.distributed.checkpoint`: it gives the same
(a test compares them), and to import it takes a second and a half, which a resume of one process and the verbs would
pay too.
"""

import ctypes
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from holdfast.errors import CheckpointError, DamagedCheckpointError
from holdfast.layouts.safetensors.reading import TensorFile
from holdfast.state.sharding import ShardRange
from holdfast.store import reading
from holdfast.store.folder import Folder
from holdfast.store.manifest import File
from holdfast.text import quoted

if TYPE_CHECKING:
    import torch

    from holdfast.layouts.uploads import Uploads

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


@dataclass(frozen=True)
class Wanted:
    """A range of a tensor that is to be read, and the files that hold it.

    Args:
        name: The tensor, for messages.
        inside: Its name in the files.
        lengths: The range's shape.
        parts: The files, each with the range of its piece.
        dtype: The dtype.
        sparse: The tensor itself, where it is sparse: it is always whole, and read already.
    """

    name: str
    inside: str
    lengths: tuple[int, ...]
    parts: Sequence[tuple[TensorFile, Read]]
    dtype: "torch.dtype"
    sparse: "torch.Tensor | None" = None


class PiecesReader:
    """The tensor files of one checkpoint. Ranges of tensors are planned first, then read together.

    Args:
        folder: The checkpoint, open.
        listed: The files that its manifest lists, by path.
        uploads: The way to memory of cards; None where nothing is read into that.
    """

    def __init__(self, folder: Folder, listed: Mapping[str, File], uploads: "Uploads | None" = None) -> None:
        self._folder = folder
        self._listed = listed
        self._uploads = uploads
        self._files: dict[str, TensorFile] = {}

    def file(self, path: str) -> TensorFile:
        """Returns a file of tensors; its header is read and checked once.

        Raises:
            DamagedCheckpointError: It is not what the manifest says.
            CheckpointError: It is no file of tensors.
        """
        if path not in self._files:
            self._files[path] = TensorFile(self._folder, self._listed[path], self._folder.path / path)
        return self._files[path]

    def want(
        self, name: str, pieces: Sequence[Mapping[str, Any]], place: ShardRange, inside: str | None = None
    ) -> Wanted:
        """Returns a range of a tensor, compared with the files that hold it.

        Args:
            name: The tensor, for messages.
            pieces: The manifest's entries for its pieces.
            place: The range.
            inside: Its name in the files, where that is another one.

        Raises:
            DamagedCheckpointError: A file holds another thing than the manifest says.
        """
        inside = inside or name
        parts = [(self.file(path), read) for path, read in reads(pieces, place)]
        for file, read in parts:
            require_shape(file.file.path, inside, read.piece, file.shape(inside))
        first = parts[0][0]
        if inside in first.sparse:
            return Wanted(name, inside, place.lengths, parts, first.sparse[inside].dtype, first.sparse[inside])
        dtype = first.dense[inside].dtype
        if any(inside not in file.dense or file.dense[inside].dtype != dtype for file, _ in parts):
            raise DamagedCheckpointError(f"{self._folder}: the pieces of {quoted(name)} are of several dtypes")
        return Wanted(name, inside, place.lengths, parts, dtype)

    def plan(
        self, wanted: Wanted, live: "torch.Tensor | None" = None, beside: "torch.Tensor | None" = None
    ) -> "torch.Tensor":
        """Plans to read a range of a tensor.

        Args:
            wanted: The range.
            live: Live memory of its shape and dtype to read it into; None reads it into memory of its own.
            beside: A tensor on the card whose memory that is to be; None makes it the host's.

        Returns:
            The tensor, which has its values once `read` has returned.

        Raises:
            CheckpointError: It does not fit into memory.
        """
        if wanted.sparse is not None:
            return wanted.sparse
        tensor = live
        if tensor is None and beside is not None:
            tensor = new_memory_beside(beside, wanted.lengths, wanted.dtype)
        uploads = None if tensor is None else self._uploads
        if tensor is None:
            tensor = new_memory(wanted.name, wanted.lengths, wanted.dtype)
        for file, read in wanted.parts:
            into = tensor
            for dimension, (begin, length) in enumerate(zip(read.place, read.lengths, strict=True)):
                into = into.narrow(dimension, begin, length)
            file.bring(wanted.inside, read.begin, read.lengths, into, uploads)
        return tensor

    def read(self, *, through_cache: bool = False) -> None:
        """Reads all that was planned since the last time, several files and blocks at a time, and digests it.

        Args:
            through_cache: True where other processes of this machine read the same files.

        Raises:
            DamagedCheckpointError: The bytes are not those that were written. The tensors they went into are worthless.
        """
        sources = [file.source() for file in self._files.values()]
        uploads = self._uploads if self._uploads is not None and self._uploads.are_wanted else None
        if uploads is not None:
            uploads.begin()
        try:
            reading.read(self._folder, sources, through_cache=through_cache, uploads=uploads)
        finally:
            if uploads is not None:
                uploads.finish()
        problems = [source.problem for source in sources if source.problem is not None]
        if not problems:
            problems = [problem for file in self._files.values() if (problem := file.finish()) is not None]
        if problems:
            raise DamagedCheckpointError(f"{self._folder}: {'; '.join(problems)}", problems)


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
            f"the manifest says that {file} holds {list(listed)} of {quoted(name)}, which {is_there} there"
        )


def new_memory(name: str, lengths: tuple[int, ...], dtype: "torch.dtype") -> "torch.Tensor":
    """Returns memory for a tensor, with no values yet.

    Raises:
        CheckpointError: There is not so much.
    """
    import torch

    try:
        tensor = torch.empty(lengths, dtype=dtype, device="cpu")  # whatever the script has made the default
    except RuntimeError as error:
        raise CheckpointError(
            f"{quoted(name)}, of the shape {list(lengths)}, does not fit into memory: {error}"
        ) from error
    _use_huge_pages(tensor)
    return tensor


def new_memory_beside(tensor: "torch.Tensor", lengths: tuple[int, ...], dtype: "torch.dtype") -> "torch.Tensor | None":
    """Returns memory where a tensor is, with no values yet; None if that card has not so much."""
    import torch

    try:
        return torch.empty(lengths, dtype=dtype, device=tensor.device)
    except torch.OutOfMemoryError:
        return None


def _use_huge_pages(tensor: "torch.Tensor") -> None:
    """Has memory that nobody has touched come in large pages: in small ones that takes longer than to read into it.

    Where the system has none, it stays as it is.
    """
    begin = -(-tensor.data_ptr() // _HUGE) * _HUGE
    whole = (tensor.data_ptr() + tensor.nbytes - begin) // _HUGE * _HUGE
    if whole > 0 and hasattr(mmap, "MADV_HUGEPAGE"):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(whole), mmap.MADV_HUGEPAGE)
