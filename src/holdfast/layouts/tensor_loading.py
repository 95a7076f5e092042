"""One file of tensors on its way into memory: what of it goes where, checked before anything of it is read."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from holdfast.errors import DamagedCheckpointError
from holdfast.layouts import tensor_headers
from holdfast.layouts.tensor_file import codes
from holdfast.layouts.tensor_reading import COMPONENTS, NOTES, as_it_was, explained
from holdfast.store import file_problems, files
from holdfast.store.manifest import File
from holdfast.store.reading import Source, Span

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
                    problem = file_problems.size_problem(file, size)
                    raise DamagedCheckpointError(f"{path.parent}: {problem}", [problem])
                with explained(path):
                    self._look(fd)
        except OSError as error:
            problem = file_problems.unreadable(file, error)
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
            return file_problems.changed(self.file)
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
