"""The tensors of a module, their places and their names, whatever has been wrapped around it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from holdfast.state.part import SIDECAR_PREFIX


@dataclass(frozen=True)
class TensorSlot:
    """One place of a module that holds a tensor.

    Args:
        name: The tensor's name in the module's `state_dict`.
        place: The module's own dictionary.
        key: Its key there.
        kind: `weight`, `buffer`, or `cache` for a buffer that is not persistent.
    """

    name: str
    place: dict[str, Any]
    key: str
    kind: str

    @property
    def stored(self) -> str:
        """The tensor's name in a checkpoint."""
        return SIDECAR_PREFIX + self.name if self.kind == "cache" else self.name

    @property
    def tensor(self) -> torch.Tensor:
        """The tensor that is there now."""
        tensor: torch.Tensor = self.place[self.key]
        return tensor


def modules_of(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yields a module and those inside, by name, each before its own; one that is there twice comes twice."""
    waiting = [(prefix, module)]
    while waiting:
        prefix, module = waiting.pop()
        module = _bare(module)
        yield prefix, module
        children = [(key, child) for key, child in module._modules.items() if child is not None]
        waiting += [(f"{prefix}.{key}" if prefix else key, child) for key, child in reversed(children)]


def slots_of(module: nn.Module) -> Iterator[TensorSlot]:
    """Yields the slots of all tensors, in the order of the `state_dict`; one that has several names comes as often."""
    for prefix, inner in modules_of(module):
        dot = f"{prefix}." if prefix else ""
        for key, parameter in inner._parameters.items():
            if parameter is not None:
                yield TensorSlot(dot + key, inner._parameters, key, "weight")
        for key, buffer in inner._buffers.items():
            if buffer is not None:
                kind = "cache" if key in inner._non_persistent_buffers_set else "buffer"
                yield TensorSlot(dot + key, inner._buffers, key, kind)


def identity(tensor: torch.Tensor) -> Any:
    """Returns what is equal for two tensors that are one: the same object, or the same view of the same memory."""
    if tensor.layout != torch.strided or hasattr(tensor, "__tensor_flatten__") or tensor.data_ptr() == 0:
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _bare(module: nn.Module) -> nn.Module:
    """Returns the user's own module. One of torch.compile is told by its key: its class would load the compiler."""
    while True:
        if isinstance(module, DistributedDataParallel | DataParallel):
            module = module.module
        elif (compiled := module._modules.get("_orig_mod")) is not None:
            module = compiled
        elif "_forward_module" in module._modules and (own := module._modules.get("_original_module")) is not None:
            module = own  # of Lightning's Fabric, whose package need not be there
        else:
            return module
