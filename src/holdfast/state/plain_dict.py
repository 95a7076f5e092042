"""A plain dict as a part: counters, a best result, a history. It is saved as it is, and put back into the same dict."""

from collections import defaultdict, deque
from typing import Any

import numpy as np
import torch

from holdfast.errors import UnsupportedError
from holdfast.state import values
from holdfast.state.part import Stored, rest_of
from holdfast.state.stateful import StatefulPart


class DictPart(StatefulPart):
    """A dict of numbers, texts, tensors, and of lists and dicts of them.

    One that makes its missing values (a defaultdict) is saved as a plain one: the script has made it, and how.

    Args:
        name: The part's name.
        content: The dict.

    Raises:
        UnsupportedError: There is something in it that cannot be written.
    """

    def __init__(self, name: str, content: dict[Any, Any]) -> None:
        self._content = content
        self._made_with = [key for key in content if type(key) is str]
        super().__init__(name, _Holder(content))

    @property
    def _kind(self) -> str:
        return type(self._object.state_dict()).__qualname__

    def encode(self, recorded: Any) -> Stored:
        """Returns the copy, as tensors and JSON, and the keys that the script had made it with."""
        try:
            stored = super().encode(recorded)
        except UnsupportedError as error:
            place = str(error).replace(f"{self.name}: state/", f"{self.name}: ", 1)
            raise UnsupportedError(
                place,
                hint="put numbers, texts, tensors, arrays, and lists, sets and dicts of them into it, and nothing else",
            ) from None
        return Stored(stored.tensors, {**stored.rest, "made_with": self._made_with})

    def restore(self, stored: Stored, *, strict: bool) -> list[str]:
        """Puts the values into the dict; a key that the script has begun to make it with since stays, and is named."""
        before = rest_of(stored, self.name, "object").get("made_with")
        known, content = before if isinstance(before, list) else [], self._content
        added = {key: content[key] for key in self._made_with if key in content and key not in known}
        lines = super().restore(stored, strict=strict)
        if self.problems(stored):
            return lines
        if new := {key: value for key, value in added.items() if key not in content}:
            content.update(new)
            return [f"{self.name}: the checkpoint has no {', '.join(new)}: as the script makes it"]
        return []


class _Holder:
    """A dict as an object that has it for its state."""

    def __init__(self, content: dict[Any, Any]) -> None:
        self._content = content

    def state_dict(self) -> dict[Any, Any]:
        return dict(self._content) if type(self._content) is defaultdict else self._content

    def load_state_dict(self, state: Any, /) -> None:
        if type(state) is not (wanted := type(self.state_dict())):
            raise TypeError(f"it is no {wanted.__qualname__}")
        _fill(self._content, state)


def _fill(present: dict[Any, Any], value: dict[Any, Any]) -> None:
    items = {key: _put_back(present.get(key), item) for key, item in value.items()}
    present.clear()
    for key, item in items.items():  # in the order of the checkpoint; a Counter's `update` would add
        present[key] = item


def _put_back(present: Any, value: Any) -> Any:
    """Returns a value, in the very object that is there, if that is of its kind: others may hold it."""
    if isinstance(present, torch.Tensor) and isinstance(value, torch.Tensor):
        return _put_tensor_back(present, value)
    if type(present) is not type(value):
        return value
    if isinstance(value, dict):
        _fill(present, value)
    elif isinstance(value, list):
        there = [*present, *[None] * len(value)]
        present[:] = [_put_back(before, item) for before, item in zip(there, value, strict=False)]
    elif isinstance(value, deque) and present.maxlen == value.maxlen:
        present.clear()
        present.extend(value)
    elif isinstance(value, set):
        present.clear()
        present.update(value)
    elif isinstance(value, np.ndarray) and _are_shaped_alike(present, value) and present.flags.writeable:
        np.copyto(present, value)
    else:
        return value
    return present


def _put_tensor_back(present: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    plain = type(present) in (torch.Tensor, torch.nn.Parameter) and present.layout == value.layout == torch.strided
    if not (plain and _are_shaped_alike(present, value) and present.stride() == value.stride()):
        return value
    if not values.is_gapless(present.shape, present.stride()):
        return value
    present.detach().copy_(value)
    return present


def _are_shaped_alike(present: Any, value: Any) -> bool:
    return bool(present.shape == value.shape and present.dtype == value.dtype)
