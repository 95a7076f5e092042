"""Training time that one save costs: a real training loop, blocks with a save between blocks without.

A block with a save lasts until that is on disk, and at least so many steps; what the same steps take without one,
before and after, is taken off. Blocks alternate, because a machine's speed drifts within seconds.
"""

import statistics
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

from benchmarks.attached import Attached
from benchmarks.measure import finish
from benchmarks.ours import NativeOnDemand
from benchmarks.peers.saver import Saver
from benchmarks.states import State

_PLAIN_STEPS = 1
_STEPS = 3
# No further block with a save is begun later than this: where one is long, fewer must do.
_SECONDS = 8.0
# Steps and a save of ours before the first block: the reserve grows to what these steps need.
_WARM_STEPS = 2


class Blocks:
    """Collects the blocks of one saver; a block without a save comes first and last."""

    def __init__(self) -> None:
        self.plain: list[float] = []
        """Seconds of a step in each block without a save."""
        self.saving: list[tuple[int, float]] = []
        """Steps and seconds of each block with one."""

    def lost(self) -> list[float]:
        """Seconds that each save cost."""
        around = pairwise(self.plain)
        return [
            seconds - steps * statistics.mean(pair) for (steps, seconds), pair in zip(self.saving, around, strict=True)
        ]


def with_saver(state: State, saver: Saver, number: int, blocks: int = 1) -> Blocks:
    """Trains with a saver that stands beside the loop.

    Args:
        state: What trains.
        saver: What saves it.
        number: The number of the first save.
        blocks: How many blocks with a save, fewer where they take long.
    """
    found = Blocks()

    def plain() -> None:
        state.settle()
        begun = time.perf_counter()
        for _ in range(_PLAIN_STEPS):
            _step(state, saver)
        state.settle()
        found.plain.append((time.perf_counter() - begun) / _PLAIN_STEPS)

    last = time.perf_counter() + _SECONDS
    plain()
    with ThreadPoolExecutor(1) as background:
        for count in range(blocks):
            begun = time.perf_counter()
            if count and begun > last:
                break
            path = saver.save(number + count)
            finished = background.submit(finish, saver, path)
            steps = 0
            while steps < _STEPS or not finished.done():
                _step(state, saver)
                steps += 1
            finished.result()
            state.settle()
            found.saving.append((steps, time.perf_counter() - begun))
            plain()
    return found


def native(state: State, run: Path, blocks: int = 1) -> Blocks:
    """Trains with a `Checkpointer`.

    Args:
        state: What trains.
        run: The run directory.
        blocks: How many blocks with a save, fewer where they take long.
    """
    with NativeOnDemand(state, run) as saver:
        for _ in range(_WARM_STEPS):
            _step(state, saver)
        saver.save(0)
        for _ in range(_STEPS):
            _step(state, saver)
        saver.wait()
        return with_saver(state, saver, 1, blocks)


def attached(state: State, run: Path, blocks: int = 1) -> Blocks:
    """Trains with an attached Trainer.

    Args:
        state: What trains.
        run: The run directory.
        blocks: How many blocks with a save, fewer where they take long.
    """
    found = Blocks()

    def script(attached: Attached) -> Iterator[None]:
        def steps(count: int, until: Future[None] | None = None) -> Iterator[int]:
            taken = 0
            while taken < count or not (until is None or until.done()):
                state.forward_backward()
                taken += 1
                yield taken

        def save() -> Iterator[None]:
            attached.save_next()
            for _ in steps(1):
                yield
            begun, taken = attached.updated_at, 0
            finished = background.submit(attached.saves.wait)
            for taken in steps(_STEPS, finished):  # noqa: B007
                yield
            finished.result()
            found.saving.append((taken, attached.updated_at - begun))

        def plain() -> Iterator[None]:
            begun = attached.updated_at
            for _ in steps(_PLAIN_STEPS):
                yield
            found.plain.append((attached.updated_at - begun) / _PLAIN_STEPS)

        for _ in steps(_WARM_STEPS):
            yield
        yield from save()
        found.saving.clear()
        last = time.perf_counter() + _SECONDS
        yield from plain()
        for count in range(blocks):
            if count and time.perf_counter() > last:
                break
            yield from save()
            yield from plain()

    with ThreadPoolExecutor(1) as background:
        Attached(state, run).train(script)
    return found


def _step(state: State, saver: Saver) -> None:
    state.forward_backward()
    saver.gate()
    state.update()
    saver.boundary()
