"""A model: its weights, which stand still between updates, what its forward may write, and how both are put back."""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any, NamedTuple

import torch
from torch import nn

from holdfast.errors import CheckpointError, ConfigError
from holdfast.state import values
from holdfast.state.buffers import BufferRecord, Buffers
from holdfast.state.module_tensors import TensorSlot, identity, modules_of, slots_of
from holdfast.state.part import SIDECAR_PREFIX, Stored, rest_of
from holdfast.state.sharding import ShardRange, local_of, range_of, show_shards

_numbers = count()


class _Plan:
    """The modules and tensors of a model, as long as it consists of those."""

    def __init__(self, module: nn.Module, moving: Mapping[str, int]) -> None:
        self.modules = list(modules_of(module))
        self.attributes = [inner.__dict__ for _, inner in self.modules]
        self.slots: list[TensorSlot] = []
        self.aliases: dict[str, str] = {}
        first: dict[Any, TensorSlot] = {}
        for slot in slots_of(module):
            kept = first.setdefault(identity(slot.tensor), slot)
            if kept is slot:
                self.slots.append(slot)
            elif slot.kind != "cache":
                self.aliases[slot.name] = kept.name
        self.weights = {slot.name: slot.tensor for slot in self.slots if slot.kind == "weight"}
        self.parameters = list(self.weights.values())
        self.buffer_places = [inner._buffers for _, inner in self.modules if inner._buffers]
        buffers = [slot for slot in self.slots if slot.kind != "weight"]
        self.buffers = Buffers(buffers, moving)
        self.dense_buffers = [slot.tensor for slot in buffers if slot.tensor.layout == torch.strided]
        self.extra = [(name, inner) for name, inner in self.modules if _has_extra_state(inner)]
        self.contents = [(slot.stored, id(slot.tensor) if slot.kind == "weight" else None) for slot in self.slots]
        self.known_buffers = self.look_at_buffers()
        self.number = next(_numbers)

    def look_at_buffers(self) -> Hashable:
        """Returns a value that differs when a buffer was replaced, added or taken away, or was given other memory."""
        identities = tuple(map(id, chain.from_iterable(map(dict.values, self.buffer_places))))
        return identities, tuple(map(torch.Tensor.data_ptr, self.dense_buffers))


class ModelRecord(NamedTuple):
    """The state of a module that changes between a boundary and the next update."""

    plan: _Plan
    buffers: BufferRecord
    trains: list[bool]
    learns: list[bool]
    extra: Mapping[str, Any]


class ModelPart:
    """A module as a part of the state.

    Args:
        name: The part's name.
        module: The module; wrapped or compiled ones count as what is inside.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self._module = module
        if nameless := [slot.name for slot in slots_of(module) if nn.parameter.is_lazy(slot.tensor)]:
            raise ConfigError([f"{name}: {nameless[0]!r} has no shape yet; run the model once before it is registered"])
        self._plan = _Plan(module, {})

    @property
    def module(self) -> nn.Module:
        """The module itself."""
        return self._module

    @property
    def moving_buffers(self) -> dict[str, int]:
        """Large buffers that were seen to change, and the bytes that copying each takes at every boundary."""
        return self._plan.buffers.moving

    @property
    def weights(self) -> Mapping[str, torch.Tensor]:
        """The parameters, by name, as of the last look at them."""
        return self._plan.weights

    def named_parameters(self) -> dict[str, torch.Tensor]:
        """Returns the parameters that the module has now, by name."""
        show_shards(self._module)
        return _Plan(self._module, {}).weights

    def structure(self) -> Hashable:
        """Returns a value that differs when `live` would give other tensors.

        Weights that were replaced show from the next call of `live`: to look for them here would cost more than all of
        the record, and an optimizer would know nothing of them.
        """
        return self._plan.number, self._plan.buffers.arrangement

    def live(self) -> dict[str, torch.Tensor]:
        """Returns the parameters, and large buffers that never changed."""
        show_shards(self._module)
        fresh = _Plan(self._module, self._plan.buffers.moving)
        if fresh.contents != self._plan.contents:
            self._plan = fresh
        return {**fresh.weights, **fresh.buffers.live}

    def record(self) -> ModelRecord:
        """Records buffers, modes, and what modules give as their extra state."""
        plan = self._plan
        if plan.look_at_buffers() != plan.known_buffers:
            show_shards(self._module)
            plan = self._plan = _Plan(self._module, plan.buffers.moving)
        return ModelRecord(
            plan,
            plan.buffers.record(),
            [attributes["training"] for attributes in plan.attributes],
            [parameter.requires_grad for parameter in plan.parameters],
            {name: values.snapshot(module.get_extra_state(), values.cloned) for name, module in plan.extra},
        )

    def encode(self, recorded: ModelRecord) -> Stored:
        """Returns what was recorded, as tensors and JSON."""
        plan = recorded.plan
        tensors: dict[str, torch.Tensor] = {}
        extra = {
            name: values.encode(state, f"{SIDECAR_PREFIX}{name}/extra", tensors)
            for name, state in recorded.extra.items()
        }
        rest = {
            "kind": "model",
            "frozen": [name for name, learns in zip(plan.weights, recorded.learns, strict=True) if not learns],
            "evaluating": [name for (name, _), on in zip(plan.modules, recorded.trains, strict=True) if not on],
            "extra": extra,
        }
        tensors |= recorded.buffers.tensors()
        # What the module has got since can only be taken as it is.
        since = [slot for slot in self._plan.slots if slot.kind != "weight" and slot.stored not in tensors]
        still = self._plan.buffers.live
        tensors |= {slot.stored: slot.tensor.detach().clone() for slot in since if slot.stored not in still}
        return Stored(tensors, rest, plan.aliases)

    def buffers(self, recorded: ModelRecord) -> dict[str, torch.Tensor]:
        """Returns the buffers that may change, as they were recorded, by the names that they have in the file."""
        return recorded.buffers.tensors()

    def shard_range(self, name: str, shape: tuple[int, ...]) -> ShardRange | None:
        """Returns the range of this process's shard of a weight."""
        weight = self._plan.weights.get(name)
        return None if weight is None or tuple(weight.shape) != shape else range_of(weight, name)

    def memory(self) -> dict[str, torch.Tensor]:
        """Returns what this process has of weights and buffers."""
        return {slot.stored: local_of(slot.tensor) for slot in self._plan.slots}

    def neighbors(self, rest: Any) -> dict[str, torch.Tensor]:
        """Returns nothing: a module has memory for all that is its own."""
        return {}

    def problems(self, stored: Stored) -> list[str]:
        """Returns the reasons why a checkpoint does not fit: names, shapes, dtypes, and which weights are one."""
        rest_of(stored, self.name, "model")
        return [f"{self.name}: {problem}" for problem in _fit(slots_of(self._module), stored).problems]

    def restore(self, stored: Stored, *, strict: bool) -> list[str]:
        """Puts everything back into the module's own tensors."""
        fit = _fit(slots_of(self._module), stored)
        if strict and fit.problems:
            raise CheckpointError(f"{self.name} does not fit the checkpoint: {'; '.join(fit.problems)}")
        rest = rest_of(stored, self.name, "model")
        frozen, evaluating, extra = (rest.get(key) for key in ("frozen", "evaluating", "extra"))
        if not isinstance(frozen, list) or not isinstance(evaluating, list) or not isinstance(extra, dict):
            raise CheckpointError(f"{self.name}: what the checkpoint says of its modules cannot be read")
        states = {name: values.decode(state, stored.tensors) for name, state in extra.items()}
        for slot, tensor in fit.pairs:
            _fill(slot, tensor)
        changed = 0
        for slot, _ in fit.pairs:
            if slot.kind == "weight" and slot.tensor.requires_grad == (slot.name in frozen):
                slot.tensor.requires_grad_(slot.name not in frozen)
                changed += 1
        for name, module in modules_of(self._module):
            module.training = name not in evaluating
            if name in states and _has_extra_state(module):
                module.set_extra_state(states[name])
        self._plan = _Plan(self._module, self._plan.buffers.moving)
        notes = [f"{self.name}: {problem}: left out" for problem in fit.problems]
        if changed:
            notes.append(
                f"{self.name}: {changed} weights were frozen or not otherwise than in the checkpoint; now as there"
            )
        return notes


