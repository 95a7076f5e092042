"""The hyperparameters of optimizers and their schedules: as the script gave them, and what of them holds at a resume.

A checkpoint's groups have them as a schedule, or the loop itself, had moved them. Those that the script left alone go
on from there; what it changed holds from the first step on. A schedule that depends on the number of its steps alone
is stepped anew, as often as before; one that keeps a history keeps it.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import optim

from holdfast.errors import CheckpointError
from holdfast.state import schedule as schedules
from holdfast.state.recorded_settings import KEPT, Change, changes, readable

# The way that a group computes, which the machine decides, and what is there of torch's own.
_NO_SETTINGS = ("params", "param_names", "foreach", "fused", "capturable", "initial_lr")
_RATES = ("lr", "initial_lr")

Group = dict[str, Any]


@dataclass
class _Schedule:
    """A schedule as it was before anything was restored."""

    name: str
    schedule: Any
    numbers: dict[str, Any]
    attributes: Mapping[str, Any]
    fresh: Mapping[str, Any] | None
    """Its state then; None where it cannot be stepped anew."""

    def is_another(self, recorded: Mapping[str, Any]) -> bool:
        """Tells if the checkpoint's is of another class."""
        entry = recorded.get(self.name)
        return isinstance(entry, Mapping) and entry.get("class") != type(self.schedule).__qualname__

    def changes(self, recorded: Mapping[str, Any]) -> list[Change]:
        """Returns what was changed of its numbers."""
        if self.is_another(recorded):
            return []
        entry = recorded.get(self.name)
        before = entry.get("numbers") if isinstance(entry, Mapping) else None
        return list(changes(before, self.numbers, self.name))

    def keep(self, recorded: Mapping[str, Any], why: str) -> list[Change]:
        """Returns what was changed: functions hold, numbers do not, and the next checkpoint records those that do."""
        differing = []
        for change in self.changes(recorded):
            name = change.path[1]
            if not schedules.is_functions(name):
                self.numbers[name] = recorded[self.name]["numbers"][name]
                change = change.staying(why)
            differing.append(change)
        return differing


@dataclass
class _Optimizer:
    """An optimizer as it was before anything was restored."""

    name: str
    optimizer: optim.Optimizer
    groups: list[Group]
    recorded: list[dict[str, Any]]
    schedules: list[_Schedule] = field(default_factory=list)

    def changes(self, recorded: Mapping[str, Any]) -> list[tuple[int, str, Change]]:
        """Returns what was changed of its groups, each with the number of its group and the key there."""
        by_first = _recorded_groups(recorded.get(self.name))
        differing = []
        for number, group in enumerate(self.recorded):
            before = by_first.get((group["first"], str(group["parameters"])))
            path = (self.name,) if len(self.recorded) == 1 else (self.name, "groups", str(number))
            for change in changes(before, group["settings"], *path):
                differing.append((number, change.path[len(path)], change))
        return differing

    def keep(self, recorded: Mapping[str, Any], why: str) -> list[Change]:
        """Returns what was changed and does not hold. The next checkpoint records what holds in its place."""
        by_first, differing = _recorded_groups(recorded.get(self.name)), []
        for number, key, change in self.changes(recorded):
            group = self.recorded[number]
            group["settings"][key] = by_first[group["first"], str(group["parameters"])][key]
            differing.append(change.staying(why))
        return differing

    def is_driven_by(self, key: str) -> bool:
        """Tells if a schedule goes out from this key of a group."""
        cycles = any(getattr(known.schedule, "cycle_momentum", False) for known in self.schedules)
        return "lr" in key or "momentum" in key or (cycles and key == "betas")


