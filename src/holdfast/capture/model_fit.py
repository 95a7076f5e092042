"""Whether what a checkpoint holds of a model is what the model consists of."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from holdfast.capture.shard import local_of
from holdfast.capture.slots import Slot, identity
from holdfast.capture.state import ASIDE, Stored


@dataclass
class Fit:
    """A comparison.

    Args:
        problems: A line for each mismatch.
        pairs: The places that fit, each with what goes there; a tensor with several names comes once.
    """

    problems: list[str] = field(default_factory=list)
    pairs: list[tuple[Slot, torch.Tensor]] = field(default_factory=list)


def compare(slots: Iterable[Slot], stored: Stored) -> Fit:
    """Compares by name, nothing by position."""
    fit = Fit()
    held = {alias: stored.tensors[kept] for alias, kept in stored.aliases.items() if kept in stored.tensors}
    held.update(stored.tensors)
    here = {slot.stored: slot for slot in slots}
    done: dict[object, str] = {}
    for name, slot in here.items():
        first = done.setdefault(identity(slot.tensor), name)
        if name not in held:
            if slot.kind != "cache":  # by its owner's word it is not state
                fit.problems.append(f"{slot.kind} {name!r} is in the model and not in the checkpoint")
        elif slot.kind != "cache" and described(held[name]) != described(local_of(slot.tensor)):
            then, now = described(held[name]), described(local_of(slot.tensor))
            fit.problems.append(f"{slot.kind} {name!r} is {then} in the checkpoint and {now} in the model")
        elif first == name:
            fit.pairs.append((slot, held[name]))
        elif first in held and held[first] is not held[name]:
            fit.problems.append(f"{name!r} and {first!r} are one tensor in the model and two in the checkpoint")
    for name in held:
        if name not in here and not name.startswith(ASIDE):
            fit.problems.append(f"{name!r} is in the checkpoint and not in the model")
    for alias, kept in stored.aliases.items():
        if alias in here and kept in here and identity(here[alias].tensor) != identity(here[kept].tensor):
            fit.problems.append(f"{alias!r} and {kept!r} are one tensor in the checkpoint and two in the model")
    return fit


def described(tensor: torch.Tensor) -> str:
    """A tensor's dtype and shape, and its layout where it is a special one."""
    text = f"{tensor.dtype} {list(tensor.shape)}".removeprefix("torch.")
    return text if tensor.layout == torch.strided else f"{text} {tensor.layout}".replace("torch.", "")
