"""Whether what a checkpoint holds of an optimizer is for the groups and parameters that there are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import optim

from holdfast.capture.state import Stored, rest_of
from holdfast.errors import CheckpointError

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
