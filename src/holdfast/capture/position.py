"""A position in the data, and its form as a tree for JSON."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from holdfast.capture import random_state, tree
from holdfast.capture.random_state import Recorded
from holdfast.errors import CheckpointError, UnsupportedError


class Position(NamedTuple):
    """A position in the data, as it is recorded at a boundary."""

    epoch: int
    """Counted from 0; between two epochs, the one to come."""
    consumed: int
    """Batches of the epoch that training was given. Workers are ahead of it."""
    begin: Recorded | None
    """The random state before the epoch's iterator was made; None between two epochs."""
    workers_kept: bool
    """Whether the epoch goes on with the workers of the one before."""
    state: Any
    """What the data says of its own position, where it can."""

    def encode(self) -> dict[str, Any]:
        """A tree for JSON.

        Raises:
            UnsupportedError: The data's own state holds what has no form there.
        """
        tensors: dict[str, torch.Tensor] = {}
        state = tree.encode(self.state, "data: state_dict()", tensors)
        if tensors:
            raise UnsupportedError(
                f"{next(iter(tensors))} is a tensor, or kept as one, which the file of the position cannot hold",
                hint="give state_dict() numbers, texts, None, and tuples, lists and dictionaries of these",
            )
        begin = None if self.begin is None else self.begin.encode()
        return {**self._asdict(), "begin": begin, "state": state}


def decode(given: Mapping[str, Any]) -> Position:
    """What `Position.encode` gave.

    Raises:
        CheckpointError: It is no position.
    """
    begin, kept = given.get("begin"), given.get("workers_kept")
    counts = [given.get("epoch"), given.get("consumed")]
    if not all(type(count) is int and count >= 0 for count in counts) or type(kept) is not bool:
        raise _bad("epoch, consumed and workers_kept are not what they should be")
    if begin is not None and not isinstance(begin, Mapping):
        raise _bad("begin is no random state")
    if (begin is None) != (counts[1] == 0):
        raise _bad(f"after {counts[1]} batches of an epoch, with{'out' if begin is None else ''} its beginning")
    decoded = None if begin is None else random_state.decode(begin)
    return Position(given["epoch"], given["consumed"], decoded, kept, tree.decode(given.get("state"), {}))


def _bad(why: str) -> CheckpointError:
    return CheckpointError(f"the checkpoint's position in the data: {why}", hint="resume from another checkpoint")