class Hyperparameters:
    """The hyperparameters of a training, taken before anything is restored.

    Args:
        optimizers: The optimizers, by name.
        stateful: Other objects, by name; the schedules among them are looked at.
        names: The names of parameters, by identity.
    """

    def __init__(
        self, optimizers: Mapping[str, optim.Optimizer], stateful: Mapping[str, object], names: Mapping[int, str]
    ) -> None:
        self._optimizers = [_optimizer(name, optimizer, names) for name, optimizer in optimizers.items()]
        bare = {name: schedules.bare_schedule(registered) for name, registered in stateful.items()}
        self._schedules = [_schedule(name, schedule) for name, schedule in bare.items() if schedule is not None]
        for known in self._optimizers:
            groups = known.optimizer.param_groups
            known.schedules = [each for each in self._schedules if each.schedule.optimizer.param_groups is groups]

    def record(self) -> dict[str, Any]:
        """Returns them as JSON, by the names of the parts."""
        recorded: dict[str, Any] = {
            known.name: {"class": type(known.optimizer).__qualname__, "groups": known.recorded}
            for known in self._optimizers
        }
        for known in self._schedules:
            recorded[known.name] = {"class": type(known.schedule).__qualname__, "numbers": known.numbers}
        return recorded

    def has_another_schedule(self, recorded: Mapping[str, Any]) -> bool:
        """Tells if a schedule of the checkpoint is of another class than the one of its name here."""
        return any(schedule.is_another(recorded) for schedule in self._schedules)

    def follow(self, recorded: Mapping[str, Any], steps: int | None = None) -> list[Change]:
        """Puts what the script has changed in the place of what was restored.

        Args:
            recorded: What `record` gave when the checkpoint was made.
            steps: The steps that a schedule takes in the place of one of another class; None leaves it as it is.

        Returns:
            What was changed.

        Raises:
            CheckpointError: A schedule cannot be stepped as often as before.
        """
        differing: list[Change] = []
        for known in self._optimizers:
            differing += _follow(known, recorded, steps)
        for schedule in self._schedules:
            differing += _follow_numbers(schedule, recorded)
        return differing

    def keep(self, recorded: Mapping[str, Any]) -> list[Change]:
        """Returns what the script has changed, where all that was restored stays. Functions are always the script's."""
        differing = [change for known in self._optimizers for change in known.keep(recorded, KEPT)]
        for schedule in self._schedules:
            differing += schedule.keep(recorded, KEPT)
        return differing


def _optimizer(name: str, optimizer: optim.Optimizer, names: Mapping[int, str]) -> _Optimizer:
    recorded = []
    for group in optimizer.param_groups:
        members = group["params"]
        settings = readable({key: value for key, value in group.items() if key not in _NO_SETTINGS})
        if "initial_lr" in group:  # what a schedule begins with, which has moved `lr` already
            settings.update(readable({"lr": group["initial_lr"]}))
        first = names.get(id(members[0]), "") if members else ""
        recorded.append({"first": first, "parameters": len(members), "settings": settings})
    return _Optimizer(name, optimizer, [_copy(group) for group in optimizer.param_groups], recorded)


def _schedule(name: str, schedule: Any) -> _Schedule:
    fresh = None
    if schedules.can_be_replayed(schedule):
        try:
            fresh = copy.deepcopy(schedule.state_dict())
        except Exception:  # noqa: BLE001 - something of the user's in it that cannot be copied: it keeps its history
            fresh = None
    return _Schedule(name, schedule, schedules.numbers(schedule), dict(vars(schedule)), fresh)


def _recorded_groups(entry: Any) -> dict[tuple[str, str], Any]:
    """Returns the settings of a checkpoint's groups by their first parameter and their size."""
    groups = entry.get("groups") if isinstance(entry, Mapping) else None
    listed = [group for group in groups if isinstance(group, Mapping)] if isinstance(groups, list) else []
    return {(str(group.get("first")), str(group.get("parameters"))): group.get("settings") for group in listed}


