"""A position in the data, and its form as JSON."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from holdfast.errors import CheckpointError
from holdfast.state import inline_tensors, values
from holdfast.state.data import order
from holdfast.state.data.order import Order
from holdfast.state.rng import state as rng_state
from holdfast.state.rng.state import RngRecord


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

    def encode(self) -> dict[str, Any]:
        """Returns the position as JSON.

        Raises:
            UnsupportedError: The data's own state holds what has no form there.
        """
        tensors: dict[str, torch.Tensor] = {}
        state = values.encode(self.state, "data: state_dict()", tensors)
        begin = None if self.begin is None else self.begin.encode()
        encoded = {**self._asdict(), "begin": begin, "state": state}
        if (known := encoded.pop("order")) is not None:
            encoded["order"] = known._asdict()
        return {**encoded, "tensors": inline_tensors.encode(tensors)} if tensors else encoded


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
    state = values.decode(encoded.get("state"), inline_tensors.decode(encoded.get("tensors", {})))
    return Position(encoded["epoch"], encoded["consumed"], decoded, kept, state, known)


def _bad(why: str) -> CheckpointError:
    return CheckpointError(f"the checkpoint's position in the data: {why}", hint="resume from another checkpoint")
