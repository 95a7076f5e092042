"""A checkpoint of the native layout on its way into memory, of which one process reads what it needs."""

from bisect import bisect_right, insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.errors import DamagedCheckpointError
from holdfast.layouts import image, native
from holdfast.layouts.image import decode_json
from holdfast.layouts.pieces import reads, require_shape, room, wanted_place
from holdfast.layouts.safetensors.reading import TensorFile
from holdfast.state.part import RESERVED, SIDECAR_PREFIX, LoadedTensors, Stored
from holdfast.state.sharding import ShardRange
from holdfast.store import files, reading
from holdfast.store.manifest import File

if TYPE_CHECKING:
    import torch

TensorRanges = Callable[[str, str, tuple[int, ...]], ShardRange | None]
"""For a part, a tensor's name and its whole shape, which range this process needs; None for all of it."""


class NativeReading:
    """What one process needs of a checkpoint: known, compared and given its places before any tensor is read.

    Args:
        directory: The checkpoint.
        folder: It, open.
        listed: What its manifest lists; no other file is read.
        tensors: What its manifest says of tensors in pieces.
        rank: The number of this process.
        own: Whether this process takes back what it had other values of than rank 0: when as many processes go on.
        places: Which ranges are needed. Where it speaks of another whole shape, all is given. None: everything whole.
        memory: Live tensors by part and name, which are read into where they fit. All else goes to memory of its own.

    Raises:
        DamagedCheckpointError: A file is not what the manifest says.
        CheckpointError: A file is not what the layout says.
    """

    def __init__(
        self,
        directory: Path,
        folder: int,
        listed: Sequence[File],
        tensors: native.Tensors,
        rank: int = 0,
        own: bool = False,
        places: TensorRanges | None = None,
        memory: Mapping[str, Mapping[str, "torch.Tensor"]] | None = None,
    ) -> None:
        self._directory = directory
        self._folder = folder
        self._listed = {file.path: file for file in listed}
        self._tensors = tensors
        self._places = places
        self._memory = memory or {}
        self._files: dict[str, TensorFile] = {}
        self._taken: list[tuple[int, int]] = []
        native.refuse_unknown_pieces(self._listed, tensors)
        content = self._read_json(native.names_of_json(self._listed, rank))
        self.extra: dict[str, Any] = {name: content.pop(name) for name in RESERVED if name in content}
        """What belongs to no part."""
        self.stored: dict[str, Stored] = {
            part: self._part(part, rest, native.own_path(part, rank) if own else "") for part, rest in content.items()
        }
        """What the checkpoint holds of each part. Its tensors have their values once `read` has returned."""

    def read(self, *, through_cache: bool = False) -> None:
        """Reads the tensors to where they go, several files and blocks at a time, and digests every file.

        Args:
            through_cache: Whether other processes of this machine read the same files.

        Raises:
            DamagedCheckpointError: The bytes are not those that were written. What they went into is worth nothing.
        """
        sources = [file.source() for file in self._files.values()]
        reading.read(self._folder, sources, through_cache=through_cache)
        problems = [source.problem for source in sources if source.problem is not None]
        if not problems:
            problems = [problem for file in self._files.values() if (problem := file.finish()) is not None]
        if problems:
            raise DamagedCheckpointError(f"{self._directory}: {'; '.join(problems)}", problems)

    def _read_json(self, wanted: Mapping[str, str]) -> dict[str, Any]:
        found, problems = {}, []
        for name, stem in wanted.items():
            file = self._listed[stem + native.REST]
            data, problem = reading.small(self._folder, file, image.MOST_JSON_BYTES)
            if problem is not None:
                problems.append(problem)
            else:
                found[name] = decode_json(data, self._directory / file.path)
        if problems:
            raise DamagedCheckpointError(f"{self._directory}: {'; '.join(problems)}", problems)
        return found

    def _file(self, path: str) -> TensorFile:
        if path not in self._files:
            self._files[path] = TensorFile(self._folder, self._listed[path], self._directory / path)
        return self._files[path]

    def _part(self, part: str, rest: Any, own: str) -> Stored:
        told = dict(self._tensors.get(part) or self._of_one_process(part))
        # Each of the files says all of them.
        first = next(
            (entry["pieces"][0]["file"] for name, entry in told.items() if not name.startswith(SIDECAR_PREFIX)), None
        )
        metadata = {} if first is None else self._file(first).metadata
        if own in self._listed:
            told |= self._whole_in(own)
        tensors = LoadedTensors()
        for name, entry in told.items():
            tensors[name], is_live = self._tensor(part, name, entry, plain=entry["pieces"][0]["file"] == own)
            if not is_live:
                tensors.free.add(name)
        return Stored(tensors, rest, {name: kept for name, kept in metadata.items() if name != "format"})

    def _of_one_process(self, part: str) -> dict[str, Any]:
        """What a manifest would say of a part that one process wrote."""
        found = {}
        for ending, prefix in native.ENDINGS.items():
            if part + ending in self._listed:
                found.update({prefix + name: entry for name, entry in self._whole_in(part + ending).items()})
        return found

    def _whole_in(self, path: str) -> dict[str, Any]:
        file = self._file(path)
        shapes = {name: file.shape(name) or () for name in sorted([*file.dense, *file.sparse])}
        return {
            name: {"shape": shape, "pieces": [{"file": path, "offset": [0] * len(shape), "lengths": shape}]}
            for name, shape in shapes.items()
        }

    def _tensor(self, part: str, name: str, entry: Mapping[str, Any], *, plain: bool) -> tuple["torch.Tensor", bool]:
        """Where a tensor goes, and whether that is live memory."""
        place = wanted_place(
            name, tuple(entry["shape"]), lambda name, shape: self._places and self._places(part, name, shape)
        )
        inside = name if plain else name.removeprefix(SIDECAR_PREFIX)
        pieces = [(self._file(file), read) for file, read in reads(name, entry["pieces"], place)]
        for file, read in pieces:
            require_shape(file.file.path, inside, read.piece, file.shape(inside))
        if inside in pieces[0][0].sparse:  # always whole
            return pieces[0][0].sparse[inside], False
        dtypes = {file.dense[inside].dtype if inside in file.dense else None for file, _ in pieces}
        dtype = pieces[0][0].dense[inside].dtype
        if len(dtypes) > 1:
            raise DamagedCheckpointError(f"{self._directory}: the pieces of {name!r} are of several dtypes")
        live = self._live(part, name, place.lengths, dtype)
        tensor = room(name, place.lengths, dtype) if live is None else live
        for file, read in pieces:
            into = tensor
            for dimension, (begin, length) in enumerate(zip(read.place, read.lengths, strict=True)):
                into = into.narrow(dimension, begin, length)
            file.bring(inside, read.begin, read.lengths, into)
        return tensor, live is not None

    def _live(self, part: str, name: str, lengths: tuple[int, ...], dtype: "torch.dtype") -> "torch.Tensor | None":
        """The live memory for a tensor, if it can be read into as it is, and no other tensor is."""
        found = self._memory.get(part, {}).get(name)
        if found is None or found.dtype != dtype or tuple(found.shape) != lengths or not _is_plain(found):
            return None
        begin, end = found.data_ptr(), found.data_ptr() + found.nbytes
        at = bisect_right(self._taken, (begin, end))
        if any(first < end and begin < last for first, last in self._taken[max(0, at - 1) : at + 1]):
            return None
        insort(self._taken, (begin, end))
        return found.detach()


@contextmanager
def opened(directory: Path, listed: Sequence[File], tensors: native.Tensors, **what: Any) -> Iterator[NativeReading]:
    """Opens a checkpoint for `NativeReading`, once: whatever has its name later, these are the files that are read."""
    with ExitStack() as opening:
        try:
            folder = opening.enter_context(files.open_folder(directory))
        except OSError as error:
            problem = f"it cannot be opened: {error.strerror or error}"
            raise DamagedCheckpointError(f"{directory}: {problem}", [problem]) from error
        yield NativeReading(directory, folder, listed, tensors, **what)


def _is_plain(tensor: "torch.Tensor") -> bool:
    """Whether the bytes of a tensor lie in host memory, in the order of its indices, and are what they say."""
    import torch

    return (
        tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.is_contiguous()
        and not tensor.is_quantized
        and not tensor.is_conj()
        and not tensor.is_neg()
        and not hasattr(tensor, "__tensor_flatten__")
        and bool(tensor.nbytes)
    )
