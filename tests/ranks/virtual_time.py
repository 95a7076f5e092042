"""Virtual time: machines whose processes are generators, and a clock that only events move."""

import heapq
import itertools
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial


class World:
    """What happens, in its order, and nothing else: no thread, no clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()

    def at(self, when: float, what: Callable[[], object]) -> None:
        heapq.heappush(self._events, (when, next(self._order), what))

    def run(self, done: Callable[[], bool], limit: float) -> None:
        while not done():
            assert self._events, f"at {self.now:.3f} s everybody waits for somebody"
            self.now, _, what = heapq.heappop(self._events)
            assert self.now <= limit, f"it hangs: {limit:g} s have passed"
            what()


class Signal:
    """Wakes the processes that wait for it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.waiting: list[Callable[[], None]] = []

    def fire(self) -> None:
        waiting, self.waiting = self.waiting, []
        for wake in waiting:
            self._world.at(self._world.now, wake)


@dataclass(frozen=True)
class Pause:
    """Until a signal, or for some seconds, whichever is first."""

    seconds: float | None = None
    signal: Signal | None = None


Process = Generator[Pause, None, None]


class Machine:
    """Where processes run; nothing of them while it is stopped, and nothing ever again once it is dead."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.dead = False
        self.stopped_until = 0.0

    def start(self, process: Process) -> None:
        turn = 0

        def resume(which: int) -> None:
            nonlocal turn
            if which != turn or self.dead:
                return
            if self.world.now < self.stopped_until:
                self.world.at(self.stopped_until, partial(resume, which))
                return
            turn += 1
            pause = next(process, None)
            if pause is None:
                return
            if pause.signal is not None:
                pause.signal.waiting.append(partial(resume, turn))
            if pause.seconds is not None:
                self.world.at(self.world.now + pause.seconds, partial(resume, turn))

        resume(0)