def _follow(known: _Optimizer, recorded: Mapping[str, Any], steps: int | None) -> list[Change]:
    """Gives an optimizer the hyperparameters that were changed, as its schedules have them by now."""
    differing = known.changes(recorded)
    groups = known.optimizer.param_groups
    drives = any(known.is_driven_by(key) for _, key, _ in differing)
    drives |= any(schedule.changes(recorded) for schedule in known.schedules)
    others = [each for each in known.schedules if each.is_another(recorded)] if steps is not None else []
    drives |= bool(others)
    again = [schedule for schedule in known.schedules if schedule.fresh is not None] if drives else []
    if again and len(groups) != len(known.groups):
        why = "for the checkpoint has parameter groups that your script has not added yet, and a schedule goes over all"
        return known.keep(recorded, why)
    scheduled = _replayed(known, [(each, steps if each in others else None) for each in again]) if again else []
    for number, key, change in differing:
        rates = _learning_rate(known, number, change) if key == "lr" and not again else {}
        _put(groups[number], rates or {key: known.groups[number][key]})
    for group, moved in zip(groups, scheduled, strict=False):
        _put(group, moved)
    if others and not again:  # it begins its history here
        for group, present in zip(groups, known.groups, strict=False):
            _put(group, {key: present[key] for key in _RATES if key in present})
    return [change for *_, change in differing]


def _replayed(known: _Optimizer, again: Sequence[tuple[_Schedule, int | None]]) -> list[Group]:
    """Steps schedules anew from the hyperparameters of the script; returns what they move, and the learning rates.

    The groups are left as they were.

    Args:
        known: The optimizer.
        again: The schedules, each with its number of steps; None where it has that of the checkpoint's.
    """
    groups = known.optimizer.param_groups
    restored, scheduled = [_copy(group) for group in groups], []
    try:
        for group, present in zip(groups, known.groups, strict=True):
            _put(group, present)
        for each, number in again:
            steps = schedules.steps_taken(each.schedule) if number is None else number
            each.schedule.load_state_dict(copy.deepcopy(each.fresh))
            schedules.replay(each.schedule, steps - schedules.steps_taken(each.schedule))
        for group, present in zip(groups, known.groups, strict=True):
            stepped = _copy(group)
            scheduled.append({k: v for k, v in stepped.items() if k in _RATES or k not in present or v != present[k]})
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{' and '.join(each.name for each, _ in again)}: with the numbers that you changed it cannot be stepped as"
            f" often as it was: {error}",
            hint="give it numbers with which it goes that far, or resume with resume_settings: keep",
        ) from error
    finally:
        for group, before in zip(groups, restored, strict=True):
            _put(group, before)
    return scheduled


def _learning_rate(known: _Optimizer, number: int, change: Change) -> Group:
    """Returns the learning rate of a group that no schedule is stepped anew for: reduced as it was, if it was."""
    group, present = known.optimizer.param_groups[number], known.groups[number]
    rates: Group = _copy({key: present[key] for key in _RATES if key in present})
    before = change.before
    if known.schedules and isinstance(before, int | float) and before > 0:
        rates["lr"] = rates["lr"] * (float(group["lr"]) / before)
    return rates


def _follow_numbers(known: _Schedule, recorded: Mapping[str, Any]) -> list[Change]:
    """Gives a schedule that keeps its history the numbers that were changed; one that was stepped anew has them."""
    differing = known.changes(recorded)
    if known.fresh is not None or not differing:
        return differing
    before, restored = recorded[known.name]["numbers"], schedules.numbers(known.schedule)
    outcome = []
    for change in differing:
        name = change.path[1]
        # An attribute that training has moved is a position, whatever else it began with.
        if restored.get(name) == before[name] and name in known.attributes:
            schedules.put_number(known.schedule, name, known.attributes[name])
        elif not schedules.is_functions(name) and restored.get(name) != known.numbers[name]:
            change = change.staying("for training has moved it since")
        outcome.append(change)
    return outcome


def _copy(group: Mapping[str, Any]) -> Group:
    """Copies all of a group but its members."""
    return {
        key: value.clone() if isinstance(value, torch.Tensor) else value
        for key, value in group.items()
        if key not in ("params", "param_names")
    }


def _put(group: Group, values: Mapping[str, Any]) -> None:
    """Gives a group values. A tensor takes them where it is: a graph may have been captured with it."""
    for key, value in values.items():
        place = group.get(key)
        if isinstance(place, torch.Tensor):
            place.fill_(float(value))
        else:
            group[key] = value
