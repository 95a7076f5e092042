"""What is to be reached, as ratios within one run, and whether it was."""

import statistics
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from benchmarks.goal import Goal
from benchmarks.triggers import BOUNDARY, DOOR

_MB, _MS = 1e6, 1e-3
# A gigabyte more costs as much at the large sizes as at the small ones, but for the spread of figures.
_KNEE = 1.25


def of(result: Mapping[str, Any]) -> list[Goal]:
    """The goals that a run can tell of: those whose savers and sizes were measured."""
    gpt2, lora = _Medians(result["states"]["gpt2"]), _Medians(result["states"]["lora"])
    return [
        *_of_stall(gpt2),
        *_of_lost_time(result["lost"]["savers"]),
        *_of_writing(gpt2),
        *_of_loading(gpt2),
        Goal("extra memory, native, a step longer than the write", gpt2.of("native", "memory") / _MB, 32, "MB"),
        Goal("a boundary", statistics.median(result["triggers"][BOUNDARY]) * 1e6, 60, "µs"),
        Goal("the look at the doors", statistics.median(result["triggers"][DOOR]) * 1e9, 100, "ns"),
        *_of_adapters(lora),
        *_of_sizes(result["sizes"]),
    ]


class _Medians:
    def __init__(self, state: Mapping[str, Any]) -> None:
        self.state = state
        self.savers: Mapping[str, Mapping[str, list[float]]] = state["savers"]

    def of(self, saver: str, column: str) -> float:
        return statistics.median(self.savers[saver][column])

    def ratio(self, column: str, ours: str, theirs: str) -> Iterator[float]:
        if theirs in self.savers:
            yield self.of(ours, column) / self.of(theirs, column)

    def best(self, column: str) -> Iterator[float]:
        others = [self.of(name, column) for name in self.savers if not name.startswith(("native", "attach"))]
        if others:
            yield min(others)


def _of_stall(gpt2: _Medians) -> Iterator[Goal]:
    for ours in ("attach", "native"):
        for value in gpt2.ratio("stall", ours, "TrainerSave"):
            yield Goal(f"stall, {ours} / Trainer's own", value, 0.002)
    for value in gpt2.ratio("stall", "native", "DcpAsync"):
        yield Goal("stall, native / async_save", value, 0.005)
    for ours in ("native", "attach"):
        yield Goal(f"stall, {ours}", gpt2.of(ours, "stall") / _MS, 1, "ms")
    copy = statistics.median(gpt2.state["copy"])
    for ours in ("native", "attach"):
        value = gpt2.of(f"{ours}_at_once", "safe") / copy
        yield Goal(f"until an update that comes at once may begin, {ours} / one copy of the state in memory", value, 1)


def _of_lost_time(lost: Mapping[str, list[float]]) -> Iterator[Goal]:
    for theirs, title, limit in (
        ("TrainerSave", "Trainer's own", 0.05),
        ("TorchCheckpointing", "torch_checkpointing", 0.2),
    ):
        if theirs in lost:
            for ours in ("attach", "native"):
                value = statistics.median(lost[ours]) / statistics.median(lost[theirs])
                yield Goal(f"training time lost, {ours} / {title}", value, limit)


def _of_writing(gpt2: _Medians) -> Iterator[Goal]:
    raw = statistics.median(gpt2.state["raw"])
    for ours, theirs, title, limit in (
        ("attach", "TrainerSave", "Trainer's own and a sync", 0.32),
        ("native", "TrainerSave", "Trainer's own and a sync", 0.32),
        ("native", "DcpAsync", "async_save", 0.17),
    ):
        for value in gpt2.ratio("durable", ours, theirs):
            bound = raw / gpt2.of(theirs, "durable")
            yield Goal(f"time to durable, {ours} / {title}", value, limit, bound=bound)
    for ours in ("native", "attach"):
        value = raw / gpt2.of(ours, "durable")
        yield Goal(f"bytes a second to durable, {ours} / raw direct write", value, 0.85, least=True, bound=1)


def _of_loading(gpt2: _Medians) -> Iterator[Goal]:
    # What is cached is copied at least once.
    for column, limit, least in (("cold", 0.65, "raw read"), ("warm", 1.0, "copy")):
        for best in gpt2.best(column):
            bound = statistics.median(gpt2.state[least]) / best if least in gpt2.state else None
            for ours in ("native", "attach"):
                yield Goal(f"load {column}, {ours} / best other", gpt2.of(ours, column) / best, limit, bound=bound)


def _of_adapters(lora: _Medians) -> Iterator[Goal]:
    for ours in ("native", "attach"):
        yield Goal(f"adapters: stall, {ours}", lora.of(ours, "stall") / _MS, 1, "ms")
        yield Goal(f"adapters: time to durable, {ours}", lora.of(ours, "durable") / _MS, 20, "ms")


def _of_sizes(sizes: Mapping[str, Any]) -> Iterator[Goal]:
    if len(sizes) < 3:
        return
    points = [(found["bytes"], statistics.median(found["durable"])) for found in sizes.values()]
    slopes = [(later[1] - now[1]) / (later[0] - now[0]) for now, later in pairwise(points)]
    value = slopes[-1] / statistics.median(slopes[:-1])
    yield Goal("a further gigabyte, at the largest size / at the smaller ones", value, _KNEE)
