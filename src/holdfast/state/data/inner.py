"""The random generators and states inside what a loader draws its batches from, found by a walk through it.

A sampler, a batch sampler or a data set of the user's own may draw from a generator that no loader knows of. Each is
recorded twice: as it was when the epoch began, so that the order of the epoch can be made again, and as it is.
"""

import functools
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset

from holdfast.errors import CheckpointError
from holdfast.state import values
from holdfast.state.data import loader

_ROOTS = ("dataset", "collate_fn", "sampler", "batch_sampler")
_MOST_OBJECTS, _MOST_ITEMS, _MOST_LEVELS = 2_000, 64, 8
_GLOBAL = (torch.default_generator, getattr(random, "_inst", None), getattr(np.random.mtrand, "_rand", None))
# They hold samples, models and files, and what they draw from is their own to save.
_CLOSED = ("torch.nn", "torch.storage", "datasets.", "pyarrow", "pandas", "tokenizers", "logging", "transformers.mod")


class InnerState:
    """The generators and states inside a loader, by their paths in it.

    Args:
        data: The loader.
        with_known: Takes those generators in that the loader itself knows of, for who records them nowhere else.
    """

    def __init__(self, data: Any, *, with_known: bool = False) -> None:
        self._members = {**_walk(data), **(loader.generators(data) if with_known else {})}

    def __bool__(self) -> bool:
        return bool(self._members)

    def record(self) -> dict[str, Any]:
        """Returns the state of each, as of now."""
        return {path: _state_of(member) for path, member in self._members.items()}

    def in_samples(self) -> list[str]:
        """Returns the paths of those that samples are drawn from."""
        return [path for path in self._members if _is_of_samples(path)]

    def differences(self, states: Mapping[str, Any]) -> list[str]:
        """Names those that are only here, or only in what was recorded."""
        return [
            *(f"data: the checkpoint has no state of {path}" for path in self._members.keys() - states.keys()),
            *(f"data: there is no {path} any more" for path in states.keys() - self._members.keys()),
        ]

    def begin(self, states: Mapping[str, Any]) -> None:
        """Puts each where it was when the epoch began.

        Raises:
            CheckpointError: One does not take its state.
        """
        for path in self._members.keys() & states.keys():
            put(path, self._members[path], states[path])

    def arrive(self, states: Mapping[str, Any], *, made_again: bool) -> list[str]:
        """Puts generators and the data set's own where they were at a position that was come to.

        Args:
            states: Their states there.
            made_again: True where the order of the epoch was made again up to there, and samplers must be there too.

        Returns:
            A line for each sampler that is not.
        """
        lines = []
        for path in self._members.keys() & states.keys():
            member, state = self._members[path], states[path]
            if _is_generator(member) or _is_of_samples(path):
                put(path, member, state)
            elif made_again and _as_json(_state_of(member)) != _as_json(state):
                lines.append(f"data: {path} came to another state than it had: its order may be another from here on")
        return lines


def _walk(data: Any) -> dict[str, Any]:
    """Finds the members of a loader that have a state, without those that the loader itself knows of."""
    known = {id(generator) for generator in loader.generators(data).values()}
    known |= {id(other) for other in _GLOBAL if other is not None}
    if (stateful := loader.stateful(data)) is not None:
        known.add(id(stateful))
    base = loader.base(data)
    waiting: list[tuple[str, Any, int]] = [(name, getattr(base, name, None), 0) for name in _ROOTS]
    members: dict[str, Any] = {}
    waiting.reverse()
    while waiting and len(known) < _MOST_OBJECTS:
        path, value, level = waiting.pop()
        if value is None or id(value) in known:
            continue
        known.add(id(value))
        if _is_generator(value) or (level < 4 and _gives_state(value)):
            members[path] = value
        elif level < _MOST_LEVELS:
            waiting += [(f"{path}{name}", item, level + 1) for name, item in reversed([*_children(value)])]
    return members


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if type(value) in (list, tuple):
        if len(value) <= _MOST_ITEMS:
            yield from ((f"[{index}]", item) for index, item in enumerate(value))
    elif type(value) is dict:
        if len(value) <= _MOST_ITEMS:
            yield from ((f"[{key!r}]", item) for key, item in value.items())
    elif isinstance(value, functools.partial):
        yield ".func", value.func
        yield ".args", value.args
        yield ".keywords", value.keywords
    elif (owner := getattr(value, "__self__", None)) is not None and callable(value):
        yield "", owner
    elif not isinstance(value, type) and not type(value).__module__.startswith(_CLOSED):
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict) and not callable(getattr(value, "_fields", None)):
            yield from ((f".{name}", item) for name, item in attributes.items() if not _is_leaf(item))


def _is_leaf(value: Any) -> bool:
    return isinstance(value, str | bytes | int | float | np.ndarray | torch.Tensor | torch.nn.Module)


def _is_generator(value: Any) -> bool:
    if isinstance(value, random.SystemRandom):
        return False
    return isinstance(value, torch.Generator | np.random.Generator | np.random.RandomState | random.Random)


def _gives_state(value: Any) -> bool:
    methods = ("state_dict", "load_state_dict")
    if isinstance(value, torch.nn.Module | IterableDataset | type) or type(value).__module__.startswith(_CLOSED):
        return False
    return all(callable(getattr(value, name, None)) for name in methods)


def _is_of_samples(path: str) -> bool:
    return path.startswith(("dataset", "collate_fn"))


def _state_of(member: Any) -> Any:
    if isinstance(member, torch.Generator):
        return member.get_state()
    if isinstance(member, np.random.Generator):
        return member.bit_generator.state
    if isinstance(member, np.random.RandomState):
        return member.get_state(legacy=False)
    if isinstance(member, random.Random):
        return member.getstate()
    return values.snapshot(member.state_dict(), values.cloned)


def put(path: str, member: Any, state: Any) -> None:
    """Puts something inside a loader where it was.

    Args:
        path: Its path in the loader.
        member: A generator, or what takes a state.
        state: Its state.

    Raises:
        CheckpointError: It does not take that state.
    """
    try:
        if isinstance(member, torch.Generator):
            member.set_state(state)
        elif isinstance(member, np.random.Generator):
            member.bit_generator.state = state
        elif isinstance(member, np.random.RandomState):
            member.set_state(state)
        elif isinstance(member, random.Random):
            member.setstate(state)
        else:
            member.load_state_dict(values.snapshot(state, values.cloned))
    except Exception as error:
        raise CheckpointError(
            f"data: {path}, a {type(member).__name__}, does not take the checkpoint's state: {error!r}",
            hint="resume with the sampler and the data set that it was trained on",
        ) from error


def _as_json(state: Any) -> Any:
    tensors: dict[str, torch.Tensor] = {}
    encoded = values.encode(state, "state", tensors)
    return encoded, {name: (tensor.dtype, tensor.tolist()) for name, tensor in tensors.items()}
