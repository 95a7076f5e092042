"""The way back of an optimizer's state: compared by the names of parameters, and assigned as it was.

It is assigned because `load_state_dict` would cast it to the dtype of the parameters. Everything is read and compared
before anything is changed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import optim

from holdfast.errors import CheckpointError
from holdfast.state import values
from holdfast.state.likeness import alike
from holdfast.state.optimizer_layers import LocalShare
from holdfast.state.part import Stored, rest_of
from holdfast.state.sharding import local_of
from holdfast.state.values import CPU

# The way that a group computes, which the machine decides, and not the result.
_IMPLEMENTATIONS = ("foreach", "fused", "capturable")

Group = dict[str, Any]
"""A parameter group of an optimizer, as torch has it."""


@dataclass
class OptimizerFit:
    """The outcome of comparing an optimizer with a checkpoint.

    Args:
        problems: A line for each mismatch.
        groups: The groups that fit, each with the settings that the checkpoint has for it.
        added: Groups that only the checkpoint has: their parameters and settings.
        state: Parameters whose state fits, each with the values that the checkpoint has of it, as JSON.
    """

    problems: list[str] = field(default_factory=list)
    groups: list[tuple[Group, Any]] = field(default_factory=list)
    added: list[tuple[dict[str, torch.Tensor], Any]] = field(default_factory=list)
    state: list[tuple[torch.Tensor, Any]] = field(default_factory=list)


def fit_by_names(
    name: str,
    optimizer: optim.Optimizer | LocalShare,
    groups: Sequence[tuple[Group, Sequence[str]]],
    known: Mapping[str, torch.Tensor],
    stored: Stored,
) -> OptimizerFit:
    """Compares an optimizer with a checkpoint, by the names of parameters.

    Args:
        name: The part's name.
        optimizer: The optimizer.
        groups: Its groups, each with the names of its parameters.
        known: The parameters of all registered models.
        stored: The content of the checkpoint.

    Raises:
        CheckpointError: It cannot be read.
    """
    rest = rest_of(stored, name, "optimizer")
    stored_groups, states = _read(name, rest)
    fit = OptimizerFit()
    class_here = class_name(optimizer)
    if rest.get("class") != class_here:
        fit.problems.append(f"{name}: is of class {rest.get('class')} in the checkpoint and of class {class_here} here")
        return fit
    if not _fit_groups(fit, name, optimizer, groups, known, stored_groups):
        return fit
    here = {member for _, members in groups for member in members}
    others = [members for members, _ in stored_groups if members and members[0] not in here]
    updated = here.union(*others)
    for member, (shape, encoded) in states.items():
        if member not in known or member not in updated or not _keeps_state_of(optimizer, known[member]):
            continue
        parameter = known[member]
        if shape != list(parameter.shape):
            fit.problems.append(
                f"{name}: the state of {member!r} is for {shape}, and it is {list(parameter.shape)} here"
            )
        else:
            fit.state.append((parameter, encoded))
    return fit


def class_name(optimizer: optim.Optimizer | LocalShare) -> str:
    """Returns the name of an optimizer's class."""
    return optimizer.class_name if isinstance(optimizer, LocalShare) else type(optimizer).__qualname__


def restore(optimizer: optim.Optimizer | LocalShare, fit: OptimizerFit, stored: Stored) -> list[str]:
    """Puts back what fits.

    Returns:
        A line for each change that is not one of values.

    Raises:
        CheckpointError: The content of the checkpoint cannot be read; nothing was changed.
    """
    groups = [(group, _dictionary(settings, stored)) for group, settings in fit.groups]
    added = [(parameters, _dictionary(settings, stored)) for parameters, settings in fit.added]
    if any("params" in settings for _, settings in [*groups, *added]):
        raise CheckpointError("the settings of a parameter group have parameters in them")
    state = [(parameter, _dictionary(encoded, stored, parameter.device)) for parameter, encoded in fit.state]
    shared = _dictionary(stored.rest.get("shared"), stored)
    places = _Places()
    for group, settings in groups:
        kept = {key: value for key, value in settings.items() if key not in _IMPLEMENTATIONS}
        group.update({key: places.put(group.get(key), value) for key, value in kept.items()})
    for parameters, settings in added:
        # torch wants names for all groups or for none.
        by_name = "param_names" in optimizer.param_groups[0]
        members = list(parameters.items() if by_name else parameters.values())
        optimizer.add_param_group({**settings, "params": members})
    _assign(optimizer, state)
    optimizer.state.update(shared)
    return [f"a group of {len(parameters)} parameters was added, as the checkpoint has it" for parameters, _ in added]


