"""An optimizer: its state and its groups, by the names of its parameters and never by position."""

import gc
from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import optim

from holdfast.errors import CheckpointError, UnsupportedError
from holdfast.state import optimizer_restore, values
from holdfast.state.model import ModelPart
from holdfast.state.optimizer_layers import LocalShare
from holdfast.state.optimizer_restore import Group, OptimizerFit
from holdfast.state.part import LoadedTensors, Stored
from holdfast.state.sharding import ShardRange, local_of, range_of

# These have nothing but tensors in a dictionary for each parameter, and change them in place once they are there.
_IN_PLACE = (
    optim.SGD,
    optim.Adam,
    optim.AdamW,
    optim.Adamax,
    optim.NAdam,
    optim.RAdam,
    optim.RMSprop,
    optim.Adagrad,
    optim.Adadelta,
    optim.SparseAdam,
)
# A call of `values.snapshot` for each would be most of what recording costs.
_PLAIN = frozenset((type(None), bool, int, float, str))
# The keys of a group that are no settings: its members, and torch's own names of them.
_MEMBERS = ("params", "param_names")


@dataclass(frozen=True)
class _Plan:
    """The parameters and tensors of an optimizer, as long as its structure is this.

    Args:
        structure: The optimizer's `structure` then.
        groups: The names of each group's parameters.
        state: The state of each parameter that has some.
        odd: The names of those whose state is not tensors alone.
        shared: State that belongs to no parameter.
        unregistered: Parameters that no registered model has.
        kept: All tensors of the state. As long as they are kept, no other can have the id of one.
        known: The parameters of all registered models, by name.
        objects: The parameters and the values of the state, where all of that is tensors: other ones are other objects.
    """

    structure: Hashable
    groups: Sequence[Sequence[str]]
    state: Mapping[str, tuple[torch.Tensor, dict[Any, Any]]]
    odd: Sequence[str]
    shared: Mapping[Any, Any]
    unregistered: Sequence[torch.Tensor]
    kept: Sequence[torch.Tensor]
    known: Mapping[str, torch.Tensor]
    objects: Sequence[Any] | None

    @cached_property
    def encoded(self) -> dict[str, Any]:
        """As JSON, the state of each parameter where it is tensors alone: it names them, and does not change."""
        encoded = {}
        for name, (parameter, content) in self.state.items():
            if name not in self.odd:
                encoded[name] = _encode_state(content, name, parameter)
        return encoded


class OptimizerRecord(NamedTuple):
    """The state of an optimizer that changes between a boundary and the next update, or is read on the host."""

    plan: _Plan
    settings: list[dict[str, Any]]
    odd: Mapping[str, Any]
    shared: Any


