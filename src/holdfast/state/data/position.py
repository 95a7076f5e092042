"""A position in the data, and its form as JSON."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from holdfast.errors import CheckpointError
from holdfast.state import inline_tensors, values
from holdfast.state.data import order
from holdfast.state.data.order import Order
from holdfast.state.rng import state as rng_state
from holdfast.state.rng.state import RngRecord

_INNER = ("inner", "inner_begin", "inner_ahead")
WORD = "data"
"""The word of `requires` for a position with fields that version 1 does not have."""
EPOCHS = "epochs"
"""The word for one that is beyond the epoch whose body is to be gone on with."""


class Position(NamedTuple):
    """A position in the data, as it is recorded at a boundary."""

    epoch: int
    """Counted from 0; between two epochs, the one to come."""
    consumed: int
    """Batches of the epoch that training was given, since what `order` says was passed. Workers are ahead of it."""
    begin: RngRecord | None
    """The random state before the epoch's iterator was made; None between two epochs."""
    workers_kept: bool
    """True if the epoch goes on with the workers of the one before."""
    state: Any
    """The state that the data gives of its own position, where it can."""
    order: Order | None
    """The order of the epoch, where it is known how it is made; None between two epochs."""
    inner: Mapping[str, Any] = {}
    """The states of generators and samplers inside the data, by their paths in it."""
    inner_begin: Mapping[str, Any] = {}
    """The same when the epoch began; empty between two epochs."""
    inner_ahead: Mapping[str, Any] = {}
    """The same before the batch was fetched that a prepared loader, or a trainer, has ahead."""
    ahead: RngRecord | None = None
    """The random state from which the batch was fetched that a prepared loader, or a trainer, has ahead."""
    set_epoch: int | None = None
    """The epoch that the script has told the data itself; None where it leaves that to Holdfast."""

    @property
    def requires(self) -> bool:
        """True where a reader of version 1 would go on with other samples, or other random numbers in them."""
        return bool(self.inner) or self.ahead is not None or self.set_epoch is not None

    def encode(self) -> dict[str, Any]:
        """Returns the position as JSON.

        Raises:
            UnsupportedError: The data's own state holds what has no form there.
        """
        tensors: dict[str, torch.Tensor] = {}
        state = values.encode(self.state, "data: state_dict()", tensors)
        begin = None if self.begin is None else self.begin.encode()
        encoded: dict[str, Any] = {"epoch": self.epoch, "consumed": self.consumed, "begin": begin}
        encoded |= {"workers_kept": self.workers_kept, "state": state}
        if self.order is not None:
            encoded["order"] = self.order._asdict()
        for name in _INNER:
            if states := getattr(self, name):
                encoded[name] = {
                    path: values.encode(state, f"{name}: {path}", tensors) for path, state in states.items()
                }
        if self.ahead is not None:
            encoded["ahead"] = self.ahead.encode()
        if self.set_epoch is not None:
            encoded["set_epoch"] = self.set_epoch
        return {**encoded, "tensors": inline_tensors.encode(tensors)} if tensors else encoded


def is_past(encoded: Mapping[str, Any], epoch: int) -> bool | None:
    """Tells whether all batches of an epoch are taken at a position; None where it is within it, and nobody knows.

    Args:
        encoded: The position as JSON, with the loader's settings beside it.
        epoch: The epoch, which is that of the position, or the one before.
    """
    if encoded["epoch"] > epoch or encoded.get("begin") is None:
        return bool(encoded["epoch"] > epoch)
    settings, known = encoded.get("loader"), encoded.get("order")
    batches = settings.get("batches") if isinstance(settings, Mapping) else None
    passed = known.get("passed") if isinstance(known, Mapping) else 0
    return None if type(batches) is not int or passed else bool(encoded["consumed"] >= batches)


@dataclass(frozen=True)
class Resume:
    """A position that is still to be reached; the arguments of `DataCursor.restore`."""

    at: Position
    replay: bool
    after_skip: Callable[[], object]
    by_guess: bool
    """True where the data may end before the position: then the epoch is over."""


def decode(encoded: Mapping[str, Any]) -> Position:
    """Returns the position that `Position.encode` gave.

    Raises:
        CheckpointError: It is no position.
    """
    if not isinstance(encoded, Mapping):
        raise _bad("it is no object")
    begin, kept = encoded.get("begin"), encoded.get("workers_kept")
    counts = [encoded.get("epoch"), encoded.get("consumed")]
    if not all(type(count) is int and count >= 0 for count in counts) or type(kept) is not bool:
        raise _bad("epoch, consumed and workers_kept are not what they should be")
    if begin is not None and not isinstance(begin, Mapping):
        raise _bad("begin is no random state")
    known = order.decode(encoded.get("order"))
    if (begin is None) != (counts[1] == 0 and (known is None or not known.passed)):
        raise _bad(f"after {counts[1]} batches of an epoch, with{'out' if begin is None else ''} its beginning")
    decoded = None if begin is None else rng_state.decode(begin)
    if known is not None and decoded is not None:
        known.check(decoded.generators)
    tensors = inline_tensors.decode(encoded.get("tensors", {}))
    state = values.decode(encoded.get("state"), tensors)
    inner, inner_begin, inner_ahead = (decoded_states(encoded.get(name, {}), tensors) for name in _INNER)
    ahead, set_epoch = encoded.get("ahead"), encoded.get("set_epoch")
    if set_epoch is not None and type(set_epoch) is not int:
        raise _bad("set_epoch is no epoch")
    if ahead is not None and not isinstance(ahead, Mapping):
        raise _bad("ahead is no random state")
    return Position(
        encoded["epoch"],
        encoded["consumed"],
        decoded,
        kept,
        state,
        known,
        inner,
        inner_begin,
        inner_ahead,
        None if ahead is None else rng_state.decode(ahead),
        set_epoch,
    )


def decoded_states(encoded: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Returns states inside the data, by their paths in it."""
    if not isinstance(encoded, Mapping):
        raise _bad("the states inside the data are none")
    return {path: values.decode(state, tensors) for path, state in encoded.items()}


def _bad(why: str) -> CheckpointError:
    return CheckpointError(f"the checkpoint's position in the data: {why}", hint="resume from another checkpoint")
