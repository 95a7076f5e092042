"""A checkpoint of the native layout on its way into memory, of which one process reads the ranges that it needs."""

from bisect import bisect_right, insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from holdfast.errors import CheckpointError, DamagedCheckpointError
from holdfast.layouts import image, native, ownership
from holdfast.layouts.image import decode_json
from holdfast.layouts.native_resized import resized
from holdfast.layouts.pieces import PiecesReader, Wanted
from holdfast.layouts.safetensors.reading import TensorFile
from holdfast.layouts.uploads import Uploads
from holdfast.state.part import BESIDE, RESERVED, SIDECAR_PREFIX, LoadedTensors, Stored
from holdfast.state.sharding import ShardRange
from holdfast.store import reading
from holdfast.store.folder import Folder
from holdfast.store.manifest import File

if TYPE_CHECKING:
    import torch

    from holdfast.devices.device import Device

# Tensors of cards that lie otherwise than in the file come through so much memory of the host.
_TOGETHER_BYTES = 64 << 20

NeededRange = Callable[[str, str, tuple[int, ...]], ShardRange | None]
"""For a part, a tensor's name and its whole shape: the range that this process needs; None for all of it."""

Neighbors = Callable[[str, Any], Mapping[str, "torch.Tensor"]]
"""For a part and the JSON that is stored of it: live tensors beside which its tensors will be, by name in the file."""


