"""State that an optimizer keeps in attributes of its own, where neither `.state` nor a `state_dict` has it.

These are attributes with tensors, and plain values that have changed since the optimizer was registered. What never
changed is how it was made, which the program that goes on decides.
"""

import copy
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import optim

from holdfast.errors import CheckpointError
from holdfast.state import values
from holdfast.state.model import ModelPart
from holdfast.state.part import Stored, rest_of
from holdfast.text import quoted

KIND = "attributes"
_PLAIN = (type(None), bool, int, float, str)
# Of a longer history, and of a larger whole number, which may be an object's place in memory, nothing is carried.
_LONGEST, _BIGGEST = 10_000, 1 << 31
# A schedule leaves them at the optimizer that it works on.
_OF_SCHEDULES = {"_opt_called", "_step_count", "_with_counter"}


class AttributesPart:
    """The attributes of one optimizer that are state.

    Args:
        name: The name of the optimizer's part.
        optimizer: The optimizer.
        models: The registered models; they know the names of its parameters.
    """

    def __init__(self, name: str, optimizer: Any, models: Sequence[ModelPart]) -> None:
        self.name = name
        self._optimizer = optimizer
        self._models = models
        self._first = {
            key: copy.copy(value) for key, value in self._own().items() if type(value) in _PLAIN or _are_numbers(value)
        }
        self._moved: set[str] = set()
        self._known: tuple[int, dict[int, str]] | None = None

    def structure(self) -> Hashable:
        """Returns a value that differs when `live` would give other tensors."""
        return tuple([(name, id(tensor)) for name, tensor in self.live().items()])

    def live(self) -> dict[str, torch.Tensor]:
        """Returns the tensors in attributes."""
        return {
            name: tensor
            for key, value in self._carried().items()
            for name, tensor in values.tensors_in(value, f"attributes/{key}")
        }

    def record(self) -> dict[str, Any]:
        """Records the plain values, and where the tensors are."""
        return {key: values.snapshot(value, values.live) for key, value in self._carried().items()}

    def encode(self, recorded: Mapping[str, Any]) -> Stored:
        """Returns what was recorded, as JSON: its tensors are live."""
        tensors: dict[str, torch.Tensor] = {}
        encoded = {key: values.encode(value, f"attributes/{key}", tensors) for key, value in recorded.items()}
        return Stored({}, {"kind": KIND, "class": type(self._optimizer).__qualname__, "values": encoded})

    def shard_range(self, name: str, shape: tuple[int, ...]) -> None:
        """Needs everything."""

    def memory(self) -> dict[str, torch.Tensor]:
        """Returns nothing: whether a tensor stays where it is is decided when all is read."""
        return {}

    def neighbors(self, rest: Any) -> dict[str, torch.Tensor]:
        """Returns nothing, likewise."""
        return {}

    def problems(self, stored: Stored) -> list[str]:
        """Returns a line if the attributes are those of another class."""
        then, now = rest_of(stored, self.name, KIND).get("class"), type(self._optimizer).__qualname__
        return [] if then == now else [f"{self.name}: is of class {then} in the checkpoint and of class {now} here"]

    def restore(self, stored: Stored, *, strict: bool) -> list[str]:
        """Puts the attributes back: tensors in place where they fit, everything else anew."""
        if problems := self.problems(stored):
            if strict:
                raise CheckpointError("; ".join(problems))
            return [f"{problem}: left out" for problem in problems]
        encoded = stored.rest.get("values")
        if not isinstance(encoded, dict):
            raise CheckpointError(f"{self.name}: what the checkpoint says of its attributes cannot be read")
        decoded = {key: values.decode(value, stored.tensors) for key, value in encoded.items()}
        if wrong := [key for key in decoded if not self._is_attribute(key)]:
            raise CheckpointError(
                f"{self.name}: {quoted(wrong[0])} in the checkpoint is no attribute that holds a state"
            )
        parameters = self._by_name()
        for key, value in decoded.items():
            current = _by_names(getattr(self._optimizer, key, None), self._names())
            setattr(self._optimizer, key, _by_parameters(_put(current, value), parameters))
        self._moved.update(decoded)
        return []

    def _carried(self) -> dict[str, Any]:
        """Returns the attributes that are state; dictionaries whose keys are parameters have their names instead."""
        carried, names = {}, self._names()
        for key, value in self._own().items():
            if type(value) in _PLAIN or _are_numbers(value):
                if key in self._moved or key not in self._first or not _is_same(value, self._first[key]):
                    carried[key] = value
                    self._moved.add(key)
            elif (named := _by_names(value, names)) is not None and _is_state(named, names):
                carried[key] = named
        return carried

    def _own(self) -> dict[str, Any]:
        ignored = _torchs_attributes()
        attributes = getattr(self._optimizer, "__dict__", {})
        return {key: value for key, value in attributes.items() if key not in ignored}

    def _is_attribute(self, key: str) -> bool:
        of_class = getattr(type(self._optimizer), key, None)
        is_name = key.isidentifier() and not key.startswith("__") and key not in _torchs_attributes()
        return is_name and type(of_class) in _PLAIN

    def _by_name(self) -> dict[str, torch.Tensor]:
        return {
            f"{model.name}.{name}": parameter
            for model in self._models
            for name, parameter in model.named_parameters().items()
        }

    def _names(self) -> dict[int, str]:
        """Returns the names of parameters by their identity, looked up anew when there are others in the groups."""
        members = sum(len(group["params"]) for group in getattr(self._optimizer, "param_groups", ()))
        if self._known is None or self._known[0] != members:
            names: dict[int, str] = {}
            for name, parameter in self._by_name().items():
                names.setdefault(id(parameter), name)
            self._known = members, names
        return self._known[1]


