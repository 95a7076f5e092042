"""The large tensors that the rest of an epoch's body may change: those that no optimizer steps.

An average of the weights that is updated once in an epoch, a teacher, buffers that a validation fills. They are copied
where the batches of an epoch end, and the copies are the last boundary's until the next one. Where there is no room for
copies each is watched, and what has changed cannot be saved as it was.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from holdfast.state.buffers import Watch
from holdfast.state.layered_optimizer import OptimizerPartOfAnyKind
from holdfast.state.model import ModelPart
from holdfast.state.part import Part, Stored
from holdfast.state.registry import Parts
from holdfast.state.sharding import is_distributed, local_of


class BodyTensors:
    """The tensors that no optimizer steps, and their copies while the rest of an epoch's body runs.

    Args:
        parts: Models, optimizers and the rest.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._copies: dict[tuple[str, str], torch.Tensor] = {}
        self._watches: dict[str, Watch] = {}
        self._moved: list[str] = []
        self.number = 0
        """The number of times that copies have taken the place of tensors, or left it."""

    @property
    def are_copied(self) -> bool:
        """True while copies are in the place of the tensors."""
        return bool(self._copies)

    def now(self, optimizers: Sequence[Any], live: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Returns those tensors of this process, by part and name.

        Args:
            optimizers: The optimizers that step weights.
            live: All tensors that stand still between updates, by part and name.
        """
        stepped = {id(p) for each in optimizers for group in getattr(each, "param_groups", ()) for p in group["params"]}
        named = {}
        for part in self._parts:
            for name in _not_stepped(part, live.get(part.name, {}), stepped):
                named[f"{part.name}.{name}"] = local_of(live[part.name][name])
        return named

    def copy(self, names: Mapping[str, torch.Tensor], live: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Copies the tensors of some names: the copies are those of the last boundary until `release`."""
        self.release()
        every = ((part, name, tensor) for part, tensors in live.items() for name, tensor in tensors.items())
        self._copies = {(part, name): _copy(tensor) for part, name, tensor in every if f"{part}.{name}" in names}
        self.number += 1

    def watch(self, tensors: Mapping[str, torch.Tensor], moved: Sequence[str] = ()) -> None:
        """Watches tensors that are not copied.

        Args:
            tensors: The tensors.
            moved: The names of those that are not as they were at the last boundary by now.
        """
        self.release()
        self._watches = {name: Watch(tensor) for name, tensor in tensors.items()}
        self._moved = list(moved)

    def moved(self) -> list[str]:
        """Returns the names of those that are watched and have changed since the last boundary."""
        self._moved += [name for name, watch in self._watches.items() if watch.has_moved() and name not in self._moved]
        return self._moved

    def release(self) -> None:
        """Lets copies and watches go: there is another boundary."""
        self.number += bool(self._copies)
        self._copies, self._watches, self._moved = {}, {}, []

    def in_place(self, live: Mapping[str, Mapping[str, torch.Tensor]]) -> Mapping[str, Mapping[str, torch.Tensor]]:
        """Returns tensors by part and name, with the copies in the place of those that have one."""
        if not self._copies:
            return live
        return {
            part: {name: self._copies.get((part, name), tensor) for name, tensor in tensors.items()}
            for part, tensors in live.items()
        }

    def in_stored(self, stored: dict[str, Stored]) -> dict[str, Stored]:
        """Returns the content of parts with the copies in it: an object gives its large tensors there once more."""
        for part in dict.fromkeys(part for part, _ in self._copies):
            tensors = stored[part].tensors
            copied = {name: self._copies.get((part, name), tensor) for name, tensor in tensors.items()}
            stored[part] = replace(stored[part], tensors=copied)
        return stored


def _not_stepped(part: Part, live: Mapping[str, torch.Tensor], stepped: set[int]) -> Iterator[str]:
    """Yields the names of what no optimizer steps; frozen weights of a model that is trained stand still."""
    if isinstance(part, OptimizerPartOfAnyKind):
        return
    is_trained = isinstance(part, ModelPart) and any(id(tensor) in stepped for tensor in live.values())
    for name, tensor in live.items():
        is_frozen = is_trained and isinstance(tensor, torch.nn.Parameter) and not tensor.requires_grad
        if id(tensor) not in stepped and not is_frozen:
            yield name


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """Copies a tensor of a card to the host: training may be about to need what is left there."""
    source = tensor.detach()
    copy = source.clone() if tensor.device.type == "cpu" or is_distributed(tensor) else source.cpu()
    return torch.nn.Parameter(copy, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else copy