class NativeReading:
    """One process's reading of a checkpoint: known, compared and given its places before any tensor is read.

    Args:
        folder: The checkpoint, open.
        listed: The files that its manifest lists; no other file is read.
        tensors: The manifest's entries for tensors in pieces.
        rank: The number of this process.
        saved_by: The number of processes that wrote it.
        own: True where this process takes back what was its own: when as many processes go on.
        places: The ranges that are needed. Where it speaks of another whole shape, all is given. None: everything
            whole.
        memory: Live tensors by part and name, which are read into where they fit. All else goes to memory of its own.
        device: The cards of this process, whose memory is read into as well; None reads into the host's alone.
        neighbors: The places of memory of its own that is to be a card's. None: all such memory is the host's.

    Raises:
        DamagedCheckpointError: A file is not what the manifest says.
        CheckpointError: A file is not what the layout says.
    """

    def __init__(
        self,
        folder: Folder,
        listed: Sequence[File],
        tensors: native.Tensors,
        rank: int = 0,
        saved_by: int = 1,
        own: bool = False,
        places: NeededRange | None = None,
        memory: Mapping[str, Mapping[str, "torch.Tensor"]] | None = None,
        device: "Device | None" = None,
        neighbors: Neighbors | None = None,
    ) -> None:
        self._folder = folder
        self._listed = {file.path: file for file in listed}
        self._tensors = tensors
        self._places = places
        self._memory = memory or {}
        self._neighbors = neighbors
        self._uploads = None if device is None else Uploads(device, str(folder))
        self._reader = PiecesReader(folder, self._listed, self._uploads)
        self._taken: list[tuple[int, int]] = []
        self._later: list[tuple[Wanted, torch.Tensor]] = []
        self._own_files = ownership.own_tensors(self._listed)
        self._own_rests = ownership.own_rests(self._listed)
        native.refuse_unknown_pieces(self._listed, tensors)
        content = self._read_json(native.files_of_json(self._listed, rank, own=own))
        self.extra: dict[str, Any] = {name: content.pop(name) for name in RESERVED if name in content}
        """The JSON that belongs to no part, by name."""
        self.stored: dict[str, Stored] = {}
        """The checkpoint's content, by part. Its tensors have their values once `read` has returned."""
        self.refused: list[str] = []
        """Tensors that each rank had its own of, and that another number of processes cannot have."""
        self.differing: list[str] = []
        """The parts of which each rank had its own, and another number of processes is given rank 0's."""
        self.rank0_buffers: list[str] = []
        """The models of which each rank had buffers of its own, likewise."""
        for part, rest in content.items():
            self.stored[part] = self._own_part(part, rest, rank) if own else self._resized_part(part, rest, saved_by)
        self.beside = {name: self.stored.pop(name) for name in BESIDE if name in self.stored}
        """The content of files that are written as a part's and hold none, by the names of `state.part.BESIDE`."""
        self.not_of_rank0 = [] if own else sorted(self._own_rests.keys() - content.keys())
        """The parts that rank 0 did not have, and another number of processes is not given."""

    @property
    def refusal(self) -> str:
        """The driver's reason not to lock memory for what is read into cards; empty where there was none."""
        return "" if self._uploads is None else self._uploads.refusal

    def read(self, *, through_cache: bool = False) -> None:
        """Reads the tensors to where they go, several files and blocks at a time, and digests every file.

        Args:
            through_cache: True where other processes of this machine read the same files.

        Raises:
            DamagedCheckpointError: The bytes are not those that were written. The tensors they went into are worthless.
        """
        try:
            self._reader.read(through_cache=through_cache)
            for together in _in_turns(self._later):
                copies = [(live, self._reader.plan(wanted)) for wanted, live in together]
                self._reader.read(through_cache=through_cache)
                for live, copy in copies:
                    live.copy_(copy)
        finally:
            if self._uploads is not None:
                self._uploads.close()

    def _read_json(self, wanted: Mapping[str, str]) -> dict[str, Any]:
        content, problems = {}, []
        for name, path in wanted.items():
            file = self._listed[path]
            data, problem = reading.read_small(self._folder, file, image.MOST_JSON_BYTES)
            if problem is not None:
                problems.append(problem)
            else:
                content[name] = decode_json(data, self._folder.path / file.path)
        if problems:
            raise DamagedCheckpointError(f"{self._folder}: {'; '.join(problems)}", problems)
        return content

    def _own_part(self, part: str, rest: Any, rank: int) -> Stored:
        """Plans to read a part as this rank had it."""
        path = ownership.tensors_path(part, rank)
        own = self._whole_entries(path) if path in self._listed else {}
        note = ownership.note_of(part, rest)
        lacking = note.differing - own.keys() if rank else ()
        if lacking or (rank and note.rest and ownership.rest_path(part, rank) not in self._listed):
            lacks = repr(min(lacking)) if lacking else "what is no tensor"
            raise CheckpointError(f"{self._folder}: rank {rank} has {part} of its own, and no file has {lacks} of it")
        return self._part(part, rest, own)

    def _resized_part(self, part: str, rest: Any, saved_by: int) -> Stored:
        """Plans to read a part as another number of processes takes it."""
        files, other_rests = self._own_files.get(part, {}), self._own_rests.get(part, {})
        own = {rank: self._whole_entries(path) for rank, path in files.items() if rank < saved_by}
        if 0 in other_rests:  # only some ranks had it, rank 0 among them
            self.differing += [part] * (len(other_rests) > 1)
            return self._part(part, rest, own.get(0, {}))
        rests = [rest] * saved_by
        for rank, path in other_rests.items():
            if rank < saved_by:
                rests[rank] = self._read_json({part: path})[part]
        shapes = [{name: entry["shape"] for name, entry in own.get(rank, {}).items()} for rank in range(saved_by)]
        taken = resized(ownership.note_of(part, rest), rests, shapes)
        self.refused += [f"{part}.{name}" for name in taken.refused]
        self.differing += [part] * taken.differs
        if isinstance(rest, dict) and rest.get("kind") == "model" and files:
            self.rank0_buffers.append(part)
        return self._part(part, taken.rest, {name: own[rank][name] for name, rank in taken.source.items()})

    def _part(self, part: str, rest: Any, own: Mapping[str, Any]) -> Stored:
        """Plans to read a part: the tensors of `own` from files of a rank's own, and the others from those for all."""
        entries = dict(self._tensors.get(part) or self._entries_of_one_process(part))
        # Each of the files says all of them.
        first = next(
            (entry["pieces"][0]["file"] for name, entry in entries.items() if not name.startswith(SIDECAR_PREFIX)), None
        )
        metadata = {} if first is None else self._reader.file(first).metadata
        for path in {entry["pieces"][0]["file"] for entry in own.values()}:
            metadata = {**metadata, **self._reader.file(path).metadata}
        entries |= own
        tensors = LoadedTensors()
        beside = self._beside(part, rest)
        for name, entry in entries.items():
            inside = name if name in own else name.removeprefix(SIDECAR_PREFIX)
            place = self._place(part, name, tuple(entry["shape"]))
            wanted = self._reader.want(name, entry["pieces"], place, inside)
            live = self._live(part, name, wanted)
            if live is not None and not live.is_contiguous():
                tensors[name] = live
                self._later.append((wanted, live))
                continue
            tensors[name] = self._reader.plan(wanted, live, beside.get(name))
            if live is None:
                tensors.free.add(name)
        return Stored(tensors, rest, {name: first for name, first in metadata.items() if name != "format"})

    def _entries_of_one_process(self, part: str) -> dict[str, Any]:
        """Returns the entries that a manifest would have for a part that one process wrote."""
        entries = {}
        for ending, prefix in native.ENDINGS.items():
            if part + ending in self._listed:
                entries.update({prefix + name: entry for name, entry in self._whole_entries(part + ending).items()})
        return entries

    def _whole_entries(self, path: str) -> dict[str, Any]:
        file: TensorFile = self._reader.file(path)
        shapes = {name: file.shape(name) or () for name in sorted([*file.dense, *file.sparse])}
        return {
            name: {"shape": shape, "pieces": [{"file": path, "offset": [0] * len(shape), "lengths": shape}]}
            for name, shape in shapes.items()
        }

    def _place(self, part: str, name: str, shape: tuple[int, ...]) -> ShardRange:
        needed = self._places(part, name, shape) if self._places is not None else None
        return needed if needed is not None and needed.shape == shape else ShardRange.whole(shape)

    def _beside(self, part: str, rest: Any) -> Mapping[str, "torch.Tensor"]:
        """Returns tensors on cards beside which those of a part will be that have no memory yet."""
        uploads = self._uploads
        if uploads is None or self._neighbors is None:
            return {}
        return {name: tensor for name, tensor in self._neighbors(part, rest).items() if uploads.is_on_card(tensor)}

    def _live(self, part: str, name: str, wanted: Wanted) -> "torch.Tensor | None":
        """Returns the live memory for a tensor, if it can be read into, and no other tensor is.

        It is that of the host in the order of the tensor's indices, or a card's, in any order.
        """
        tensor = self._memory.get(part, {}).get(name)
        if tensor is None or wanted.sparse is not None or not _is_plain(tensor):
            return None
        is_on_card = self._uploads is not None and self._uploads.is_on_card(tensor)
        if not is_on_card and not (tensor.device.type == "cpu" and tensor.is_contiguous()):
            return None
        if tensor.dtype != wanted.dtype or tuple(tensor.shape) != wanted.lengths:
            return None
        begin, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        at = bisect_right(self._taken, (begin, end))
        if any(first < end and begin < last for first, last in self._taken[max(0, at - 1) : at + 1]):
            return None
        insort(self._taken, (begin, end))
        return tensor.detach()


def _in_turns(planned: Sequence[tuple[Wanted, "torch.Tensor"]]) -> Iterator[list[tuple[Wanted, "torch.Tensor"]]]:
    """Yields them in their order, few at a time: each turn is in the host's memory at once."""
    together: list[tuple[Wanted, torch.Tensor]] = []
    size = 0
    for wanted, live in planned:
        if together and size + live.nbytes > _TOGETHER_BYTES:
            yield together
            together, size = [], 0
        together.append((wanted, live))
        size += live.nbytes
    if together:
        yield together


def _is_plain(tensor: "torch.Tensor") -> bool:
    """Tells whether a tensor's bytes lie side by side in memory, in whichever order, and mean what they say."""
    import torch

    from holdfast.state.values import is_gapless

    return (
        tensor.layout == torch.strided
        and is_gapless(tensor.shape, tensor.stride())
        and not tensor.is_quantized
        and not tensor.is_conj()
        and not tensor.is_neg()
        and not hasattr(tensor, "__tensor_flatten__")
        and bool(tensor.nbytes)
    )