@dataclass
class _Fit:
    """The outcome of comparing a module with a checkpoint.

    Args:
        problems: A line for each mismatch.
        pairs: The slots that fit, each with the tensor that goes there; a tensor with several names comes once.
    """

    problems: list[str] = field(default_factory=list)
    pairs: list[tuple[TensorSlot, torch.Tensor]] = field(default_factory=list)


def _fit(slots: Iterable[TensorSlot], stored: Stored) -> _Fit:
    """Compares the slots of a module with a checkpoint, by name and nothing by position."""
    fit = _Fit()
    tensors = {alias: stored.tensors[kept] for alias, kept in stored.aliases.items() if kept in stored.tensors}
    tensors.update(stored.tensors)
    here = {slot.stored: slot for slot in slots}
    names: dict[object, str] = {}
    for name, slot in here.items():
        first = names.setdefault(identity(slot.tensor), name)
        if name not in tensors:
            if slot.kind != "cache":  # by its owner's word it is not state
                fit.problems.append(f"{slot.kind} {name!r} is in the model and not in the checkpoint")
            continue
        then, now = _form_of(tensors[name]), _form_of(local_of(slot.tensor))
        if slot.kind != "cache" and then != now:
            fit.problems.append(f"{slot.kind} {name!r} is {then} in the checkpoint and {now} in the model")
        elif first == name:
            fit.pairs.append((slot, tensors[name]))
        elif first in tensors and tensors[first] is not tensors[name]:
            fit.problems.append(f"{name!r} and {first!r} are one tensor in the model and two in the checkpoint")
    for name in tensors:
        if name not in here and not name.startswith(SIDECAR_PREFIX):
            fit.problems.append(f"{name!r} is in the checkpoint and not in the model")
    for alias, kept in stored.aliases.items():
        if alias in here and kept in here and identity(here[alias].tensor) != identity(here[kept].tensor):
            fit.problems.append(f"{alias!r} and {kept!r} are one tensor in the checkpoint and two in the model")
    return fit


def _form_of(tensor: torch.Tensor) -> str:
    """Returns a tensor's dtype and shape, and its layout where it is a special one."""
    text = f"{tensor.dtype} {list(tensor.shape)}".removeprefix("torch.")
    return text if tensor.layout == torch.strided else f"{text} {tensor.layout}".replace("torch.", "")


def _fill(slot: TensorSlot, tensor: torch.Tensor) -> None:
    """Copies a tensor of a checkpoint into a slot's memory, or gives the slot other memory where it does not fit."""
    live = local_of(slot.tensor)
    if live.layout == torch.strided and live.shape == tensor.shape and live.dtype == tensor.dtype:
        if live.data_ptr() != tensor.data_ptr():  # it was read right there
            live.detach().copy_(tensor)
    elif slot.kind == "weight":
        slot.tensor.data = tensor.clone().to(live.device)
    else:  # one that is grown while it is used, or is sparse
        slot.place[slot.key] = tensor.clone().to(live.device)


def _has_extra_state(module: nn.Module) -> bool:
    return type(module).get_extra_state is not nn.Module.get_extra_state
