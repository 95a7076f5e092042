"""A save through `attach`, measured as a saver's is."""

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks.attached import Attached
from benchmarks.measure import Seconds
from benchmarks.memory import Peak
from benchmarks.states import State

_PLAIN_STEPS = 3


def save(state: State, run: Path, *, saves: int = 3, at_once: bool) -> tuple[Path, Seconds, int]:
    """The last of some saves by the schedule, so that what the first one sets up is not measured.

    What a Trainer itself does between an update and the next forward pass is taken off the stall.

    Args:
        state: What is saved.
        run: The run directory.
        saves: How many saves.
        at_once: Whether the next update comes at once, or when the state has been written.

    Returns:
        The checkpoint, the same seconds as `save_once`, and the memory that the saves before it took.
    """
    found: list[tuple[Path, Seconds]] = []
    watched = ExitStack()
    peak = watched.enter_context(Peak())

    def script(attached: Attached) -> Iterator[None]:
        covered, begun = 0.0, 0.0
        for count in range(saves):
            if count == saves - 1:
                watched.close()
            between = []
            for step in range(_PLAIN_STEPS):
                if step == _PLAIN_STEPS - 1:
                    attached.save_next()
                # As long as a write, if there was one: by the shortest steps the reserve grows.
                time.sleep(0.0 if at_once else covered)
                yield
                between.append(attached.entered_at - attached.updated_at)
            begun, path = attached.updated_at, attached.path
            stall = between.pop() - statistics.median(between)
            if at_once:
                yield
                safe = attached.updating_at - begun
                attached.saves.wait()
            else:
                attached.saves.wait()
                safe = stall
            durable = time.perf_counter() - begun
            found.append((path, {"stall": max(0.0, stall), "safe": safe, "durable": durable}))
            covered = durable

    Attached(state, run).train(script)
    return *found[-1], peak.extra


def load(state: State, path: Path) -> float:
    """Seconds from `train(resume_from_checkpoint=...)` to the first forward pass, less those of a start from zero."""
    return _until_first_step(state, path.parent, path) - _until_first_step(
        state, path.parent.with_name(f"{path.parent.name}-new"), None
    )


def _until_first_step(state: State, run: Path, resume: Path | None) -> float:
    attached = Attached(state, run)
    begun = time.perf_counter()
    attached.train(lambda attached: iter(()), resume)
    return attached.entered_at - begun
