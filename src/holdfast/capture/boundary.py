"""The moment after an optimizer step when model, optimizer and schedule agree."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Boundary:
    """One boundary, and the small state that no file of the layout holds.

    Args:
        step: The number of optimizer steps taken, over all resumes.
        face: How far a trainer has gone at this step: `update` right after it, `logged` after logging and evaluation,
            `epoch_end` after what belongs to the end of an epoch.
        small: Counters that a resume needs back. Values are JSON; floats are written as `float.hex` gives them, so that
            they return bit for bit, NaN included.
    """

    step: int
    face: str
    small: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """What the manifest says of the boundary."""
        return {"face": self.face, **self.small}
