"""The parts of a training's state: what each gives to a checkpoint, and how it takes it back."""

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from holdfast.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from holdfast.state.sharding import ShardRange


# Part of the names of files, whose suffixes need their room too.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}")

_OF_A_RANK = re.compile(r"(random|data)-[0-9]+")

RESERVED = ("random", "data", "training")
"""The names of files of a checkpoint that belong to no part."""

SIDECAR_PREFIX = ".aside."
"""How the name of a tensor begins that others who load a model's file should not meet in it. No weight's can."""


class LoadedTensors(dict[str, "torch.Tensor"]):
    """Tensors of a checkpoint, by name. The `free` ones are in memory of their own, which whoever comes first keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.free: set[str] = set()

    def claim(self, name: str) -> "torch.Tensor | None":
        """A tensor for good; None where it may only be copied."""
        if name not in self.free:
            return None
        self.free.remove(name)
        return self[name]


@dataclass(frozen=True)
class Stored:
    """What a checkpoint holds of one part.

    Args:
        tensors: Its tensors, by name.
        rest: The rest, as JSON.
        aliases: Further names of tensors (tied weights), each with the name under which the tensor is there.
    """

    tensors: Mapping[str, "torch.Tensor"]
    rest: Any
    aliases: Mapping[str, str] = field(default_factory=dict)


class Part(Protocol):
    """One part of the state: a model, an optimizer, or anything with `state_dict` and `load_state_dict`."""

    @property
    def name(self) -> str:
        """What it is called: `model`, `optimizer`, `ema`; a component of a file's name."""

    def structure(self) -> Hashable:
        """Differs when `live` would give other tensors. Asked at every boundary, so it is cheap."""

    def live(self) -> Mapping[str, "torch.Tensor"]:
        """The very tensors that change only in an update, by the names that they have in the file."""

    def record(self) -> Any:
        """The small rest, as of now; later changes do not show in it. Called by training at every boundary."""

    def encode(self, recorded: Any) -> Stored:
        """What was recorded, for a file that holds it together with the live tensors. Called in another thread."""

    def place(self, name: str, shape: tuple[int, ...]) -> "ShardRange | None":
        """Which part of a whole tensor of a checkpoint this process needs.

        Args:
            name: The tensor's name in the file.
            shape: Its whole shape.

        Returns:
            Where it lies; None if it needs all.
        """

    def memory(self) -> Mapping[str, "torch.Tensor"]:
        """The live memory that tensors of a checkpoint may be read into where they fit, by their names in the file."""

    def problems(self, stored: Stored) -> list[str]:
        """Why a checkpoint does not fit, a line for each mismatch. Changes nothing."""

    def restore(self, stored: Stored, *, strict: bool) -> list[str]:
        """Puts everything back in place, sharing no memory with `stored` but what that gives away.

        Args:
            stored: What the checkpoint holds.
            strict: Whether one that does not fit is refused. Otherwise what fits is put back.

        Returns:
            A line for each thing that the user should know: what was left out, what was changed besides values.

        Raises:
            CheckpointError: It does not fit. With `strict`, nothing was changed.
        """


def rest_of(stored: Stored, name: str, kind: str) -> Mapping[str, Any]:
    """The rest of what a checkpoint holds of a part, which anybody may have written.

    Raises:
        CheckpointError: It is that of another kind of part.
    """
    found = stored.rest
    if not isinstance(found, dict) or found.get("kind") != kind:
        there = found.get("kind") if isinstance(found, dict) else None
        raise CheckpointError(f"{name} is of kind {there!r} in the checkpoint, and of kind {kind!r} here")
    return found
