"""The share of one process of a part: what it writes of what all hold alike, and what is its own."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from holdfast.capture.replicas import Content, Ownership
from holdfast.errors import UnsupportedError
from holdfast.layouts.ownership import OWN_MODELS, OWN_OBJECTS, OWN_OPTIMIZERS, Own, note, with_note
from holdfast.state.gradients import Gradients, gradients_rest
from holdfast.state.layered_optimizer import OptimizerPartOfAnyKind
from holdfast.state.model import ModelPart
from holdfast.state.part import GRADIENTS, Part, Stored
from holdfast.state.sharding import is_distributed, local_of, written_by


@dataclass(frozen=True)
class Share:
    """The share of one process of one part.

    Args:
        part: The part's name.
        live: The live tensors that this process writes for all.
        stored: The encoded rest, which rank 0 writes; its tensors without those that are somebody's own.
        own: What this process writes for itself.
        others: The live tensors of this process that no file for all has, or not from here.
        alone: True where only some processes have the part: nothing is written for all.
        requires: The words for what a reader of version 1 would get wrong.
    """

    part: str
    live: Mapping[str, torch.Tensor]
    stored: Stored
    own: Own
    others: frozenset[str]
    alone: bool
    requires: tuple[str, ...]


def content_of(part: Part, live: Mapping[str, torch.Tensor], stored: Stored) -> Content:
    """Returns what of a part is compared with the other processes: all that is not distributed."""
    plain = {name: tensor for name, tensor in live.items() if not is_distributed(tensor)}
    expected = (plain.keys() | stored.tensors.keys()) - parameters_of(plain).keys() if _is_model(part) else ()
    return Content(stored.rest, stored.tensors, plain, expected)


def share_of(
    part: Part, live: Mapping[str, torch.Tensor], stored: Stored, owned: Ownership, rank: int, size: int
) -> Share:
    """Returns the share of a process.

    Args:
        part: The part.
        live: Its live tensors.
        stored: Its encoded rest.
        owned: What of it the processes do not hold alike.
        rank: The process.
        size: The number of processes.
    """
    if size == 1:
        local = {name: local_of(tensor) for name, tensor in live.items()}
        return Share(part.name, local, stored, Own({}, None, {}), frozenset(), alone=False, requires=())
    _refuse_distributed(part, live, owned)
    everything = {**{name: local_of(tensor) for name, tensor in live.items()}, **stored.tensors}
    if owned.alone:
        own = Own(everything, stored.rest, stored.aliases)
        return Share(part.name, {}, stored, own, frozenset(live), alone=True, requires=(_word_for(part),))
    buffers = everything.keys() - parameters_of(live).keys() if _is_model(part) else frozenset()
    # Of what all have rank 0 writes its own for all, as another number of processes may take it.
    others = owned.partial | (owned.differing - (owned.alike & buffers) if rank else frozenset())
    own_tensors = {name: tensor for name, tensor in everything.items() if name in others}
    said = note(owned.differing - buffers, owned.partial, rest=owned.rest)
    rest = with_note(stored.rest, said)
    own = Own(own_tensors, rest if owned.rest and rank else None, stored.aliases)
    shared = {name: tensor for name, tensor in live.items() if name not in owned.partial | owned.differing}
    written = _written_for_all(part, shared, rank, size)
    if rank == 0:
        written |= live.keys() - shared.keys() - others
    return Share(
        part.name,
        {name: local_of(tensor) for name, tensor in live.items() if name in written},
        replace(stored, rest=rest, tensors={k: tensor for k, tensor in stored.tensors.items() if k not in others}),
        own,
        frozenset(others),
        alone=False,
        requires=(_word_for(part),) if said else (),
    )


def share_of_gradients(
    gradients: Gradients, copies: Mapping[str, torch.Tensor], owned: Ownership, rank: int, size: int
) -> Share:
    """Returns the share of a process of the gradients, which it may not have reduced with the others'.

    Args:
        gradients: The gradients that go over boundaries.
        copies: Their copies.
        owned: What of them the processes do not hold alike.
        rank: The process.
        size: The number of processes.

    Raises:
        UnsupportedError: Only some processes have them, and they are of distributed parameters.
    """
    if owned.alone:
        if len(gradients.plain(copies)) < len(copies):
            raise UnsupportedError("gradients of distributed parameters go over a boundary, and not in every rank")
        own = Own(copies, gradients_rest(), {})
        return Share(GRADIENTS, {}, Stored({}, None), own, frozenset(copies), alone=True, requires=(GRADIENTS,))
    others = owned.partial | (owned.differing if rank else frozenset())
    shared = {name: copy for name, copy in copies.items() if name not in owned.partial | owned.differing}
    written = gradients.written(shared, rank, size)
    if rank == 0:
        written |= {name: copies[name] for name in owned.differing}
    rest = with_note(gradients_rest(), note(owned.differing, owned.partial, rest=False))
    own = Own({name: copy for name, copy in copies.items() if name in others}, None, {})
    return Share(GRADIENTS, written, Stored({}, rest), own, others, alone=False, requires=(GRADIENTS,))


def parameters_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the parameters among some tensors."""
    return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, torch.nn.Parameter)}


def _written_for_all(part: Part, shared: Mapping[str, torch.Tensor], rank: int, size: int) -> set[str]:
    """Returns the names of those tensors that this process writes: the processes share out what is large."""
    shared_out: Mapping[str, Any] = shared if isinstance(part, OptimizerPartOfAnyKind) else {}
    if isinstance(part, ModelPart):
        # Each process finds out by itself which large buffers stand still, so they may disagree about those.
        shared_out = parameters_of(shared)
    return written_by(shared_out, rank, size) | (shared.keys() - shared_out.keys() if rank == 0 else set())


def _refuse_distributed(part: Part, live: Mapping[str, torch.Tensor], owned: Ownership) -> None:
    """Refuses what is a distributed tensor here and a plain one, or none at all, in another process.

    Raises:
        UnsupportedError: There is one.
    """
    for name in live if owned.alone else (owned.differing | owned.partial) & live.keys():
        if is_distributed(live[name]):
            raise UnsupportedError(
                f"{part.name}.{name} is a distributed tensor here and not in every rank",
                hint="register the same in all ranks, or keep it as a plain tensor where only some have it",
            )


def _word_for(part: Part) -> str:
    if _is_model(part):
        return OWN_MODELS
    return OWN_OPTIMIZERS if isinstance(part, OptimizerPartOfAnyKind) else OWN_OBJECTS


def _is_model(part: Part) -> bool:
    return isinstance(part, ModelPart)