class OptimizerPart:
    """An optimizer as a part of the state.

    Args:
        name: The part's name.
        optimizer: The optimizer itself, or the share of it that this process has.
        models: The registered models; they know the names of its parameters.
    """

    def __init__(self, name: str, optimizer: optim.Optimizer | LocalShare, models: Sequence[ModelPart]) -> None:
        self.name = name
        self._optimizer = optimizer
        self._models = models
        self._plan = self._make_plan()
        try:
            for number, group in enumerate(optimizer.param_groups):
                values.encode(_settings(group), f"groups/{number}", {})  # better to know now what cannot be saved
        except UnsupportedError as error:
            raise UnsupportedError(f"{name}: {error}", hint=error.hint) from error

    @property
    def optimizer(self) -> optim.Optimizer:
        """The optimizer itself."""
        whole: optim.Optimizer = self._optimizer.whole if isinstance(self._optimizer, LocalShare) else self._optimizer
        return whole

    @property
    def registered(self) -> object:
        """The optimizer, as it was registered."""
        return self.optimizer

    def unregistered(self) -> list[str]:
        """Returns a line where the optimizer has parameters of no registered model."""
        if not (others := self._plan.unregistered):
            return []
        shape = list(others[0].shape)
        return [
            f"{self.name}: {len(others)} of its parameters (the first: {shape}) are of no model that is registered here"
        ]

    def look(self) -> None:
        """Looks for state and parameters that are other objects by now: the user may have put them there."""
        self._current()

    def structure(self) -> Hashable:
        """Returns a value that differs when `live` would give other tensors: as of the last look, or record."""
        return self._plan.structure

    def live(self) -> dict[str, torch.Tensor]:
        """Returns the tensors of its state, as of then."""
        plan = self._plan
        named = (pair for name, (_, content) in plan.state.items() for pair in values.tensors_in(content, name))
        return {**dict(named), **dict(values.tensors_in(plan.shared, "shared"))}

    def record(self) -> OptimizerRecord:
        """Records the groups' settings, and state that is not tensors."""
        plan = self._current()
        settings = [_settings(group) for group in self._optimizer.param_groups]
        odd = {name: values.snapshot(plan.state[name][1], values.live) for name in plan.odd}
        return OptimizerRecord(plan, settings, odd, values.snapshot(plan.shared, values.live))

    def encode(self, recorded: OptimizerRecord) -> Stored:
        """Returns what was recorded, as tensors and JSON."""
        plan = recorded.plan
        if plan.unregistered:
            raise UnsupportedError(self.unregistered()[0], hint="register every model that the optimizer updates")
        tensors: dict[str, torch.Tensor] = {}
        state = dict(plan.encoded)
        for name, content in recorded.odd.items():
            state[name] = _encode_state(content, name, plan.state[name][0])
        groups = []
        for number, (members, settings) in enumerate(zip(plan.groups, recorded.settings, strict=True)):
            encoded = values.encode(settings, f"groups/{number}", tensors)
            groups.append({"parameters": list(members), "settings": encoded})
        rest = {
            "kind": "optimizer",
            "class": optimizer_restore.class_name(self._optimizer),
            "groups": groups,
            "state": {name: state[name] for name in plan.state},
            "shared": values.encode(recorded.shared, "shared", {}),
        }
        return Stored(tensors, rest)

    def shard_range(self, name: str, shape: tuple[int, ...]) -> ShardRange | None:
        """Returns the range of this process's shard of a value: that of its parameter's, if they have one shape."""
        parameter = self._owner(name)
        return None if parameter is None or tuple(parameter.shape) != shape else range_of(parameter, name)

    def memory(self) -> dict[str, torch.Tensor]:
        """Returns what this process has of the state: nothing before the first step."""
        self.look()
        return {name: local_of(tensor) for name, tensor in self.live().items()}

    def neighbors(self, rest: Any) -> dict[str, torch.Tensor]:
        """Returns the parameters beside which their state was, by the names of its tensors."""
        owners = {name: self._owner(name) for name, device in values.tensor_devices(rest) if device is None}
        return {name: local_of(parameter) for name, parameter in owners.items() if parameter is not None}

    def problems(self, stored: Stored) -> list[str]:
        """Returns the reasons why a checkpoint does not fit: class, groups, their members, shapes of parameters."""
        return self._fit(stored).problems

    def restore(self, stored: Stored, *, strict: bool) -> list[str]:
        """Puts state and settings back. State that only this optimizer has goes away."""
        fit = self._fit(stored)
        if strict and fit.problems:
            raise CheckpointError("; ".join(fit.problems))
        if isinstance(stored.tensors, LoadedTensors):  # what was read into the state's own memory is the state again
            stored.tensors.free.update(name for name, tensor in self.memory().items() if _is_at(stored, name, tensor))
        notes = optimizer_restore.restore(self._optimizer, fit, stored)
        self._plan = self._make_plan()
        return [*(f"{problem}: left out" for problem in fit.problems), *(f"{self.name}: {note}" for note in notes)]

    def _fit(self, stored: Stored) -> OptimizerFit:
        groups: list[tuple[Group, Sequence[str]]] = list(
            zip(self._optimizer.param_groups, self._make_plan().groups, strict=True)
        )
        return optimizer_restore.fit_by_names(self.name, self._optimizer, groups, self._known(), stored)

    def _owner(self, name: str) -> torch.Tensor | None:
        """Returns the parameter that a value of the state is of, by its name in the file."""
        owner = name
        while owner and owner not in self._plan.known:
            owner = owner.rpartition("/")[0]
        return self._plan.known.get(owner)

    def _known(self) -> dict[str, torch.Tensor]:
        """Returns the parameters of all registered models, by name."""
        known = {}
        for model in self._models:
            for name, parameter in model.named_parameters().items():
                known[f"{model.name}.{name}"] = parameter
        return known

    def _current(self) -> _Plan:
        objects = self._plan.objects
        is_same = objects is not None and _are_the_same(objects, self._optimizer)
        if not is_same and _structure_of(self._optimizer) != self._plan.structure:
            self._plan = self._make_plan()
        return self._plan

    def _make_plan(self) -> _Plan:
        names: dict[int, str] = {}
        known = self._known()
        for name, parameter in known.items():
            names.setdefault(id(parameter), name)
        optimizer = self._optimizer
        updated = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        unregistered = [parameter for parameter in updated if id(parameter) not in names]
        names.update({id(parameter): f"?{number}" for number, parameter in enumerate(unregistered)})
        state = {names[id(key)]: (key, content) for key, content in optimizer.state.items() if id(key) in names}
        return _Plan(
            _structure_of(optimizer),
            [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups],
            state,
            [name for name, (_, content) in state.items() if not _is_tensors_alone(content)],
            {key: content for key, content in optimizer.state.items() if id(key) not in names},
            unregistered,
            list(_tensors(optimizer.state)),
            known,
            _objects(optimizer) if type(optimizer) in _IN_PLACE and _has_tensors_alone(optimizer.state) else None,
        )


