"""An optimizer that says itself what its state is: its `state_dict` is saved, and its `load_state_dict` takes it.

Such a state speaks of parameters by their numbers, in the order of the groups. So the names of all are saved with it,
in that order, and compared before anything is loaded.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from holdfast.errors import CheckpointError, UnsupportedError
from holdfast.state import values
from holdfast.state.model import ModelPart
from holdfast.state.optimizer_layers import inner_optimizers
from holdfast.state.part import Stored, rest_of
from holdfast.state.sharding import local_of
from holdfast.state.stateful import StatefulPart

KIND = "stated_optimizer"


class StatedOptimizerPart(StatefulPart):
    """An optimizer as a part of the state, by its own `state_dict`.

    Args:
        name: The part's name.
        optimizer: The optimizer.
        models: The registered models; they know the names of its parameters.
        extras: Leaves out `state` and `param_groups`, which a part of their own has.

    Raises:
        UnsupportedError: Its state holds something that cannot be written.
    """

    def __init__(self, name: str, optimizer: Any, models: Sequence[ModelPart], *, extras: bool = False) -> None:
        self.registered = self._optimizer = optimizer
        self._models = models
        super().__init__(name, _Extras(optimizer) if extras else optimizer)

    @property
    def optimizer(self) -> Any:
        """The optimizer, or the one inside of it that has the groups."""
        return _with_groups(self._optimizer)

    def encode(self, recorded: Any) -> Stored:
        """Returns the copy, as tensors and JSON, with the names of the parameters in the order of the groups."""
        self._require_names_that_last(recorded)
        stored = super().encode(recorded)
        about = {"kind": KIND, "class": self._class_name(), "groups": self._groups()}
        return Stored(stored.tensors, {**stored.rest, **about})

    def unregistered(self) -> list[str]:
        """Returns a line where a torch optimizer has parameters of no registered model."""
        unknown = [name for members in self._groups() for name in members if name.startswith("?")]
        if not unknown or not isinstance(self._optimizer, torch.optim.Optimizer):
            return []
        return [f"{self.name}: {len(unknown)} of its parameters are of no model that is registered here"]

    def problems(self, stored: Stored) -> list[str]:
        """Returns the reasons why a checkpoint does not fit: class, groups, the order of their members."""
        rest = rest_of(stored, self.name, KIND)
        then, now = rest.get("class"), self._class_name()
        if then != now:
            return [f"{self.name}: is of class {then} in the checkpoint and of class {now} here"]
        groups, here = rest.get("groups"), self._groups()
        if groups == here:
            return []
        if not isinstance(groups, list) or not all(isinstance(members, list) for members in groups):
            raise CheckpointError(f"{self.name}: what the checkpoint says of its groups cannot be read")
        before = {str(name) for members in groups for name in members}
        present = {name for members in here for name in members}
        changes = [f"{self.name}: {name!r} is updated here and not in the checkpoint" for name in present - before]
        changes += [f"{self.name}: {name!r} is updated in the checkpoint and not here" for name in before - present]
        return sorted(changes) or [
            f"{self.name}: its parameters are in another order or other groups, and the state of {now} goes by their"
            " numbers"
        ]

    def _load(self, state: Any) -> None:
        """Has the optimizer load its state, and puts back in its own dtype what that has cast."""
        loaded = values.snapshot(state, values.live)
        super()._load(state)
        _undo_casts(loaded, self._object.state_dict())

    def _class_name(self) -> str:
        return type(self._optimizer).__qualname__

    def _groups(self) -> list[list[str]]:
        """Returns the names of the parameters of each group, in their order; a `?` where no model has one."""
        names: dict[int, str] = {}
        for model in self._models:
            for name, parameter in model.named_parameters().items():
                names.setdefault(id(parameter), f"{model.name}.{name}")
        groups = []
        for group in self.optimizer.param_groups:
            members = []
            for number, parameter in enumerate(group["params"]):
                if local_of(parameter) is not parameter:
                    raise UnsupportedError(
                        f"{self.name}: {self._class_name()} gives its state by a state_dict of its own, and its"
                        " parameters are sharded",
                        hint="give the Checkpointer the optimizer inside of it",
                    )
                members.append(names.get(id(parameter), f"?{number}"))
            groups.append(members)
        return groups

    def _require_names_that_last(self, state: Any) -> None:
        members = {id(member) for group in self.optimizer.param_groups for member in group["params"]}
        if any(type(key) is int and key in members for key in _keys(state)):
            raise UnsupportedError(
                f"{self.name}: the state_dict of {self._class_name()} names parameters by their place in memory (id),"
                " which no other process has",
                hint="use one whose state_dict names them by number or name",
            )


class _Extras:
    """The part of an optimizer's own state that is beside torch's: `state` and `param_groups` stay as they are.

    Args:
        optimizer: An optimizer whose `state_dict` adds to torch's.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        """Returns what its `state_dict` adds to torch's."""
        said = self._optimizer.state_dict()
        if len(said["state"]) != len(self._optimizer.state):
            raise UnsupportedError(
                f"the state_dict of {type(self._optimizer).__qualname__} has state that is not in its .state",
                hint="have it return that under a key of its own, beside `state` and `param_groups`",
            )
        return {key: value for key, value in said.items() if key not in ("state", "param_groups")}

    def load_state_dict(self, extras: Mapping[str, Any]) -> None:
        """Gives it back."""
        # What it has besides is put back afterwards: torch would cast it to the dtype of the parameters.
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), **extras})


def _with_groups(optimizer: Any) -> Any:
    if hasattr(optimizer, "param_groups"):
        return optimizer
    inner = next(inner_optimizers(optimizer), None)
    if inner is None:
        raise UnsupportedError(f"a {type(optimizer).__qualname__} has no param_groups, and no optimizer inside of it")
    return _with_groups(inner[1])


def _undo_casts(loaded: Any, now: Any) -> None:
    """Gives tensors the dtype back that they were saved in: torch casts a state to that of the parameters."""
    then = dict(values.tensors_in(loaded, ""))
    for name, tensor in values.tensors_in(now, ""):
        before = then.get(name)
        if before is not None and before.dtype != tensor.dtype and before.shape == tensor.shape:
            tensor.data = before.to(tensor.device)


def _keys(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _keys(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _keys(item)
