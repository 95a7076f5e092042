"""Items 5 and 6: what copies to the host cost training, by the size of a trunk, and how many are in flight.

Decides TRUNK_BYTES and IN_FLIGHT of capture/slab_filling.py.
"""

import statistics
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.gpu.bench import GIB, MIB, Bench, milliseconds
from benchmarks.gpu.card import Card
from benchmarks.gpu.locked import HostMemory
from holdfast.capture.slab_filling import IN_FLIGHT, TRUNK_BYTES

_ROUNDS = 2
# What the program does, and what is asked of it.
_OURS = (TRUNK_BYTES // MIB, IN_FLIGHT, False)
_MOST_LATENCY_SECONDS = 0.010
_LEAST_RATE = 0.9


@dataclass
class Measured:
    """One way to copy."""

    rates: list[float] = field(default_factory=list)
    """Bytes a second, one a round."""
    latencies: list[float] = field(default_factory=list)
    """Seconds of each `.item()` meanwhile."""
    steps: list[float] = field(default_factory=list)
    """Seconds of each piece of training meanwhile."""

    @property
    def rate(self) -> float:
        """The median rate."""
        return statistics.median(self.rates)


class Copies:
    """One card's memory, one range of the host's, and a little training.

    Args:
        bench: The setting.
    """

    def __init__(self, bench: Bench) -> None:
        self._card = Card(bench.device)
        self._size = bench.size(4 * GIB, 8 * MIB)
        self._source = torch.ones(self._size, dtype=torch.uint8, device=bench.device)
        host = HostMemory(self._size, bench.device)
        host.make(self._size)
        self._target = host.tensor
        self._lane = self._card.stream()
        self._flag = torch.zeros(1, device=bench.device)
        self._scalar = torch.ones(64, device=bench.device)
        self._matrix = torch.randn(
            (bench.size(4096, 64),) * 2, device=bench.device, dtype=torch.float32 if bench.is_dry else torch.bfloat16
        )

    def enqueue(self, trunk: int, in_flight: int | None, *, kernel: bool, done: list[Any]) -> None:
        """Copies all in a stream of its own, from a thread of its own; the last event is left in `done`."""
        events: deque[Any] = deque()
        with self._card.on(self._lane):
            for offset in range(0, self._size, trunk):
                if in_flight is not None and len(events) >= in_flight:
                    events.popleft().synchronize()
                part = slice(offset, offset + trunk)
                self._target[part].copy_(self._source[part], non_blocking=True)
                if kernel:
                    self._flag.add_(1)
                if in_flight is not None:
                    events.append(self._card.event())
            done.append(self._card.event())

    def read_scalars(self, until: Any) -> Iterator[float]:
        """Reads numbers off the card until an event is over."""
        while True:
            begun = time.perf_counter()
            self._scalar.sum().item()
            yield time.perf_counter() - begun
            if until():
                return

    def train(self, until: Any) -> Iterator[float]:
        """Multiplies matrices until an event is over, and waits for each of them."""
        while True:
            begun = time.perf_counter()
            for _ in range(8):
                self._matrix @ self._matrix
            self._card.event().synchronize()
            yield time.perf_counter() - begun
            if until():
                return

    def measure(self, trunk: int, in_flight: int | None, *, kernel: bool) -> Measured:
        """Copies all, some times, with numbers read in one round and training in another."""
        measured = Measured()
        for which, values in ((self.read_scalars, measured.latencies), (self.train, measured.steps)):
            for _ in range(_ROUNDS):
                self._card.settle()
                done: list[Any] = []
                begun = time.perf_counter()
                ended: list[float] = []
                thread = threading.Thread(
                    target=self._copy, args=(trunk, in_flight, kernel, done, ended), name="copies", daemon=True
                )
                thread.start()
                values += which(lambda ended=ended: bool(ended))
                thread.join()
                measured.rates.append(self._size / (ended[0] - begun))
        return measured

    def _copy(self, trunk: int, in_flight: int | None, kernel: bool, done: list[Any], ended: list[float]) -> None:
        self.enqueue(trunk, in_flight, kernel=kernel, done=done)
        done[0].synchronize()
        ended.append(time.perf_counter())

    def alone(self) -> Measured:
        """Measures without a copy."""
        measured = Measured()
        for which, values in ((self.read_scalars, measured.latencies), (self.train, measured.steps)):
            end = time.perf_counter() + 0.1
            values += which(lambda end=end: time.perf_counter() > end)
        return measured


def run(bench: Bench) -> None:
    """Measures each way, and says which is best."""
    copies = Copies(bench)
    alone = copies.alone()
    usual, step = statistics.median(alone.latencies), statistics.median(alone.steps)
    bench.add("5 .item() without copies", None, f"{milliseconds(usual)}, at most {milliseconds(max(alone.latencies))}")
    ways: dict[tuple[int, int | None, bool], Measured] = {}
    for trunk in sorted({4, 16, 32, 64, 1024, _OURS[0]}):
        for in_flight in (None, *sorted({2, IN_FLIGHT})):
            for kernel in (False, True):
                way = (trunk, in_flight, kernel)
                ways[way] = measured = copies.measure(trunk * MIB, in_flight, kernel=kernel)
                how = "all enqueued" if in_flight is None else f"{in_flight} in flight"
                bench.add(
                    f"5, 6 trunks of {trunk} MiB, {how}{', a kernel between' if kernel else ''}",
                    None,
                    f".item() {milliseconds(statistics.median(measured.latencies))},"
                    f" at most {milliseconds(max(measured.latencies))}; {measured.rate / 1e9:.1f} GB/s;"
                    f" training x {statistics.median(measured.steps) / step:.2f}",
                    item_worst=max(measured.latencies),
                    item_median=statistics.median(measured.latencies),
                    rate=measured.rate,
                    training=statistics.median(measured.steps) / step,
                )
    _judge(bench, ways)


def _judge(bench: Bench, ways: dict[tuple[int, int | None, bool], Measured]) -> None:
    best = max(measured.rate for measured in ways.values())
    fast = {way: measured for way, measured in ways.items() if measured.rate >= _LEAST_RATE * best}
    choice = min(fast, key=lambda way: max(fast[way].latencies))
    in_flight = "all" if choice[1] is None else choice[1]
    bench.add(
        "5, 6 what decides capture/slab_filling.py",
        None,
        f"of those within {1 - _LEAST_RATE:.0%} of {best / 1e9:.1f} GB/s the least .item() has"
        f" TRUNK_BYTES = {choice[0]} MiB, IN_FLIGHT = {in_flight}, {'a kernel' if choice[2] else 'no kernel'} between:"
        f" {milliseconds(max(fast[choice].latencies))} at most",
        trunk=choice[0],
        in_flight=choice[1],
        kernel=choice[2],
    )
    ours = ways[_OURS]
    good = max(ours.latencies) <= _MOST_LATENCY_SECONDS and ours.rate >= _LEAST_RATE * best
    bench.add(
        f"5, 6 what the program does: {_OURS[0]} MiB, {IN_FLIGHT} in flight",
        bench.timed(good),
        f".item() at most {milliseconds(max(ours.latencies))} (<= {milliseconds(_MOST_LATENCY_SECONDS)}),"
        f" {ours.rate / best:.2f} of the best rate (>= {_LEAST_RATE})",
    )