def _structure_of(optimizer: optim.Optimizer | LocalShare) -> Hashable:
    """Returns the identity of an optimizer's state, of its parameters by group, and of all tensors of the state."""
    members = tuple([tuple(map(id, group["params"])) for group in optimizer.param_groups])
    return id(optimizer.state), members, tuple(map(id, _tensors(optimizer.state)))


def _objects(optimizer: optim.Optimizer | LocalShare) -> list[Any]:
    """Returns the parameters of an optimizer, and the values of a state of one dictionary a parameter."""
    return gc.get_referents(*[group["params"] for group in optimizer.param_groups], *optimizer.state.values())


def _are_the_same(before: Sequence[Any], optimizer: optim.Optimizer | LocalShare) -> bool:
    """Tells whether the objects of an optimizer are those of before. At every boundary: 20 ns for each."""
    now = _objects(optimizer)
    return len(now) == len(before) and all(map(is_, now, before))


def _has_tensors_alone(state: Mapping[Any, Any]) -> bool:
    contents = state.values()
    return all(type(content) is dict for content in contents) and all(
        value is None or isinstance(value, torch.Tensor) for content in contents for value in content.values()
    )


def _encode_state(content: Any, name: str, parameter: torch.Tensor) -> dict[str, Any]:
    """Returns the state of one parameter as JSON. Its tensors are live, by the names of `values.tensors_in`."""
    encoded = values.encode(content, name, {}, parameter.device)
    step = content.get("step") if isinstance(content, dict) else None
    if isinstance(step, torch.Tensor):  # on the CPU wherever the parameter is, unless the group computes otherwise
        encoded["step"]["device"] = str(step.device)
    return {"shape": list(parameter.shape), "values": encoded}


def _is_tensors_alone(content: Mapping[Any, Any]) -> bool:
    return all(isinstance(value, torch.Tensor) for value in content.values())


def _is_at(stored: Stored, name: str, live: torch.Tensor) -> bool:
    """Tells if the tensor of a checkpoint is in the memory of a live one."""
    tensor = stored.tensors.get(name)
    return tensor is not None and tensor.layout == live.layout == torch.strided and tensor.data_ptr() == live.data_ptr()


def _tensors(state: Mapping[Any, Any]) -> Iterator[torch.Tensor]:
    """Yields the tensors of a whole state: quick for the usual ones, which are in one dictionary a parameter."""
    for content in state.values():
        for value in content.values() if isinstance(content, dict) else (content,):
            if isinstance(value, torch.Tensor):
                yield value
            elif isinstance(value, dict | list | tuple | deque):
                yield from (tensor for _, tensor in values.tensors_in(value, ""))


def _settings(group: Group) -> dict[str, Any]:
    """Copies all of a group but its members. Nearly all of it is plain numbers, which a copy of the group has."""
    settings = group.copy()
    for member in _MEMBERS:
        settings.pop(member, None)
    for key, value in settings.items():
        if type(value) not in _PLAIN:
            settings[key] = values.snapshot(value, values.cloned)
    return settings
