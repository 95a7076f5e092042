"""One file of tensors on its way into memory: which range of it goes to which place, checked before any is read."""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from holdfast.errors import CheckpointError, DamagedCheckpointError
from holdfast.layouts.safetensors import header as headers
from holdfast.layouts.safetensors.dtypes import COMPONENTS, NOTES, codes
from holdfast.store import files, reading
from holdfast.store.folder import Folder
from holdfast.store.manifest import File, strict_json
from holdfast.store.reading import Source, Span
from holdfast.text import quoted

if TYPE_CHECKING:
    import torch

    from holdfast.layouts.uploads import Uploads


class Dense(NamedTuple):
    """A tensor as it lies in the file: its dtype and shape as they were before it was written, and its place."""

    dtype: "torch.dtype"
    shape: tuple[int, ...]
    offset: int


class TensorFile:
    """A file in the safetensors format, of which ranges are brought into memory.

    A round of reading is: `bring` for each range, `source` for the reader, `finish`. Another round may follow.

    Args:
        folder: The open directory of the checkpoint.
        file: The manifest's entry for the file.
        path: Its path, for messages.

    Raises:
        DamagedCheckpointError: It is not there, or of another size.
        CheckpointError: It is no such file.
    """

    def __init__(self, folder: Folder, file: File, path: Path) -> None:
        self.file = file
        self._unproved: list[tuple[bytes, int]] = []
        try:
            with files.open_inside(folder, file.path) as fd:
                size = os.fstat(fd).st_size
                if size != file.size:
                    problem = reading.size_problem(file, size)
                    raise DamagedCheckpointError(f"{path.parent}: {problem}", [problem])
                with explained(path):
                    self._read_header(fd)
        except OSError as error:
            problem = reading.unreadable(file, error)
            raise DamagedCheckpointError(f"{path.parent}: {problem}", [problem]) from error
        self._spans: dict[str, Span] = {}
        self._second_looks: list[tuple[bytes, bytearray]] = []
        self._copies: list[tuple[torch.Tensor, torch.Tensor]] = []

    def _read_header(self, fd: int) -> None:
        header = headers.header_of(fd)
        self.metadata = dict(header.metadata)
        self._notes: dict[str, Any] = strict_json(self.metadata.pop(NOTES, "{}"))
        self._plain = header.tensors
        self._unproved.append((header.text, 0))
        sparse = {name: note for name, note in self._notes.items() if "layout" in note}
        components = {f"{name}.{part}" for name, note in sparse.items() for part in COMPONENTS[note["layout"]]}
        self.sparse = {name: self._read_sparse(fd, name) for name in sparse if name not in components}
        plain = dict.fromkeys([*header.tensors, *self._notes])
        self.dense = {name: self._dense(name) for name in plain if name not in components and name not in sparse}

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Returns the shape of a tensor; None where there is none of that name."""
        if name in self.sparse:
            return tuple(self.sparse[name].shape)
        return self.dense[name].shape if name in self.dense else None

    def bring(
        self,
        name: str,
        begin: Sequence[int],
        lengths: Sequence[int],
        into: "torch.Tensor",
        uploads: "Uploads | None" = None,
    ) -> None:
        """Plans to read a range of a dense tensor into another tensor, of the same dtype and of the range's shape.

        Args:
            name: The tensor.
            begin: The range's beginning.
            lengths: Its lengths.
            into: The other tensor.
            uploads: The way there, if it may be on a card.
        """
        import torch

        if name in self._spans:
            raise DamagedCheckpointError(f"the manifest has two places for {quoted(name)} of {self.file.path}")
        if not into.numel():
            return
        dtype, shape, offset = self.dense[name]
        rows = range(begin[0], begin[0] + lengths[0]) if shape else range(1)
        whole = torch.empty(shape, dtype=dtype, device="meta")
        part = _range(whole, begin, lengths)
        if part.is_contiguous() and into.is_contiguous():
            remote = None if uploads is None else uploads.bytes_of(into)
            self._spans[name] = Span(
                offset + int(part.storage_offset()) * dtype.itemsize, bytes_of(into) if remote is None else remote
            )
            return
        # Its bytes do not follow each other, there or here: its rows are read whole, and copied from there.
        read = torch.empty((len(rows), *shape[1:]), dtype=dtype, device="cpu")
        first = int(whole[rows.start :].storage_offset()) if shape else 0
        self._spans[name] = Span(offset + first * dtype.itemsize, bytes_of(read))
        self._copies.append((into, _range(read, (0, *begin[1:]), lengths)))

    def source(self) -> Source:
        """Returns all that is to be read: the planned ranges, and once more the bytes that were used unproved."""
        spans = [*self._spans.values()]
        for data, offset in self._unproved:
            self._second_looks.append((data, bytearray(len(data))))
            spans.append(Span(offset, memoryview(self._second_looks[-1][1])))
        return Source(self.file, sorted(spans, key=lambda span: span.offset))

    def finish(self) -> str | None:
        """Copies to its place what was read elsewhere, and ends the round.

        Returns:
            A problem: bytes that were used before are not those that were read now. None where there is none.
        """
        if any(data != read for data, read in self._second_looks):
            return reading.changed(self.file)
        for into, read in self._copies:
            into.copy_(read)
        self._unproved.clear()
        self._spans.clear()
        self._second_looks.clear()
        self._copies.clear()
        return None

    def _dense(self, name: str) -> Dense:
        import torch

        note, plain = self._notes.get(name), self._plain[name]
        dtype = codes()[plain.dtype] if note is None else getattr(torch, note["dtype"])
        shape = plain.shape if note is None else tuple(note["shape"])
        described = torch.empty(shape, dtype=dtype, device="meta")
        if described.nbytes != plain.bytes:
            raise ValueError(
                f"{quoted(name)} has {plain.bytes:,} bytes, and {described.nbytes:,} by its shape and type"
            )
        return Dense(dtype, shape, plain.offset)

    def _read_sparse(self, fd: int, name: str) -> "torch.Tensor":
        """Reads a sparse tensor, which nothing but its values makes one: now, and once more with the rest."""
        import torch

        note = self._notes.get(name, {})
        if "layout" in note:
            return _sparse(note, [self._read_sparse(fd, f"{name}.{part}") for part in COMPONENTS[note["layout"]]])
        dtype, shape, offset = self._dense(name)
        size = self._plain[name].bytes
        data = headers.exactly(fd, size, offset)
        self._unproved.append((bytes(data), offset))
        return (
            torch.frombuffer(data, dtype=dtype).reshape(shape)
            if size
            else torch.empty(shape, dtype=dtype, device="cpu")
        )


def _range(tensor: "torch.Tensor", begin: Sequence[int], lengths: Sequence[int]) -> "torch.Tensor":
    for dimension, (first, length) in enumerate(zip(begin, lengths, strict=True)):
        tensor = tensor.narrow(dimension, first, length)
    return tensor


def bytes_of(tensor: "torch.Tensor") -> memoryview:
    """Returns the memory of a contiguous tensor on the CPU."""
    import torch

    data: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(data)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Says of which file it was that something is wrong."""
    try:
        yield
    except (OSError, RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a file of tensors that this Holdfast can read: {error}") from error


def _sparse(note: Mapping[str, Any], components: Sequence["torch.Tensor"]) -> "torch.Tensor":
    """Returns the sparse tensor that a note speaks of. A note that is wrong raises anything."""
    import torch

    layout, shape = note["layout"], tuple(note["shape"])
    with warnings.catch_warnings():
        # torch 2.11 and 2.12 say so of a tensor that they do check (pytorch#184610).
        warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled")
        if layout == "sparse_coo":
            coalesced = note["coalesced"] is True
            indices, values = components
            return torch.sparse_coo_tensor(
                indices, values, shape, is_coalesced=coalesced, check_invariants=True, device="cpu"
            )
        outer, inner, values = components
        kind = getattr(torch, layout)
        return torch.sparse_compressed_tensor(
            outer, inner, values, shape, layout=kind, check_invariants=True, device="cpu"
        )
