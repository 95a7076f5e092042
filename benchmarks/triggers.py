"""What it costs a step to find out whether somebody asks for a save, and how long the save takes from there on."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.boundary import boundary_cost
from benchmarks.ours import Saves
from benchmarks.processes import Ranks
from benchmarks.rank import run_blocks
from benchmarks.states import State
from holdfast import Checkpointer
from holdfast.doors.request_queue import RequestQueue
from holdfast.log import RunLog
from holdfast.run.run import Run
from holdfast.settings import DynamicCheckpoint

_LOOKS = 20_000
_BLOCKS = 5
_REQUESTS = 8

DOOR, BOUNDARY = "holdfast: the look at the doors", "holdfast: a whole boundary"
STAT, BROADCAST = "os.stat of a file that is not there", "broadcast and barrier, 2 ranks"


def costs(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds a step, by what is done in it, one value a round."""
    found = {DOOR: _doors(folder / "doors", rounds), STAT: [], BROADCAST: []}
    found[BOUNDARY] = boundary_cost(folder / "boundary", DynamicCheckpoint(enabled=True), rounds)
    absent = folder / "absent"
    for _ in range(rounds):
        found[STAT].append(_each(lambda: os.path.exists(absent)))  # noqa: PTH110 - what a loop writes that wants speed
    with Ranks(2, run_blocks, folder / "ranks") as job:
        for turn in range(-1, _BLOCKS):
            job.tell("broadcast")
            heard = job.hear_all()
            if turn >= 0:  # the one before warms up
                found[BROADCAST].append(max(cost.wall for cost in heard))
        job.tell("end")
    return found


def latencies(state: State, folder: Path) -> dict[str, list[float]]:
    """Seconds from a request until its save is durable, by door; training stands between two updates."""
    journal, found = Saves(folder), {}
    with Checkpointer(
        folder,
        resume=False,
        say=_silent,
        model=state.saved,
        optimizer=state.optimizer,
        scheduler=state.scheduler,
    ) as checkpointer:
        checkpointer.resume()

        def ask(request: Callable[[], object]) -> float:
            with checkpointer.update():
                pass
            checkpointer.step()
            journal.expect()
            begun = time.perf_counter()
            request()
            journal.wait()
            seconds = time.perf_counter() - begun
            time.sleep(0.5)  # who asks sooner after a save waits for others, to share the next
            return seconds

        ask(checkpointer.save)  # touches the memory
        trigger = folder / "axolotl_checkpoint.save"
        found["trigger file"] = [ask(trigger.touch) for _ in range(_REQUESTS)]
        found["Checkpointer.save()"] = [ask(checkpointer.save) for _ in range(_REQUESTS)]
    return found


def _doors(folder: Path, rounds: int) -> list[float]:
    run = Run.open(folder)
    queue = RequestQueue(run, DynamicCheckpoint(enabled=True), RunLog(_silent), threading.Event())
    # The step of no look at the file: every hundredth has one.
    found = [_each(lambda: queue.look(1, last=False)) for _ in range(rounds)]
    run.close("measured", 0)
    return found


def _each(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    for _ in range(_LOOKS):
        work()
    return (time.perf_counter() - begun) / _LOOKS


def _silent(text: str) -> None:
    pass