@cache
def _torchs_attributes() -> frozenset[str]:
    """Returns what every optimizer of torch has, and what torch keeps at it."""
    plain = optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    return frozenset({*vars(plain), *_OF_SCHEDULES})


def _by_names(value: Any, names: Mapping[int, str]) -> Any:
    """Returns a dictionary whose keys are parameters with their names as keys; None for one of parameters unknown."""
    if not isinstance(value, dict) or not any(isinstance(key, torch.Tensor) for key in value):
        return value
    if not all(id(key) in names for key in value):
        return None
    return {"parameters": {names[id(key)]: content for key, content in value.items()}}


def _by_parameters(value: Any, parameters: Mapping[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict) or list(value) != ["parameters"]:
        return value
    return {parameters[name]: content for name, content in value["parameters"].items() if name in parameters}


def _is_state(value: Any, names: Mapping[int, str]) -> bool:
    """Tells if there are tensors in a value, no parameter among them, and nothing that has no form."""
    waiting, tensors = [value], 0
    while waiting:
        item = waiting.pop()
        if isinstance(item, torch.Tensor):
            if id(item) in names or isinstance(item, torch.nn.Parameter):
                return False
            tensors += 1
        elif type(item) in (list, tuple, deque):
            waiting += item
        elif isinstance(item, dict) and all(type(key) in _PLAIN for key in item):
            waiting += item.values()
        elif type(item) not in _PLAIN:
            return False
    return tensors > 0


def _are_numbers(value: Any) -> bool:
    """Tells if a value is a history of numbers, or a few under names."""
    if type(value) is dict:
        items = value.values() if all(type(key) is str for key in value) else None
    else:
        items = value if type(value) in (list, tuple, deque) else None
    if items is None or len(items) > _LONGEST:
        return False
    return all(type(item) in (bool, float) or (type(item) is int and abs(item) < _BIGGEST) for item in items)


def _is_same(value: Any, first: Any) -> bool:
    return type(value) is type(first) and (value == first or value != value)


def _put(current: Any, value: Any) -> Any:
    """Returns a value in the tensors that are there already, where those fit: others may share their memory."""
    if isinstance(value, torch.Tensor):
        if isinstance(current, torch.Tensor) and (current.shape, current.dtype) == (value.shape, value.dtype):
            with torch.no_grad():
                return current.copy_(value)
        return value.to(current.device) if isinstance(current, torch.Tensor) else value
    if isinstance(value, dict):
        before = current if isinstance(current, dict) else {}
        return type(value)((key, _put(before.get(key), item)) for key, item in value.items())
    if type(value) in (list, tuple, deque):
        here = current if type(current) is type(value) and len(current) == len(value) else [None] * len(value)
        items = [_put(old, new) for old, new in zip(here, value, strict=True)]
        return deque(items, value.maxlen) if isinstance(value, deque) else type(value)(items)
    return value