def _read(name: str, rest: Mapping[str, Any]) -> tuple[list[tuple[list[str], Any]], dict[str, tuple[Any, Any]]]:
    """Returns the groups and the state of a checkpoint, which anybody may have written."""
    try:
        groups = [([str(member) for member in group["parameters"]], group["settings"]) for group in rest["groups"]]
        return groups, {member: (state["shape"], state["values"]) for member, state in rest["state"].items()}
    except (LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{name}: what the checkpoint says of its groups and state cannot be read") from error


def _fit_groups(
    fit: OptimizerFit,
    name: str,
    optimizer: optim.Optimizer | LocalShare,
    groups: Sequence[tuple[Group, Sequence[str]]],
    known: Mapping[str, torch.Tensor],
    stored_groups: Sequence[tuple[list[str], Any]],
) -> bool:
    """Finds the group here for each group of the checkpoint; False if the state cannot fit, whatever it is."""
    here = dict.fromkeys(member for _, members in groups for member in members)
    before = {member for members, _ in stored_groups for member in members}
    added = [member for member in here if member not in before]
    fit.problems += [f"{name}: {member!r} is updated here and not in the checkpoint" for member in added]
    by_members = {frozenset(members): (group, members) for group, members in groups}
    for number, (members, settings) in enumerate(stored_groups):
        match = by_members.get(frozenset(members))
        if match is not None:
            group, own_order = match
            if isinstance(optimizer, optim.LBFGS) and list(own_order) != members:
                fit.problems.append(f"{name}: its parameters are in another order, on which the state of LBFGS depends")
                return False
            fit.groups.append((group, settings))
        elif all(member in known and member not in here for member in members):
            fit.added.append(({member: known[member] for member in members}, settings))
        elif gone := [member for member in members if member not in here]:
            fit.problems += [f"{name}: {member!r} is updated in the checkpoint and not here" for member in gone]
        else:
            fit.problems.append(
                f"{name}: the parameters of group {number} of the checkpoint are divided otherwise here"
                f" ({len(stored_groups)} groups there, {len(groups)} here)"
            )
    return True


def _keeps_state_of(optimizer: optim.Optimizer | LocalShare, parameter: torch.Tensor) -> bool:
    return not isinstance(optimizer, LocalShare) or optimizer.updates(parameter)


def _assign(optimizer: optim.Optimizer | LocalShare, state: Sequence[tuple[torch.Tensor, dict[Any, Any]]]) -> None:
    """Replaces the whole state; a step goes to the device on which the group counts it.

    Tensors that are there already stay, with other values: a graph may have been captured with them.
    """
    step_here: set[int] = set()
    for group in optimizer.param_groups:
        if group.get("capturable") or group.get("fused"):
            step_here.update(map(id, group["params"]))
    before, places = dict(optimizer.state), _Places()
    optimizer.state.clear()
    for parameter, content in state:
        step = content.get("step")
        if isinstance(step, torch.Tensor) and (id(parameter) in step_here or step.device.type != "cpu"):
            content["step"] = step.to(parameter.device)
        there = before.pop(parameter, {})
        optimizer.state[parameter] = {
            key: places.put(there.get(key), _sharded_as(parameter, value)) for key, value in content.items()
        }


class _Places:
    """The tensors of one optimizer that have been written into: groups may have one together, a learning rate."""

    def __init__(self) -> None:
        self._written: set[int] = set()

    def put(self, there: Any, value: Any) -> Any:
        """Returns the tensor that is there with a value in it; the value itself where it has no such place."""
        if not isinstance(there, torch.Tensor) or not isinstance(value, torch.Tensor) or local_of(there) is not there:
            return value
        form, wanted = [(t.shape, t.stride(), t.dtype, t.layout) for t in (there.detach(), value.detach())]
        if form != wanted or there.layout != torch.strided or there.is_inference():
            return value
        if id(there) in self._written:
            return there if alike(there.detach().cpu(), value.detach().cpu()) else value
        with torch.no_grad():
            there.copy_(value)
        self._written.add(id(there))
        return there


def _sharded_as(parameter: torch.Tensor, value: Any) -> Any:
    """Makes a value that is this process's shard a distributed tensor like its parameter; others stay as they are."""
    local = local_of(parameter)
    if local is parameter or not isinstance(value, torch.Tensor) or value.shape != local.shape or not value.dim():
        return value
    from torch.distributed.tensor import DTensor

    assert isinstance(parameter, DTensor)
    return DTensor.from_local(
        value,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def _dictionary(encoded: Any, stored: Stored, home: torch.device = CPU) -> dict[Any, Any]:
    content = values.decode(encoded, stored.tensors, home)
    if not isinstance(content, dict):
        raise CheckpointError(f"a dictionary of an optimizer's is a {type(content).__name__} in the checkpoint")
    return content
