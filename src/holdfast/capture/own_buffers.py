"""Buffers of which each process has values of its own: running statistics that nobody makes alike."""

import ctypes
from collections.abc import Mapping

import torch
import xxhash


def digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """What tells other processes whether theirs are the same, by name. Sparse ones are left out."""
    return {name: _digest(tensor) for name, tensor in tensors.items() if tensor.layout == torch.strided}


def differing(tensors: Mapping[str, torch.Tensor], common: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Those of this process that are not what rank 0 has.

    Args:
        tensors: Those of this process, by name.
        common: What `digests` gave in rank 0.
    """
    here = digests(tensors)
    return {name: tensors[name] for name, digest in here.items() if common.get(name) != digest}


def _digest(tensor: torch.Tensor) -> str:
    held = tensor.detach().cpu().contiguous()
    found = xxhash.xxh3_128(f"{held.dtype} {list(held.shape)}".encode())
    found.update(ctypes.string_at(held.data_ptr(), held.nbytes) if held.nbytes else b"")
    return found.hexdigest()
