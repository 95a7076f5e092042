"""The moment after an optimizer step when model, optimizer and schedule agree."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.capture.tripwire import Fingerprint


@dataclass(frozen=True)
class Boundary:
    """One boundary, and the state that is recorded there because it changes before the next update.

    Args:
        step: The number of optimizer steps taken, over all resumes.
        stage: The stage of a trainer at this step: `update` right after it, `logged` after logging and evaluation,
            `epoch_end` after what belongs to the end of an epoch.
        manifest_entry: The manifest's words on it: counters that a resume needs back. Values are JSON; floats are
            written as `float.hex` gives them, so that they return bit for bit, NaN included.
        number: Its number among the boundaries of this process; 0 is the beginning of training, before any update.
        recorded: The small state, as whoever supplied it wants it back.
        fingerprint: The fingerprint of the large state.
        scheduled: The reason why the schedule asks for a save of this very boundary; empty when it does not.
        revision: The number of times that the small state was recorded anew since, as training had changed it before
            it asked for a save.
        asked: The requests that training has made at this boundary.
        reached_at: The time on the monotonic clock.
        is_wanted: True where its save is one that somebody asked for, and not the schedule alone.
    """

    step: int
    stage: str
    manifest_entry: Mapping[str, Any] = field(default_factory=dict)
    number: int = 0
    recorded: Any = None
    fingerprint: "Fingerprint | None" = None
    scheduled: str = ""
    revision: int = 0
    asked: tuple[Any, ...] = ()
    reached_at: float = field(default_factory=time.monotonic)
    is_wanted: bool = True

    @property
    def state(self) -> tuple[int, int]:
        """A value that differs between boundaries, and between two records of one."""
        return self.number, self.revision

    def record(self) -> dict[str, Any]:
        """Returns what the manifest says of the boundary."""
        return {"face": self.stage, **self.manifest_entry}


def of_rank(recorded: Mapping[str, Any], rank: int) -> Mapping[str, Any] | None:
    """Returns what a manifest says of one rank's boundary.

    Args:
        recorded: The result of `Boundary.record` for rank 0; the others' are under `ranks`.
        rank: The rank.

    Returns:
        The same of that rank; None for one that the checkpoint does not have.
    """
    if rank == 0:
        return recorded
    others = recorded.get("ranks")
    entry = others[rank - 1] if isinstance(others, list) and rank <= len(others) else None
    return entry if isinstance(entry, dict) else None
