"""A Trainer's position in its data, and its form as JSON: `data` of a `boundary` in `docs/format.md`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from holdfast.state import inline_tensors, values
from holdfast.state.data import order
from holdfast.state.data.order import Order
from holdfast.state.data.position import decoded_states
from holdfast.state.rng import state as rng_state
from holdfast.state.rng.state import RngRecord

_INNER = ("inner", "inner_begin", "inner_ahead")
WORD = "trainer_data"
"""The word of `requires` for a position that plain division does not find, or that has more in it."""


class TrainerPosition(NamedTuple):
    """The position of a Trainer in its data, at a boundary."""

    epoch: int
    batches: int
    """Of each process, since those that `order` says were passed."""
    accumulate: int
    shift: int
    """The steps that the training is longer by than the settings alone make it."""
    order: Order | None
    loader: Mapping[str, int]
    begin: RngRecord | None
    """The random state when the epoch began, where the loader cannot be watched as it draws."""
    inner: Mapping[str, Any] = {}
    """The states of generators and samplers inside the data, by their paths in it."""
    inner_begin: Mapping[str, Any] = {}
    """The same when the epoch began."""
    inner_ahead: Mapping[str, Any] = {}
    """The same before the batch was fetched that is ahead of training."""

    def encode(self) -> dict[str, Any]:
        """Returns it as JSON.

        Raises:
            UnsupportedError: A state inside the data has no form there.
        """
        tensors: dict[str, torch.Tensor] = {}
        known = None if self.order is None else self.order._asdict()
        begin = None if self.begin is None else self.begin.encode()
        encoded = {**self._asdict(), "order": known, "begin": begin}
        for name in _INNER:
            states = encoded.pop(name)
            if states:
                encoded[name] = {
                    path: values.encode(state, f"{name}: {path}", tensors) for path, state in states.items()
                }
        return {**encoded, "tensors": inline_tensors.encode(tensors)} if tensors else encoded


def decode(entry: Mapping[str, Any]) -> TrainerPosition:
    """Returns the position that `TrainerPosition.encode` gave."""
    counts: dict[str, Any] = {name: entry[name] for name in ("epoch", "batches", "accumulate", "shift")}
    settings = {**entry["loader"]}
    if any(type(count) is not int for count in [*counts.values(), *settings.values()]) or counts["accumulate"] < 1:
        raise ValueError("counts that are none")
    begin = None if entry["begin"] is None else rng_state.decode(entry["begin"])
    tensors = inline_tensors.decode(entry.get("tensors", {}))
    inner: dict[str, Any] = {name: decoded_states(entry.get(name, {}), tensors) for name in _INNER}
    return TrainerPosition(**counts, order=order.decode(entry["order"]), loader=settings, begin=begin, **inner)
