"""Items 2 to 4: what making the arena costs training, and a data worker's fork.

Decides _PAUSES of capture/arena_making.py, and _SLAB_BYTES of capture/staging_budget.py.
"""

import os
import statistics
import threading
import time
from collections.abc import Callable

import torch

from benchmarks.gpu.bench import GIB, MIB, Bench, milliseconds
from benchmarks.gpu.card import Card
from benchmarks.gpu.locked import HostMemory, memlock_limit

_MEMLOCK = 64 << 10
_WORKERS = 4
_MOST_LONGER_SECONDS = 0.010
MOST_FORK_SECONDS = 0.010


def run(bench: Bench) -> None:
    """Registers in pieces, beside a little training; then forks."""
    training = _Training(bench)
    usual = training.watch(lambda: time.sleep(bench.size(500, 20) / 1e3))
    step = statistics.median(usual)
    bench.add("3 a step without registering", None, f"{milliseconds(step)}, at most {milliseconds(max(usual))}")
    size = bench.size(4 * GIB, 16 * MIB)
    limit = max(usual) + _MOST_LONGER_SECONDS
    with memlock_limit(_MEMLOCK):
        for piece, pause, part in ((64, 0.0, 1), (64, 20.0, 1), (16, 20.0, 4), (256, 20.0, 4)):
            _measure(bench, training, size // part, piece * MIB, pause, limit)
    _fork(bench, size)


def _measure(bench: Bench, training: "_Training", size: int, piece: int, pause: float, limit: float) -> None:
    name = f"{'2, 3' if not pause else '3'} {size / GIB:.3g} GiB in pieces of {piece // MIB} MiB, pause {pause:.0f} x"
    memory = HostMemory(size, bench.device)
    spent: list[tuple[float, float]] = []
    begun = time.perf_counter()
    try:
        steps = training.watch(lambda: spent.append(memory.make(piece, pause)))
    except OSError as error:
        bench.add(f"{name}, ulimit -l 64", False, str(error))
        return
    seconds = time.perf_counter() - begun
    # Only the pause is to keep steps as they are; without one the figure shows what it is for.
    is_ours = pause > 0 and piece == 64 * MIB
    bench.add(
        f"{name}, ulimit -l 64",
        bench.timed(max(steps) <= limit) if is_ours else None,
        f"longest step {milliseconds(max(steps))}; {seconds:.2f} s in all, populating {spent[0][0]:.2f},"
        f" registering {spent[0][1]:.3f}{' (_PAUSES of capture/arena_making.py)' if is_ours else ''}",
        longest=max(steps),
        seconds=seconds,
        registering=spent[0][1],
        populating=spent[0][0],
    )


class _Training:
    """Steps of a few milliseconds, each waited for."""

    def __init__(self, bench: Bench) -> None:
        self._card = Card(bench.device)
        self._matrix = torch.randn((bench.size(4096, 64),) * 2, device=bench.device)

    def watch(self, work: Callable[[], object]) -> list[float]:
        """Trains while a thread works, and returns the seconds of each step. What the thread raises is raised."""
        raised: list[BaseException] = []

        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - raised where it is waited for
                raised.append(error)

        for _ in range(5):
            self._step()
        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        steps: list[float] = []
        while thread.is_alive() or not steps:
            begun = time.perf_counter()
            self._step()
            steps.append(time.perf_counter() - begun)
        if raised:
            raise raised[0]
        return steps

    def _step(self) -> None:
        self._matrix @ self._matrix
        self._card.settle()


def fork() -> float:
    """Forks, as a data loader does for a worker, and returns the seconds of the call."""
    begun = time.perf_counter()
    if (child := os.fork()) == 0:
        os._exit(0)
    seconds = time.perf_counter() - begun
    os.waitpid(child, 0)
    return seconds


def _fork(bench: Bench, size: int) -> None:
    # What is not kept from children would be there for the other, too.
    for forked in (False, True):
        memory = HostMemory(size, bench.device, forked=forked)
        memory.make(64 * MIB)
        seconds = [fork() for _ in range(1 if forked else _WORKERS)]
        bench.add(
            f"4 forks of a data worker beside {size / GIB:.3g} GiB{'' if forked else ' with MADV_DONTFORK'}",
            None if forked else bench.timed(max(seconds) <= MOST_FORK_SECONDS),
            f"{milliseconds(statistics.median(seconds))}, at most {milliseconds(max(seconds))}",
            longest=max(seconds),
        )
