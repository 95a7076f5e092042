"""An optimizer: its state and its groups, by the names of its parameters and never by position."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import optim

from holdfast.errors import CheckpointError, UnsupportedError
from holdfast.state import optimizer_restore as optimizer_state
from holdfast.state import values as tree
from holdfast.state.model import ModelPart
from holdfast.state.optimizer_restore import Fit, compare
from holdfast.state.part import LoadedTensors, Stored
from holdfast.state.sharding import ShardRange, local_of, range_of

# These change their state in place once it is there. Others may put other tensors there at every step.
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
# A call of `tree.snapshot` for each would be most of what recording costs.
_PLAIN = frozenset((type(None), bool, int, float, str))
# What of a group is no setting: its members, and torch's own names of them.
_MEMBERS = ("params", "param_names")


def bare_optimizer(one: object) -> optim.Optimizer | None:
    """The optimizer inside whatever was put around it; None where there is none. A schedule merely knows one."""
    while hasattr(one, "param_groups") and hasattr(inner := getattr(one, "optimizer", None), "param_groups"):
        one = inner
    return one if isinstance(one, optim.Optimizer) else None


@dataclass(frozen=True)
class Plan:
    """What the state consists of, as long as `structure` says so.

    Args:
        structure: What it said.
        groups: The names of each group's parameters.
        state: The state of each parameter that has some.
        odd: Those whose state is not tensors alone.
        shared: State that belongs to no parameter.
        strangers: Parameters that no registered model has.
        held: All tensors of the state. As long as they are held, no other can have the id of one.
        known: The parameters of all registered models, by name.
    """

    structure: Hashable
    groups: Sequence[Sequence[str]]
    state: Mapping[str, tuple[torch.Tensor, dict[Any, Any]]]
    odd: Sequence[str]
    shared: Mapping[Any, Any]
    strangers: Sequence[torch.Tensor]
    held: Sequence[torch.Tensor]
    known: Mapping[str, torch.Tensor]

    @cached_property
    def encoded(self) -> dict[str, Any]:
        """As JSON, the state of each parameter where it is tensors alone: it names them, and does not change."""
        plain = ((name, pair) for name, pair in self.state.items() if name not in self.odd)
        return {name: optimizer_state.encode(held, name, parameter) for name, (parameter, held) in plain}


class OptimizerRecord(NamedTuple):
    """What of an optimizer changes between a boundary and the next update, or is read on the host."""

    plan: Plan
    settings: list[dict[str, Any]]
    odd: Mapping[str, Any]
    shared: Any


class OptimizerPart:
    """An optimizer as a part of the state.

    Args:
        name: What the part is called.
        optimizer: The optimizer itself.
        models: The registered models; they know the names of its parameters.
    """

    def __init__(self, name: str, optimizer: optim.Optimizer, models: Sequence[ModelPart]) -> None:
        self.name = name
        self._optimizer = optimizer
        self._models = models
        self._plan = self._make_plan()

    def strangers(self) -> list[str]:
        """A line where the optimizer has parameters of no registered model."""
        if not (found := self._plan.strangers):
            return []
        shape = list(found[0].shape)
        return [
            f"{self.name}: {len(found)} of its parameters (the first: {shape}) are of no model that is registered here"
        ]

    def structure(self) -> Hashable:
        """Differs when `live` would give other tensors."""
        optimizer = self._optimizer
        state = optimizer.state
        members = tuple([len(group["params"]) for group in optimizer.param_groups])
        if type(optimizer) in _IN_PLACE:
            return id(state), members, len(state), len(next(iter(state.values()), ()))
        return id(state), members, tuple(map(id, _tensors(state)))

    def live(self) -> dict[str, torch.Tensor]:
        """The tensors of its state."""
        plan = self._make_plan()
        found = {key: one for name, (_, state) in plan.state.items() for key, one in tree.tensors_in(state, name)}
        return {**found, **dict(tree.tensors_in(plan.shared, "shared"))}

    def record(self) -> OptimizerRecord:
        """The groups' settings, and state that is not tensors."""
        plan = self._current()
        settings = [_settings(group) for group in self._optimizer.param_groups]
        odd = {name: tree.snapshot(plan.state[name][1], _never) for name in plan.odd}
        return OptimizerRecord(plan, settings, odd, tree.snapshot(plan.shared, _never))

    def encode(self, recorded: OptimizerRecord) -> Stored:
        """What was recorded, as tensors and JSON."""
        plan = recorded.plan
        if plan.strangers:
            raise UnsupportedError(self.strangers()[0], hint="register every model that the optimizer updates")
        tensors: dict[str, torch.Tensor] = {}
        state = {
            name: optimizer_state.encode(recorded.odd[name], name, parameter)
            if name in recorded.odd
            else plan.encoded[name]
            for name, (parameter, _) in plan.state.items()
        }
        rest = {
            "kind": "optimizer",
            "class": type(self._optimizer).__qualname__,
            "groups": [
                {"parameters": list(members), "settings": tree.encode(settings, f"groups/{number}", tensors)}
                for number, (members, settings) in enumerate(zip(plan.groups, recorded.settings, strict=True))
            ],
            "state": state,
            "shared": tree.encode(recorded.shared, "shared", {}),
        }
        return Stored(tensors, rest)

    def place(self, name: str, shape: tuple[int, ...]) -> ShardRange | None:
        """Where this process's shard of a value lies: where its parameter's does, if they have one shape."""
        owner = name
        while owner and owner not in self._plan.known:
            owner = owner.rpartition("/")[0]
        parameter = self._plan.known.get(owner)
        return None if parameter is None or tuple(parameter.shape) != shape else range_of(parameter, name)

    def memory(self) -> dict[str, torch.Tensor]:
        """What this process has of the state: nothing before the first step."""
        return {name: local_of(one) for name, one in self.live().items()}

    def problems(self, stored: Stored) -> list[str]:
        """Why a checkpoint does not fit: the class, the groups and their members, the shapes of parameters."""
        return self._fit(stored).problems

    def restore(self, stored: Stored, *, strict: bool) -> list[str]:
        """Puts state and settings back. State that only this optimizer has goes away."""
        fit = self._fit(stored)
        if strict and fit.problems:
            raise CheckpointError("; ".join(fit.problems))
        if isinstance(stored.tensors, LoadedTensors):  # what was read into the state's own memory is the state again
            stored.tensors.free.update(name for name, one in self.memory().items() if _are_one(stored, name, one))
        notes = optimizer_state.put_back(self._optimizer, fit, stored)
        self._plan = self._make_plan()
        return [*(f"{problem}: left out" for problem in fit.problems), *(f"{self.name}: {note}" for note in notes)]

    def _fit(self, stored: Stored) -> Fit:
        groups = [
            (group, members)
            for group, members in zip(self._optimizer.param_groups, self._make_plan().groups, strict=True)
        ]
        return compare(self.name, self._optimizer, groups, self._known(), stored)

    def _known(self) -> dict[str, torch.Tensor]:
        """The parameters of all registered models, by name."""
        return {f"{model.name}.{name}": one for model in self._models for name, one in model.named_parameters().items()}

    def _current(self) -> Plan:
        if self.structure() != self._plan.structure:
            self._plan = self._make_plan()
        return self._plan

    def _make_plan(self) -> Plan:
        names: dict[int, str] = {}
        known = self._known()
        for name, parameter in known.items():
            names.setdefault(id(parameter), name)
        optimizer = self._optimizer
        strangers = [one for group in optimizer.param_groups for one in group["params"] if id(one) not in names]
        names.update({id(one): f"?{number}" for number, one in enumerate(strangers)})
        state = {names[id(key)]: (key, held) for key, held in optimizer.state.items() if id(key) in names}
        return Plan(
            self.structure(),
            [[names[id(one)] for one in group["params"]] for group in optimizer.param_groups],
            state,
            [name for name, (_, held) in state.items() if not all(isinstance(v, torch.Tensor) for v in held.values())],
            {key: held for key, held in optimizer.state.items() if id(key) not in names},
            strangers,
            list(_tensors(optimizer.state)),
            known,
        )


def _are_one(stored: Stored, name: str, live: torch.Tensor) -> bool:
    found = stored.tensors.get(name)
    return found is not None and found.layout == live.layout == torch.strided and found.data_ptr() == live.data_ptr()


def _tensors(state: Mapping[Any, Any]) -> Iterator[torch.Tensor]:
    """The tensors of a whole state: quick for the usual ones, which are in one dictionary a parameter."""
    for held in state.values():
        for value in held.values() if isinstance(held, dict) else (held,):
            if isinstance(value, torch.Tensor):
                yield value
            elif isinstance(value, dict | list | tuple):
                yield from (found for _, found in tree.tensors_in(value, ""))


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    """What of a group is no member, as of now. Nearly all of it is plain numbers, which a copy of the group has."""
    found = group.copy()
    for member in _MEMBERS:
        found.pop(member, None)
    for key, value in found.items():
        if type(value) not in _PLAIN:
            found[key] = tree.snapshot(value, _always)
    return found


def _always(_: torch.Tensor) -> bool:
    return True


def _never(_: torch.Tensor) -> bool:
    return False
