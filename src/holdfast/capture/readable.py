"""Which tensors another thread can read while training uses them: plain ones, on the processor or on CUDA."""

from collections.abc import Mapping

import torch


def why_not(live: Mapping[str, torch.Tensor]) -> str:
    """Why a state can be read only while training stands still; empty when it can be read at any time."""
    for name, tensor in live.items():
        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
        if not plain or tensor.device.type not in ("cpu", "cuda"):
            return f"{name} is a {type(tensor).__name__} of layout {tensor.layout} on {tensor.device}"
    return ""
