"""A file in the safetensors format, read back whole or in part. Format: `docs/format.md`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.errors import CheckpointError

if TYPE_CHECKING:
    import torch

NOTES = "holdfast"
"""The key of the header's metadata that says what the tensors were which the format cannot hold."""

# The names of a sparse tensor's components: as torch's constructors take them.
COMPONENTS = {
    "sparse_coo": ("indices", "values"),
    "sparse_csr": ("crow_indices", "col_indices", "values"),
    "sparse_bsr": ("crow_indices", "col_indices", "values"),
    "sparse_csc": ("ccol_indices", "row_indices", "values"),
    "sparse_bsc": ("ccol_indices", "row_indices", "values"),
}


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
