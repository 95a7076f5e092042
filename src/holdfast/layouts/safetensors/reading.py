"""One file of tensors on its way into memory: what of it goes where, checked before anything of it is read."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from holdfast.errors import DamagedCheckpointError
from holdfast.layouts.safetensors import header as tensor_headers
from holdfast.layouts.safetensors.dtypes import COMPONENTS, NOTES, codes
from holdfast.store import files, reading
from holdfast.store.manifest import File
from holdfast.store.reading import Source, Span

if TYPE_CHECKING:
    import torch

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from holdfast.errors import CheckpointError

if TYPE_CHECKING:
    import torch


class Dense(NamedTuple):
    """A tensor as it lies in the file: its dtype and shape as they were before it was written, and its place."""

    dtype: "torch.dtype"
    shape: tuple[int, ...]
    offset: int


class TensorFile:
    """A file in the safetensors format, of which some goes into memory when it is read.

    Args:
        folder: The open directory of the checkpoint.
        file: What the manifest says of the file.
        path: What to call it.

    Raises:
        DamagedCheckpointError: It is not there, or of another size.
        CheckpointError: It is no such file.
    """

    def __init__(self, folder: int, file: File, path: Path) -> None:
        self.file = file
        self._used: list[tuple[bytes, int]] = []
        try:
            with files.open_inside(folder, file.path) as fd:
                size = os.fstat(fd).st_size
                if size != file.size:
                    problem = reading.size_problem(file, size)
                    raise DamagedCheckpointError(f"{path.parent}: {problem}", [problem])
                with explained(path):
                    self._look(fd)
        except OSError as error:
            problem = reading.unreadable(file, error)
            raise DamagedCheckpointError(f"{path.parent}: {problem}", [problem]) from error
        self._spans: dict[str, Span] = {}
        self._buffers: list[tuple[bytes, bytearray]] = []
        self._copies: list[tuple[torch.Tensor, torch.Tensor]] = []

    def _look(self, fd: int) -> None:
        header = tensor_headers.header_of(fd)
        self.metadata = dict(header.metadata)
        self._notes: dict[str, Any] = json.loads(self.metadata.pop(NOTES, "{}"))
        self._plain = header.tensors
        self._used.append((header.text, 0))
        sparse = {name: note for name, note in self._notes.items() if "layout" in note}
        components = {f"{name}.{part}" for name, note in sparse.items() for part in COMPONENTS[note["layout"]]}
        self.sparse = {name: self._read_sparse(fd, name) for name in sparse if name not in components}
        plain = dict.fromkeys([*header.tensors, *self._notes])
        self.dense = {name: self._dense(name) for name in plain if name not in components and name not in sparse}

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a tensor; None where there is none of that name."""
        if name in self.sparse:
            return tuple(self.sparse[name].shape)
        return self.dense[name].shape if name in self.dense else None

    def bring(self, name: str, begin: Sequence[int], lengths: Sequence[int], into: "torch.Tensor") -> None:
        """Has a range of a dense tensor read into another tensor, of the same dtype and of the range's shape."""
        import torch

        if name in self._spans:
            raise DamagedCheckpointError(f"the manifest has two places for {name!r} of {self.file.path}")
        if not into.numel():
            return
        dtype, shape, offset = self.dense[name]
        rows = range(begin[0], begin[0] + lengths[0]) if shape else range(1)
        whole = torch.empty(shape, dtype=dtype, device="meta")
        part = _range(whole, begin, lengths)
        if part.is_contiguous() and into.is_contiguous():
            self._spans[name] = Span(offset + int(part.storage_offset()) * dtype.itemsize, _bytes_of(into))
            return
        # Its bytes do not follow each other, there or here: its rows are read whole, and copied from there.
        read = torch.empty((len(rows), *shape[1:]), dtype=dtype)
        first = int(whole[rows.start :].storage_offset()) if shape else 0
        self._spans[name] = Span(offset + first * dtype.itemsize, _bytes_of(read))
        self._copies.append((into, _range(read, (0, *begin[1:]), lengths)))

    def source(self) -> Source:
        """What is to be read."""
        spans = [*self._spans.values()]
        for data, offset in self._used:
            self._buffers.append((data, bytearray(len(data))))
            spans.append(Span(offset, memoryview(self._buffers[-1][1])))
        return Source(self.file, sorted(spans, key=lambda span: span.offset))

    def finish(self) -> str | None:
        """Copies to its place what was read elsewhere. Gives what is wrong: what was used is not what was read."""
        if any(data != read for data, read in self._buffers):
            return reading.changed(self.file)
        for into, read in self._copies:
            into.copy_(read)
        return None

    def _dense(self, name: str) -> Dense:
        import torch

        note, plain = self._notes.get(name), self._plain[name]
        dtype = codes()[plain.dtype] if note is None else getattr(torch, note["dtype"])
        shape = plain.shape if note is None else tuple(note["shape"])
        found = torch.empty(shape, dtype=dtype, device="meta")
        if found.nbytes != plain.bytes:
            raise ValueError(f"{name!r} has {plain.bytes:,} bytes, and {found.nbytes:,} by its shape and type")
        return Dense(dtype, shape, plain.offset)

    def _read_sparse(self, fd: int, name: str) -> "torch.Tensor":
        """A sparse tensor, which nothing but its values makes one: they are read now, and once more with the rest."""
        import torch

        note = self._notes.get(name, {})
        if "layout" in note:
            parts = COMPONENTS[note["layout"]]
            return as_it_was(note, [self._read_sparse(fd, f"{name}.{part}") for part in parts])
        dtype, shape, offset = self._dense(name)
        size = self._plain[name].bytes
        data = tensor_headers.exactly(fd, size, offset)
        self._used.append((bytes(data), offset))
        return torch.frombuffer(data, dtype=dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)


