"""The traces that a rehearsed program leaves, and the first place where two of them differ."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast.run.rehearsal import Rehearsal

Moment = tuple[int, int, str]
"""A step, a rank, and how far a Trainer has gone in that step."""


@dataclass(frozen=True)
class Trace:
    """The steps of one start of the program, of all ranks.

    Args:
        pids: The processes that trained.
        begins_at: The step at which training began; None where it never did.
        left_at: The step at which all ranks ended; None where they did not come so far.
        moments: What each moment left: the loss as given, and digests by the paths of a checkpoint's files.
        warnings: The warnings that Holdfast gave.
    """

    pids: tuple[int, ...] = ()
    begins_at: int | None = None
    left_at: int | None = None
    moments: Mapping[Moment, Mapping[str, Any]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def last_step(self) -> int:
        """The last step that it came to; 0 before the first."""
        return max((step for step, _, _ in self.moments), default=0)


@dataclass(frozen=True)
class Difference:
    """The first moment at which two starts differ.

    Args:
        step: Its step.
        rank: Its rank.
        parts: The loss, and the files of a checkpoint, that are others there.
    """

    step: int
    rank: int
    parts: tuple[str, ...]

    def __str__(self) -> str:
        ranks = f", rank {self.rank}" if self.rank else ""
        return f"step {self.step}{ranks}: {', '.join(self.parts)}"


def read(plan: Rehearsal) -> Trace:
    """Reads what a start of the program has left so far; a line that is being written is left out."""
    pids, begins, lefts, moments = [], [], [], {}
    files = sorted(Path(plan.traces).glob("rank-*.jsonl"))
    for path in files:
        for line in _lines(path):
            if "pid" in line:
                rank = line["rank"]
                pids.append(line["pid"])
                begins.append(line["begins_at"])
            elif "left_at" in line:
                lefts.append(line["left_at"])
            else:
                moments[line["step"], rank, line["stage"]] = {"loss": line["loss"], **line["parts"]}
    warnings = plan.lines.read_text(errors="replace").splitlines() if plan.lines.exists() else []
    return Trace(
        tuple(pids),
        max(begins, default=None),
        min(lefts) if lefts and len(lefts) == len(files) else None,
        moments,
        tuple(dict.fromkeys(warnings)),
    )


def first_difference(reference: Trace, other: Trace, ignored: Collection[str] = ()) -> Difference | None:
    """Returns the first moment that both have and at which they differ, but for ignored parts; None for none."""
    for step, rank, stage in sorted(reference.moments.keys() & other.moments.keys()):
        ours, theirs = reference.moments[step, rank, stage], other.moments[step, rank, stage]
        if parts := tuple(part for part in _differing(ours, theirs) if part not in ignored):
            return Difference(step, rank, parts)
    return None


def unseeded(reference: Trace, again: Trace) -> set[str]:
    """Returns the random generators that differ between two starts of a program at their first step: nobody seeds them.

    Where training draws from one of these, its losses or weights differ as well.
    """
    both = reference.moments.keys() & again.moments.keys()
    first = min((step for step, _, _ in both), default=0)
    differing = (_differing(reference.moments[moment], again.moments[moment]) for moment in both if moment[0] == first)
    return {part for parts in differing for part in parts if part.startswith("random")}


def _differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    names = sorted(ours.keys() | theirs.keys(), key=lambda name: (name != "loss", name))
    return (name for name in names if ours.get(name) != theirs.get(name))


def _lines(path: Path) -> list[dict[str, Any]]:
    *whole, _ = path.read_text().split("\n")
    return [json.loads(line) for line in whole]
