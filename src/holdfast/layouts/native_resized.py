"""The choice of what another number of processes takes of a part of which each rank had its own.

An optimizer's state that one rank alone had, of tensors as large as the parameter, is whole: whoever needs it reads it
by name. All else belongs to ranks that are not there any more.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from holdfast.errors import CheckpointError
from holdfast.layouts.ownership import Note


@dataclass
class Resized:
    """The content of a part for another number of processes.

    Args:
        rest: Its JSON.
        source: For tensors that lie in a rank's own file, the rank.
        refused: The names of tensors that differ between ranks, and that nobody can share out.
        differs: True where the rest of it is rank 0's, and other ranks had other.
    """

    rest: Any
    source: dict[str, int] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    differs: bool = False


def resized(note: Note, rests: Sequence[Any], shapes: Sequence[Mapping[str, tuple[int, ...]]]) -> Resized:
    """Returns what another number of processes takes of a part.

    Args:
        note: What rank 0 says of what is each rank's own.
        rests: The JSON of each rank.
        shapes: For each rank, those of the tensors in its own file, by name.

    Raises:
        CheckpointError: The JSON cannot be read.
    """
    kind = rests[0].get("kind") if isinstance(rests[0], dict) else None
    if kind == "optimizer":
        try:
            return _optimizer(note, rests, shapes)
        except (LookupError, TypeError, AttributeError) as error:
            raise CheckpointError("what the checkpoint says of an optimizer's state cannot be read") from error
    # What rank 0 alone has lies in its own file.
    source = dict.fromkeys(shapes[0], 0)
    if kind == "object":
        return Resized(rests[0], source, differs=note.rest or bool(note.tensors))
    return Resized(rests[0], source, note.tensors, note.rest)


def _optimizer(note: Note, rests: Sequence[Any], shapes: Sequence[Mapping[str, tuple[int, ...]]]) -> Resized:
    from holdfast.state.values import tensor_names  # loads torch, and verbs that look at files do without

    owned = note.differing | note.partial
    result = Resized({**rests[0], "state": {}}, differs=any(_settings(rest) != _settings(rests[0]) for rest in rests))
    left = set(owned)
    for member in dict.fromkeys(member for rest in rests for member in rest["state"]):
        ranks = [rank for rank, rest in enumerate(rests) if member in rest["state"]]
        state = rests[ranks[0]]["state"][member]
        tensors = set(tensor_names(state["values"]))
        left -= tensors
        if len(ranks) == 1 and _is_whole(state["shape"], tensors & owned, shapes[ranks[0]]):
            result.source |= dict.fromkeys(tensors & owned, ranks[0])
        elif len(ranks) < len(rests) or tensors & owned or any(rest["state"][member] != state for rest in rests):
            result.refused += sorted(tensors & owned) or [member]
            continue
        result.rest["state"][member] = state
    result.refused += sorted(left)
    return result


def _settings(rest: Mapping[str, Any]) -> tuple[Any, Any]:
    return rest["groups"], rest["shared"]


def _is_whole(shape: list[int], tensors: set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Tells whether a rank has tensors that are as large as their parameter, or count for all of it."""
    return all(name in shapes and (list(shapes[name]) == shape or math.prod(shapes[name]) == 1) for name in tensors)
