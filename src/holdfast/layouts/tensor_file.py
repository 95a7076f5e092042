"""A file in the safetensors format, to be filled from live tensors; and one read back. Format: `docs/format.md`.

What the format cannot hold goes in as plain tensors that share its memory, so that it can stream like the rest; a note
in the header's metadata says what it was.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.errors import CheckpointError, UnsupportedError

if TYPE_CHECKING:
    import torch

NOTES = "holdfast"
"""The key of the header's metadata that says what the tensors were which the format cannot hold."""

_ALIGNMENT = 64
# The names of a sparse tensor's components: as torch's constructors take them.
_COMPONENTS = {
    "sparse_coo": ("indices", "values"),
    "sparse_csr": ("crow_indices", "col_indices", "values"),
    "sparse_bsr": ("crow_indices", "col_indices", "values"),
    "sparse_csc": ("ccol_indices", "row_indices", "values"),
    "sparse_bsc": ("ccol_indices", "row_indices", "values"),
}


@dataclass(frozen=True)
class Image:
    """A file to be.

    Args:
        path: Where it goes inside the checkpoint.
        pieces: Its content in order: bytes, or a tensor whose elements' bytes go there, in the order of its indices.
    """

    path: str
    pieces: tuple["bytes | torch.Tensor", ...]

    @property
    def size(self) -> int:
        """The bytes of the file."""
        return sum(len(piece) if isinstance(piece, bytes) else piece.nbytes for piece in self.pieces)


def image(path: str, tensors: Mapping[str, "torch.Tensor"], metadata: Mapping[str, str] | None = None) -> Image:
    """The safetensors file of some tensors. Nothing is copied.

    Args:
        path: Where it goes inside the checkpoint.
        tensors: The tensors, by name.
        metadata: What else the header says.

    Raises:
        UnsupportedError: A tensor is of a kind that cannot be written.
    """
    codes = {dtype: code for code, dtype in _codes().items()}
    notes: dict[str, Any] = {}
    plain: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        for part, held in _plain(name, tensor.detach(), notes).items():
            if part in plain:
                raise UnsupportedError(f"{path} would hold two tensors of the name {part!r}; rename one of them")
            plain[part] = held
    said = {**(metadata or {}), **({NOTES: json.dumps(notes)} if notes else {})}
    header: dict[str, Any] = {"__metadata__": said} if said else {}
    # The library looks at a tensor's bytes in place, which its elements' width must divide.
    ordered = dict(sorted(plain.items(), key=lambda item: -item[1].element_size()))
    end = 0
    for name, tensor in ordered.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": codes[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    pieces = [tensor for tensor in ordered.values() if tensor.nbytes]
    return Image(path, (len(text).to_bytes(8, "little") + text, *pieces))


def read(path: Path) -> tuple[dict[str, "torch.Tensor"], dict[str, str]]:
    """Reads a file of `image` back: the tensors, and what else the header says. The tensors are the file's memory.

    Raises:
        CheckpointError: It is no such file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        notes = json.loads(metadata.pop(NOTES, "{}"))
        # The components of a sparse tensor may have notes of their own, which come first.
        for name, note in sorted(notes.items(), key=lambda item: "layout" in item[1]):
            tensors[name] = _as_it_was(name, note, tensors)
    except (SafetensorError, OSError, RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a file of tensors that this Holdfast can read: {error}") from error
    return tensors, metadata


def _codes() -> dict[str, "torch.dtype"]:
    """The dtypes that the installed library reads, by the format's names for them."""
    import safetensors.torch

    return {code: dtype for code, dtype in safetensors.torch._TYPES.items() if dtype is not None}


def _plain(name: str, tensor: "torch.Tensor", notes: dict[str, Any]) -> dict[str, "torch.Tensor"]:
    """The plain tensors that stand for one; adds a note if it is not plain itself."""
    import torch

    layout = str(tensor.layout).removeprefix("torch.")
    if hasattr(tensor, "__tensor_flatten__") or tensor.is_quantized or tensor.is_meta:
        kind = "a meta tensor" if tensor.is_meta else f"a {type(tensor).__name__} of {tensor.dtype}"
        raise UnsupportedError(f"{name} is {kind}, which cannot be written to a file of tensors")
    if layout in _COMPONENTS:
        notes[name] = {"layout": layout, "shape": list(tensor.shape)}
        if layout == "sparse_coo":
            notes[name]["coalesced"] = tensor.is_coalesced()
        found: dict[str, torch.Tensor] = {}
        for component in _COMPONENTS[layout]:
            # `indices()` refuses a tensor that is not coalesced.
            take = f"_{component}" if layout == "sparse_coo" else component
            found |= _plain(f"{name}.{component}", getattr(tensor, take)().detach(), notes)
        return found
    if tensor.layout != torch.strided:
        raise UnsupportedError(f"{name} has the layout {layout}, which cannot be written to a file of tensors")
    if tensor.dtype in _codes().values():
        return {name: tensor}
    notes[name] = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
    if tensor.is_complex():
        return {name: torch.view_as_real(tensor.resolve_conj())}
    return {name: tensor.contiguous().reshape(-1).view(torch.uint8)}


def _as_it_was(name: str, note: Mapping[str, Any], tensors: dict[str, "torch.Tensor"]) -> "torch.Tensor":
    """The tensor that a note speaks of. Whatever is wrong with the note raises something."""
    import torch

    shape = tuple(note["shape"])
    if "layout" in note:
        layout = note["layout"]
        parts = [tensors.pop(f"{name}.{component}") for component in _COMPONENTS[layout]]
        if layout == "sparse_coo":
            coalesced = note["coalesced"] is True
            indices, values = parts
            return torch.sparse_coo_tensor(indices, values, shape, is_coalesced=coalesced, check_invariants=True)
        outer, inner, values = parts
        kind = getattr(torch, layout)
        return torch.sparse_compressed_tensor(outer, inner, values, shape, layout=kind, check_invariants=True)
    dtype = getattr(torch, note["dtype"])
    held = tensors[name]
    if dtype.is_complex:
        return torch.view_as_complex(held.contiguous()).to(dtype).reshape(shape)
    return held.clone().view(dtype).reshape(shape)  # a clone, as the bytes may lie anywhere in the file
