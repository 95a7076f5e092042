"""A file in the safetensors format, to be filled from live tensors. Format: `docs/format.md`.

A tensor that the format cannot hold goes in as plain tensors that share its memory, so that it can stream like the
rest; a note in the header's metadata says what it was.
"""

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from holdfast.errors import UnsupportedError
from holdfast.layouts.image import Image
from holdfast.layouts.safetensors.dtypes import COMPONENTS, NOTES, codes_by_dtype

if TYPE_CHECKING:
    import torch

_ALIGNMENT = 64


def image(path: str, tensors: Mapping[str, "torch.Tensor"], metadata: Mapping[str, str] | None = None) -> Image:
    """Returns the safetensors file of some tensors. Nothing is copied.

    Args:
        path: Its path inside the checkpoint.
        tensors: The tensors, by name.
        metadata: Further text for the header.

    Raises:
        UnsupportedError: A tensor is of a kind that cannot be written.
    """
    head, plain = arranged(path, tensors, metadata)
    return Image(path, (head, *(tensor for tensor in plain.values() if tensor.nbytes)))


def arranged(
    path: str, tensors: Mapping[str, "torch.Tensor"], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, "torch.Tensor"]]:
    """Returns the beginning of the file of `image`, and the plain tensors whose bytes follow, in their order.

    Raises:
        UnsupportedError: A tensor is of a kind that cannot be written.
    """
    code_of = codes_by_dtype()
    notes: dict[str, Any] = {}
    plain: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name not in plain and _is_plain(tensor, code_of):
            plain[name] = tensor.detach()
            continue
        for part, component in _plain(name, tensor.detach(), notes).items():
            if part in plain:
                raise UnsupportedError(f"{path} would hold two tensors of the name {part!r}; rename one of them")
            plain[part] = component
    text = {**(metadata or {}), **({NOTES: json.dumps(notes)} if notes else {})}
    described = tuple([(name, code_of[t.dtype], tuple(t.shape), t.element_size()) for name, t in plain.items()])
    head, order = _head(described, tuple(text.items()))
    return head, {name: plain[name] for name in order}


# It is the same from save to save, and to write it takes milliseconds that training could have had.
@lru_cache(maxsize=16)
def _head(
    described: tuple[tuple[str, str, tuple[int, ...], int], ...], metadata: tuple[tuple[str, str], ...]
) -> tuple[bytes, tuple[str, ...]]:
    """Returns the beginning of a file, and the order of its tensors, from the name, dtype, shape and width of each."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    # The library looks at a tensor's bytes in place, which its elements' width must divide.
    ordered = sorted(described, key=lambda entry: -entry[3])
    end = 0
    for name, code, shape, width in ordered:
        begin, end = end, end + math.prod(shape) * width
        header[name] = {"dtype": code, "shape": shape, "data_offsets": (begin, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, tuple(name for name, *_ in ordered)


def _is_plain(tensor: "torch.Tensor", code_of: Mapping["torch.dtype", str]) -> bool:
    """Tells whether it needs no look at all that could be special about it. Nearly all of a state is."""
    import torch

    usual = type(tensor) is torch.Tensor or type(tensor) is torch.nn.Parameter
    return usual and tensor.layout == torch.strided and tensor.dtype in code_of and not tensor.is_meta


def _plain(name: str, tensor: "torch.Tensor", notes: dict[str, Any]) -> dict[str, "torch.Tensor"]:
    """Returns the plain tensors that stand for a tensor; adds a note if it is not plain itself."""
    import torch

    layout = str(tensor.layout).removeprefix("torch.")
    if hasattr(tensor, "__tensor_flatten__") or tensor.is_quantized or tensor.is_meta:
        kind = "a meta tensor" if tensor.is_meta else f"a {type(tensor).__name__} of {tensor.dtype}"
        raise UnsupportedError(f"{name} is {kind}, which cannot be written to a file of tensors")
    if layout in COMPONENTS:
        notes[name] = {"layout": layout, "shape": list(tensor.shape)}
        if layout == "sparse_coo":
            notes[name]["coalesced"] = tensor.is_coalesced()
        components: dict[str, torch.Tensor] = {}
        for component in COMPONENTS[layout]:
            # `indices()` refuses a tensor that is not coalesced.
            take = f"_{component}" if layout == "sparse_coo" else component
            components |= _plain(f"{name}.{component}", getattr(tensor, take)().detach(), notes)
        return components
    if tensor.layout != torch.strided:
        raise UnsupportedError(f"{name} has the layout {layout}, which cannot be written to a file of tensors")
    if tensor.dtype in codes_by_dtype():
        return {name: tensor}
    notes[name] = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
    if tensor.is_complex():
        return {name: torch.view_as_real(tensor.resolve_conj())}
    return {name: tensor.contiguous().reshape(-1).view(torch.uint8)}
