"""The parts of a training's state: what each gives to a checkpoint, and how it takes it back."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from holdfast.errors import CheckpointError
from holdfast.text import quoted

if TYPE_CHECKING:
    import torch

    from holdfast.state.sharding import ShardRange


RESERVED = ("random", "data", "training")
"""The names of files of a checkpoint that belong to no part."""

CARRIED, GRADIENTS = "carried", "gradients"
BESIDE = (CARRIED, GRADIENTS)
"""The names of files that are written as a part's, though what they hold is in none."""

SIDECAR_PREFIX = ".aside."
"""The beginning of the names of tensors that others who load a model's file should not meet in it. No weight has it."""


class LoadedTensors(dict[str, "torch.Tensor"]):
    """Tensors of a checkpoint, by name. The `free` ones are in memory of their own, which whoever comes first keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.free: set[str] = set()

    def claim(self, name: str) -> "torch.Tensor | None":
        """Gives a tensor away for good; None where it may only be copied."""
        if name not in self.free:
            return None
        self.free.remove(name)
        return self[name]


@dataclass(frozen=True)
class Stored:
    """The content of a checkpoint of one part.

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
        """Its name: `model`, `optimizer`, `ema`; a component of a file's name."""

    def structure(self) -> Hashable:
        """Returns a value that differs when `live` would give other tensors. Asked at every boundary: it is cheap."""

    def live(self) -> Mapping[str, "torch.Tensor"]:
        """Returns the very tensors that change only in an update, by the names that they have in the file."""

    def record(self) -> Any:
        """Returns the small rest, as of now; later changes do not show in it. Called by training at every boundary."""

    def encode(self, recorded: Any) -> Stored:
        """Returns what was recorded, for a file that has the live tensors too. Called in another thread."""

    def shard_range(self, name: str, shape: tuple[int, ...]) -> "ShardRange | None":
        """Returns the range of a whole tensor of a checkpoint that this process needs.

        Args:
            name: The tensor's name in the file.
            shape: Its whole shape.

        Returns:
            The range; None if it needs all.
        """

    def memory(self) -> Mapping[str, "torch.Tensor"]:
        """Returns the live memory that tensors of a checkpoint may be read into where they fit, by name in the file."""

    def neighbors(self, rest: Any) -> Mapping[str, "torch.Tensor"]:
        """Returns live tensors beside which tensors of a checkpoint will be that have no memory here yet.

        Args:
            rest: The JSON that the checkpoint has of the part, which anybody may have written.

        Returns:
            The live tensors, by the names that the others have in the file.
        """

    def problems(self, stored: Stored) -> list[str]:
        """Returns the reasons why a checkpoint does not fit, a line for each mismatch. Changes nothing."""

    def restore(self, stored: Stored, *, strict: bool) -> list[str]:
        """Puts everything back in place, sharing no memory with `stored` but what that gives away.

        Args:
            stored: The content of the checkpoint.
            strict: Refuses one that does not fit. Otherwise what fits is put back.

        Returns:
            A line for each thing that the user should know: what was left out, what was changed besides values.

        Raises:
            CheckpointError: It does not fit. With `strict`, nothing was changed.
        """


def rest_of(stored: Stored, name: str, kind: str) -> Mapping[str, Any]:
    """Returns the rest of what a checkpoint holds of a part, which anybody may have written.

    Raises:
        CheckpointError: It is that of another kind of part.
    """
    rest = stored.rest
    if not isinstance(rest, dict) or rest.get("kind") != kind:
        other = rest.get("kind") if isinstance(rest, dict) else None
        raise CheckpointError(f"{name} is of kind {quoted(other)} in the checkpoint, and of kind {kind!r} here")
    return rest