def _range(tensor: "torch.Tensor", begin: Sequence[int], lengths: Sequence[int]) -> "torch.Tensor":
    for dimension, (first, length) in enumerate(zip(begin, lengths, strict=True)):
        tensor = tensor.narrow(dimension, first, length)
    return tensor


def _bytes_of(tensor: "torch.Tensor") -> memoryview:
    import torch

    data: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(data)


@contextmanager
def opened(path: Path) -> "Iterator[Opened]":
    """Opens a file of `tensor_file.image`, to read some of it.

    Raises:
        CheckpointError: It is no such file.
    """
    from safetensors import safe_open

    with explained(path):
        file = safe_open(path, framework="pt")
    with file:
        yield Opened(path, file)


class Opened:
    """An open file of tensors. What it gives is the file's memory."""

    def __init__(self, path: Path, file: Any) -> None:
        self._path = path
        self._file = file
        with explained(path):
            self.metadata: dict[str, str] = dict(file.metadata() or {})
            self._notes = json.loads(self.metadata.pop(NOTES, "{}"))
            components = {f"{name}.{part}" for name, note in self._notes.items() for part in _components(note)}
            found = dict.fromkeys([*file.keys(), *self._notes])
            self._names = [name for name in found if name not in components]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors that it holds, as they were before they were written, each with its shape.

        Raises:
            CheckpointError: The file lies about one.
        """
        with explained(self._path):
            return {
                name: tuple(
                    self._notes[name]["shape"] if name in self._notes else self._file.get_slice(name).get_shape()
                )
                for name in self._names
            }

    def take(self, name: str, begin: Sequence[int] = (), lengths: Sequence[int] | None = None) -> "torch.Tensor":
        """A tensor, or a range of it.

        Args:
            name: What it is called.
            begin: Where the range begins, along each dimension.
            lengths: How long it is there. None: the whole tensor.

        Raises:
            CheckpointError: There is no such tensor, or the file lies about it.
        """
        with explained(self._path):
            if name in self._notes or not lengths:
                whole = self._whole(name)
                return whole if not lengths else whole[_ranges(begin, lengths)]
            part: torch.Tensor = self._file.get_slice(name)[_ranges(begin, lengths)]
            return part

    def _whole(self, name: str) -> "torch.Tensor":
        note = self._notes.get(name)
        if note is None:
            found: torch.Tensor = self._file.get_tensor(name)
            return found
        # The components of a sparse tensor may have notes of their own.
        parts = [f"{name}.{part}" for part in _components(note)]
        return as_it_was(note, [self._whole(part) for part in parts] if parts else [self._file.get_tensor(name)])


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Says of which file it was that something is wrong."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError, RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a file of tensors that this Holdfast can read: {error}") from error


def _components(note: Mapping[str, Any]) -> tuple[str, ...]:
    return COMPONENTS[note["layout"]] if "layout" in note else ()


def _ranges(begin: Sequence[int], lengths: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(first, first + length) for first, length in zip(begin, lengths, strict=True))


def as_it_was(note: Mapping[str, Any], held: Sequence["torch.Tensor"]) -> "torch.Tensor":
    """The tensor that a note speaks of, from the plain ones. Whatever is wrong with the note raises something."""
    import torch

    shape = tuple(note["shape"])
    if "layout" in note:
        layout = note["layout"]
        if layout == "sparse_coo":
            coalesced = note["coalesced"] is True
            indices, values = held
            return torch.sparse_coo_tensor(indices, values, shape, is_coalesced=coalesced, check_invariants=True)
        outer, inner, values = held
        kind = getattr(torch, layout)
        return torch.sparse_compressed_tensor(outer, inner, values, shape, layout=kind, check_invariants=True)
    dtype = getattr(torch, note["dtype"])
    # Clones: the bytes lie anywhere in the file, and torch may die of complex numbers at an odd place.
    (only,) = (one.clone(memory_format=torch.contiguous_format) for one in held)
    if dtype.is_complex:
        return torch.view_as_complex(only).to(dtype).reshape(shape)
    return only.view(dtype).reshape(shape)
