"""An optimizer's state as JSON, and put back as it was: assigned, because `load_state_dict` would cast it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import optim

from holdfast.errors import CheckpointError
from holdfast.state import values as tree
from holdfast.state.part import Stored, rest_of
from holdfast.state.sharding import local_of
from holdfast.state.values import CPU

_Group = dict[str, Any]


@dataclass
class Fit:
    """A comparison.

    Args:
        problems: A line for each mismatch.
        groups: The groups that fit, each with the settings that the checkpoint has for it.
        added: Groups that only the checkpoint has: their parameters and settings.
        state: Parameters whose state fits, each with what the checkpoint says of its values.
    """

    problems: list[str] = field(default_factory=list)
    groups: list[tuple[_Group, Any]] = field(default_factory=list)
    added: list[tuple[dict[str, torch.Tensor], Any]] = field(default_factory=list)
    state: list[tuple[torch.Tensor, Any]] = field(default_factory=list)


# How a group computes, which the machine decides, and not what.
_MEANS = ("foreach", "fused", "capturable")


def encode(held: Any, name: str, parameter: torch.Tensor) -> dict[str, Any]:
    """The state of one parameter. Its tensors are live, and named as `tree.tensors_in` names them."""
    values = tree.encode(held, name, {}, parameter.device)
    step = held.get("step") if isinstance(held, dict) else None
    if isinstance(step, torch.Tensor):  # on the CPU wherever the parameter is, unless the group computes otherwise
        values["step"]["device"] = str(step.device)
    return {"shape": list(parameter.shape), "values": values}


def put_back(optimizer: optim.Optimizer, fit: Fit, stored: Stored) -> list[str]:
    """Puts back what fits. Everything is read before anything is changed.

    Returns:
        A line for each change that is not one of values.

    Raises:
        CheckpointError: What the checkpoint holds cannot be read; nothing was changed.
    """
    groups = [(group, _dictionary(held, stored)) for group, held in fit.groups]
    added = [(named, _dictionary(held, stored)) for named, held in fit.added]
    if any("params" in settings for _, settings in [*groups, *added]):
        raise CheckpointError("the settings of a parameter group have parameters in them")
    state = [(one, _dictionary(values, stored, one.device)) for one, values in fit.state]
    shared = _dictionary(stored.rest.get("shared"), stored)
    for group, settings in groups:
        group.update({key: value for key, value in settings.items() if key not in _MEANS})
    for named, settings in added:
        # torch wants names for all groups or for none.
        by_name = "param_names" in optimizer.param_groups[0]
        optimizer.add_param_group({**settings, "params": list(named.items() if by_name else named.values())})
    step_here: set[int] = set()
    for group in optimizer.param_groups:
        if group.get("capturable") or group.get("fused"):
            step_here.update(map(id, group["params"]))
    optimizer.state.clear()
    for one, values in state:
        step = values.get("step")
        if isinstance(step, torch.Tensor) and (id(one) in step_here or step.device.type != "cpu"):
            values["step"] = step.to(one.device)
        optimizer.state[one] = {key: _sharded_as(one, value) for key, value in values.items()}
    optimizer.state.update(shared)
    return [f"a group of {len(named)} parameters was added, as the checkpoint has it" for named, _ in added]


def _sharded_as(parameter: torch.Tensor, value: Any) -> Any:
    """A value that is this process's shard, as a distributed tensor like its parameter; others as they are."""
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


def _dictionary(held: Any, stored: Stored, home: torch.device = CPU) -> dict[Any, Any]:
    found = tree.decode(held, stored.tensors, home)
    if not isinstance(found, dict):
        raise CheckpointError(f"a dictionary of an optimizer's is a {type(found).__name__} in the checkpoint")
    return found


def compare(
    name: str,
    optimizer: optim.Optimizer,
    groups: Sequence[tuple[_Group, Sequence[str]]],
    known: Mapping[str, torch.Tensor],
    stored: Stored,
) -> Fit:
    """Compares by the names of parameters.

    Args:
        name: What the part is called.
        optimizer: The optimizer.
        groups: Its groups, each with the names of its parameters.
        known: The parameters of all registered models.
        stored: What the checkpoint holds.

    Raises:
        CheckpointError: What it holds cannot be read.
    """
    rest = rest_of(stored, name, "optimizer")
    then, states = _read(name, rest)
    fit = Fit()
    now = type(optimizer).__qualname__
    if rest.get("class") != now:
        fit.problems.append(f"{name}: is of class {rest.get('class')} in the checkpoint and of class {now} here")
        return fit
    here = {member: number for number, (_, members) in enumerate(groups) for member in members}
    before = {member for members, _ in then for member in members}
    fit.problems += [f"{name}: {one!r} is updated here and not in the checkpoint" for one in here if one not in before]
    by_members = {frozenset(members): number for number, (_, members) in enumerate(groups)}
    for number, (members, settings) in enumerate(then):
        found = by_members.get(frozenset(members))
        if found is not None:
            group, order = groups[found]
            if isinstance(optimizer, optim.LBFGS) and list(order) != members:
                fit.problems.append(f"{name}: its parameters are in another order, on which the state of LBFGS depends")
                return fit
            fit.groups.append((group, settings))
        elif all(member in known and member not in here for member in members):
            fit.added.append(({member: known[member] for member in members}, settings))
        elif gone := [member for member in members if member not in here]:
            fit.problems += [f"{name}: {one!r} is updated in the checkpoint and not here" for one in gone]
        else:
            fit.problems.append(
                f"{name}: the parameters of group {number} of the checkpoint are divided otherwise here"
                f" ({len(then)} groups there, {len(groups)} here)"
            )
    taken = {*here, *(member for members, _ in then if members and members[0] not in here for member in members)}
    for one, (shape, values) in states.items():
        if one not in known or one not in taken:
            continue
        if shape != list(known[one].shape):
            fit.problems.append(f"{name}: the state of {one!r} is for {shape}, and it is {list(known[one].shape)} here")
        else:
            fit.state.append((known[one], values))
    return fit


def _read(name: str, rest: Mapping[str, Any]) -> tuple[list[tuple[list[str], Any]], dict[str, tuple[Any, Any]]]:
    """The groups and the state, which anybody may have written."""
    try:
        groups = [([str(one) for one in group["parameters"]], group["settings"]) for group in rest["groups"]]
        return groups, {key: (held["shape"], held["values"]) for key, held in rest["state"].items()}
    except (LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{name}: what the checkpoint says of its groups and state cannot be read") from error
