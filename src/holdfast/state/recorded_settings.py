"""The settings of a training as its user gave them: what of them a checkpoint records, and what has changed since.

Only numbers, truth values and short texts are recorded, and no text whose name speaks of a secret.
"""

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from enum import Enum
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch

from holdfast.state.secrets import is_secret

_LONGEST_TEXT = 60
_MOST_ITEMS = 100
_MOST_LEVELS = 4
_UNREADABLE = object()

KEPT = "from the checkpoint, as resume_settings says"
"""The reason why a setting stays as the checkpoint has it where its user wants that."""


class Change(NamedTuple):
    """A setting that is no longer as a checkpoint records it."""

    path: tuple[str, ...]
    before: Any
    now: Any
    stays: str = ""
    """The reason why it does not hold, and the checkpoint's stays; empty where it holds."""

    @property
    def name(self) -> str:
        """The setting's name."""
        return ".".join(part.lstrip("_") for part in self.path)

    def staying(self, why: str) -> "Change":
        """Returns the same change as one that does not hold."""
        return self._replace(stays=why)

    def __str__(self) -> str:
        """Returns the line for the user."""
        before, now = _shown(self.before), _shown(self.now)
        if before == now:
            before, now = repr(self.before), repr(self.now)
        if self.stays:
            return f"{self.name}: stays {before}, {self.stays}; your configuration has {now}"
        return f"{self.name}: {before} -> {now}, from your configuration"


def readable(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Returns those values that can be recorded, as JSON."""
    content = _readable(values, _MOST_LEVELS)
    return content if isinstance(content, dict) else {}


def changes(before: Any, now: Mapping[str, Any], *path: str) -> Iterator[Change]:
    """Yields what differs of settings that both have: another version may record others.

    Args:
        before: As a checkpoint has them, which anybody may have written.
        now: As they are.
        *path: Where they are among the settings of the training.
    """
    if isinstance(before, Mapping):
        for name, value in now.items():
            if name in before:
                yield from _differences(before[name], value, (*path, name))


def _differences(before: Any, now: Any, path: tuple[str, ...]) -> Iterator[Change]:
    """Yields what differs of a value; inside of it the names are the user's, and each counts."""
    if isinstance(now, Mapping) and isinstance(before, Mapping):
        for name in dict.fromkeys([*before, *now]):
            yield from _differences(before.get(name), now.get(name), (*path, str(name)))
    elif _is_list_of_mappings(now) and _is_list_of_mappings(before) and len(now) == len(before):
        for number, (then, value) in enumerate(zip(before, now, strict=True)):
            yield from _differences(then, value, (*path, str(number)))
    elif before != now:
        yield Change(path, before, now)


def _is_list_of_mappings(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _readable(value: Any, levels: int, *, secret: bool = False) -> Any:
    """Returns a value as JSON; `_UNREADABLE` where it is none that is recorded."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, torch.Tensor):
        value = value.item() if value.numel() == 1 else _UNREADABLE
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        number = float(value)
        return number if math.isfinite(number) else str(number)
    if isinstance(value, str):
        return value if not secret and len(value) <= _LONGEST_TEXT and value.isprintable() else _UNREADABLE
    return _readable_inside(value, levels, secret=secret) if levels else _UNREADABLE


def _readable_inside(value: Any, levels: int, *, secret: bool) -> Any:
    if isinstance(value, Counter):  # as a schedule has its milestones
        value = list(itertools.islice(value.elements(), _MOST_ITEMS + 1))
    if isinstance(value, Mapping):
        items = {
            str(key): _readable(inner, levels - 1, secret=secret or is_secret(str(key))) for key, inner in value.items()
        }
        return {key: inner for key, inner in items.items() if inner is not _UNREADABLE}
    if isinstance(value, Set):
        value = sorted(value, key=str)
    if not isinstance(value, Sequence) or len(value) > _MOST_ITEMS:
        return _UNREADABLE
    items_of_list = [_readable(inner, levels - 1, secret=secret) for inner in value]
    return _UNREADABLE if _UNREADABLE in items_of_list else items_of_list


def _shown(value: Any) -> str:
    """Returns a value for people: a text bare where it is one word, everything else as JSON."""
    if isinstance(value, str) and value.isprintable() and value and " " not in value:
        return value[:_LONGEST_TEXT]
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"[: 4 * _LONGEST_TEXT]
    return "none" if value is None else json.dumps(value)[: 4 * _LONGEST_TEXT]
