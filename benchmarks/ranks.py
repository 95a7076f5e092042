"""What several ranks cost: a step that nobody asks to save, and the time until all of them have agreed on one."""

import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.processes import Ranks, Work
from benchmarks.rank import Cost, run_blocks, stand_idle, stand_in_evaluation
from benchmarks.table import head, row

_SIZES = (1, 2, 4)
_ROUNDS = 5
_REQUESTS = 30
_LIMIT_SECONDS = 60
# So long after an answer the next request comes: when the save has cleared away what is superfluous, and at any moment
# between two looks of a thread.
_PAUSE_SECONDS = (0.1, 0.25)

_WAYS = {
    "plain": "the loop alone",
    "ours": "Checkpointer.step()",
    "broadcast": "broadcast and barrier",
    "alone": "",
}
_CLOCKS: dict[str, Callable[[Cost], float]] = {"CPU": lambda cost: cost.cpu, "wall": lambda cost: cost.wall}

Costs = dict[tuple[int, str], list[Cost]]


def report(folder: Path) -> None:
    """Prints the tables."""
    _report_steps(step_costs(folder))
    for text, work in {"idle": stand_idle, "one evaluates": stand_in_evaluation}.items():
        for size in _SIZES[1:]:
            head(f"from request to agreement, {size} ranks, {text}", "ms")
            for door, seconds in latencies(folder / f"{work.__name__}-{size}", size, work).items():
                row(door, seconds, 1e3)


def _report_steps(costs: Costs) -> None:
    head("a step of a 150-tensor model, DDP on gloo", "ms")
    for (size, way), rounds in costs.items():
        if way != "alone":
            row(f"{_ranks(size)}: {_WAYS[way]}", [cost.step for cost in rounds], 1e3)
    for clock, read in _CLOCKS.items():
        head(f"of that, what comes after the update, {clock}", "µs")
        for (size, way), rounds in costs.items():
            if way in ("ours", "broadcast"):
                row(f"{_ranks(size)}: {_WAYS[way]}", [read(cost) for cost in rounds], 1e6)
    for clock, read in _CLOCKS.items():
        head(f"a boundary, one rank at a time, {clock}", "µs")
        for size in _SIZES:
            row(_ranks(size), [read(cost) for cost in costs[size, "alone"]], 1e6)
        for size in _SIZES[1:]:
            pairs = zip(costs[size, "alone"], costs[1, "alone"], strict=True)
            row(f"{size} ranks - 1 rank", [read(many) - read(one) for many, one in pairs], 1e6)


def step_costs(folder: Path) -> Costs:
    """What a step costs with one, two and four ranks, in turns: in each round the median of the ranks."""
    costs: Costs = {(size, way): [] for way in _WAYS for size in _SIZES if (size, way) != (1, "broadcast")}
    with ExitStack() as stack:
        jobs = {size: stack.enter_context(Ranks(size, run_blocks, folder / f"steps-{size}")) for size in _SIZES}
        for turn in range(-1, _ROUNDS):
            for (size, way), found in costs.items():
                heard = _one_at_a_time(jobs[size], size) if way == "alone" else _together(jobs[size], way)
                if turn >= 0:  # the one before warms up
                    found.append(Cost(*map(statistics.median, zip(*heard, strict=True))))
        for job in jobs.values():
            job.tell("end")
    return costs


def _together(job: Ranks, way: str) -> list[Cost]:
    job.tell(way)
    return job.hear_all()


def _one_at_a_time(job: Ranks, size: int) -> list[Cost]:
    heard = []
    for rank in range(size):
        job.tell("alone", [rank])
        heard.append(job.hear(rank))
    return heard


def latencies(run: Path, size: int, work: Work) -> dict[str, list[float]]:
    """Seconds from requests by each door to the agreement, and how long agreements themselves took."""
    last = size - 1
    asked_at: list[float] = []
    doors = ["save() in rank 0", f"save() in rank {last}", "trigger file"] * _REQUESTS
    chance = random.Random(1)
    with Ranks(size, work, run) as job:
        job.hear_all()
        for count, door in enumerate(doors):
            time.sleep(chance.uniform(*_PAUSE_SECONDS))
            asked_at.append(time.time())
            if door == "trigger file":
                (run / "axolotl_checkpoint.save").touch()
            else:
                job.tell("save", [0 if door.endswith("0") else last])
            _wait_for_answers(run, count + 1)
        job.tell("stop", [0])
        job.tell("end")
    agreed = _agreed(run)[: len(doors)]
    found: dict[str, list[float]] = {door: [] for door in doors}
    for door, asked, event in zip(doors, asked_at, agreed, strict=True):
        found[door].append(event["at"] - asked)
    return {**found, "the agreement itself": [event["seconds"] for event in agreed]}


def _wait_for_answers(run: Path, count: int) -> None:
    limit = time.monotonic() + _LIMIT_SECONDS
    while sum(1 for _ in (run / ".holdfast" / "answers").glob("*.json")) < count:
        if time.monotonic() > limit:
            raise TimeoutError(f"no answer to request {count} in {run} for {_LIMIT_SECONDS} s")
        time.sleep(0.005)


def _agreed(run: Path) -> Sequence[dict[str, Any]]:
    """The first agreement after each request."""
    waits, found = False, []
    for line in (run / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "request":
            waits = True
        elif event["event"] == "agreed" and waits:
            waits = False
            found.append(event)
    return found


def _ranks(size: int) -> str:
    return "1 rank" if size == 1 else f"{size} ranks"
