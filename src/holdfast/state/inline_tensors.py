"""Small tensors inside a JSON file, their bytes as text. Format: `docs/format.md`, "data.json"."""

from collections.abc import Mapping
from typing import Any

import torch

from holdfast.errors import CheckpointError, UnsupportedError

# As text they are twice as large, are made anew at every save, and every process writes its own.
_MOST_BYTES = 16 << 20


def encode(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Returns tensors as JSON, by name.

    Raises:
        UnsupportedError: One has no plain elements, or all of them are too large.
    """
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise UnsupportedError(f"{name} is a tensor without plain elements", hint="give state_dict() a dense one")
    if (size := sum(tensor.nbytes for tensor in tensors.values())) > _MOST_BYTES:
        raise UnsupportedError(
            f"the data's state has tensors of {size:,} bytes, and the file of the position holds {_MOST_BYTES:,}",
            hint="have state_dict() return less, or give the large part to the Checkpointer under a name of its own",
        )
    return {name: _encode(tensor) for name, tensor in tensors.items()}


def decode(encoded: Any) -> dict[str, torch.Tensor]:
    """Returns the tensors that `encode` gave, by name. Anybody may have written the JSON.

    Raises:
        CheckpointError: These are no tensors.
    """
    try:
        return {name: _decode(entry) for name, entry in encoded.items()}
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(
            f"the tensors of the data's state cannot be read: {error or type(error).__name__}",
            hint="resume from another checkpoint",
        ) from error


def _encode(tensor: torch.Tensor) -> dict[str, Any]:
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    raw = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape), "bytes": raw.hex()}


def _decode(entry: Mapping[str, Any]) -> torch.Tensor:
    dtype, raw = getattr(torch, entry["dtype"]), bytearray.fromhex(entry["bytes"])
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{entry['dtype']!r} is no torch.dtype")
    flat = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8, device="cpu")
    return flat.view(dtype).reshape(entry["shape"])
