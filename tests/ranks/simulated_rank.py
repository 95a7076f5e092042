"""One rank in virtual time: its training comes to the real gate, its other thread runs the protocol's own lines."""

import itertools
import random
import threading
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.capture.boundary import Boundary
from holdfast.capture.gate import Gate
from holdfast.ranks.agreement import Decision, Get, Offer, Operation, Put, Steps, coordinate
from holdfast.ranks.keys import call_key, offer_key
from ranks.simulated_store import Line, LostError
from ranks.virtual_time import Machine, Pause, Process, Signal

if TYPE_CHECKING:
    from ranks.simulation import Simulation

SECONDS = 5.0
"""How long a silent rank is waited for."""
OPERATION_SECONDS = 2.0
"""How long one operation of the store may take."""
REACHING_SECONDS = 200.0
"""How long ranks are waited for that run to the boundary and take it."""
FOR_EVER = 1e9


@dataclass(frozen=True)
class Habits:
    """How training behaves.

    Args:
        update: Seconds of an update, at most; a forward and a backward take up to three times as long.
        evaluation: Seconds of an evaluation, at most.
        evaluates: How likely there is one after an update.
        ahead: How many boundaries a rank can be ahead of another: 1 where a backward needs the others' backward of the
            same step, more where the host runs ahead of its device; None where ranks train each for itself.
        boundary_mode: Whether training stands still at the boundary that is taken.
    """

    update: float = 0.2
    evaluation: float = 10.0
    evaluates: float = 0.05
    ahead: int | None = 1
    boundary_mode: bool = False


@dataclass
class Round:
    """What one rank has seen of one agreement."""

    offered_at: float
    decision: Decision | None = None
    taken: int | None = None
    decided_at: float = FOR_EVER
    opened_at: float = FOR_EVER


class Rank(Machine):
    """One rank: a training thread, and the background thread that agrees and takes."""

    def __init__(self, simulation: "Simulation", rank: int, pace: float) -> None:
        super().__init__(simulation.world)
        self.rank = rank
        self.simulation = simulation
        self.random = random.Random(f"{simulation.seed}/{rank}")
        self.line = Line(self.world, simulation.server, self._delay, pace, OPERATION_SECONDS)
        self.gate = Gate(threading.Event())
        self.moved = Signal(self.world)
        self.rounds: dict[int, Round] = {}
        self.left = 0
        """The last boundary whose update has begun."""
        self.ended = False
        self._pace = pace
        self._awaited: int | None = None

    def train(self) -> Process:
        habits, simulation = self.simulation.habits, self.simulation
        yield Pause(self.random.uniform(0, 3 * habits.update))
        for number in itertools.count(1):
            self.gate.reach(
                Boundary(number, "update", number=number), shut=self._awaited is not None and number >= self._awaited
            )
            self.ended = number == simulation.ends.get(self.rank)
            simulation.arrive(number, for_ever=self.ended)
            self.moved.fire()
            if self.ended:
                with self.gate.blocked():
                    yield Pause()
            if habits.boundary_mode:
                yield from self._while_shut()
            if self.random.random() < habits.evaluates:
                yield Pause(self.random.uniform(0, habits.evaluation))
            yield Pause(self.random.uniform(0, 2 * habits.update))
            if habits.ahead is not None and number >= habits.ahead:
                yield from simulation.gather(number - habits.ahead + 1)
            yield Pause(self.random.uniform(0, habits.update))
            yield from self._while_shut()
            self.gate.enter_update()
            self.left = number
            yield Pause(self.random.uniform(0, habits.update))

    def answer_calls(self) -> Process:
        for number in range(self.simulation.rounds):
            while not (yield from self._try_to(Get((call_key(number),), FOR_EVER))):
                pass
            own = self._offer(number)
            yield from self._agree(number, self.simulation.join(number, self.rank, own, SECONDS))
            if self.rounds[number].taken is not None:
                yield from self._try_to(Put(_record_key(number, self.rank), ""))
            self.simulation.finish(self)

    def call(self) -> Process:
        """The coordinator's background thread."""
        others = range(1, self.simulation.size)
        for number in range(self.simulation.rounds):
            calm_in = self.simulation.last_call_at - self.world.now
            is_last = number == self.simulation.rounds - 1
            yield Pause(max(self.random.uniform(0, 3), calm_in if is_last else 0))
            self.simulation.called_at[number] = self.world.now
            yield from self._try_to(Put(call_key(number), ""))
            keys = [offer_key(number, rank) for rank in others]
            yield from self._agree(number, coordinate(number, keys, self._offer(number), SECONDS))
            if self.rounds[number].taken is not None:
                records = tuple(_record_key(number, rank) for rank in others)
                yield from self._try_to(Get(records, REACHING_SECONDS))
            self.simulation.finish(self)

    def _offer(self, number: int) -> Offer:
        self.gate.only_when_blocked = self.simulation.habits.boundary_mode
        offer = Offer(self.gate.offer(-1)[0], last=self.ended)
        # Only for the offer: `reach` would block this thread, so `train` waits in its stead.
        self.gate.only_when_blocked = False
        self.rounds[number] = Round(self.world.now)
        if self.simulation.opens_early:
            self.gate.open(None)
            self.moved.fire()
        return offer

    def _agree(self, number: int, steps: Steps) -> Generator[Pause, None, None]:
        seen = self.rounds[number]
        with suppress(LostError):
            seen.decision = yield from self._drive(steps)
        seen.decided_at = self.world.now
        if seen.decision is not None and seen.decision.boundary is not None:
            yield from self._take(seen, seen.decision.boundary)
        self.gate.open(seen.taken)
        self.moved.fire()
        seen.opened_at = self.world.now

    def _drive(self, steps: Steps) -> Generator[Pause, None, Decision]:
        result = None
        while True:
            try:
                operation = steps.send(result)
            except StopIteration as end:
                decision: Decision = end.value
                return decision
            result = yield from self.line.do(operation)

    def _take(self, seen: Round, boundary: int) -> Generator[Pause, None, None]:
        """`Gate.take`, asked again whenever something has moved instead of in a thread that blocks."""
        self._awaited = boundary
        until = self.world.now + REACHING_SECONDS * self._pace
        # In the end it is None only where it was given up: data that has ended reaches no further boundary.
        while (taken := self.gate.take(boundary, lambda: True)) is None and not self.ended and self.world.now < until:
            self.moved.fire()
            yield Pause(until - self.world.now, self.moved)
        self._awaited = None
        if taken is not None:
            seen.taken = taken.number
            assert self.left < boundary, f"rank {self.rank} has left boundary {boundary} before it took it"
            yield Pause(self.random.uniform(0, 0.5))
            assert self.left < boundary, f"rank {self.rank} has left boundary {boundary} while it took it"

    def _try_to(self, operation: Operation) -> Generator[Pause, None, bool]:
        try:
            return (yield from self.line.do(operation)) is not None
        except LostError:
            return False

    def _while_shut(self) -> Process:
        while self.gate.is_shut:
            amid = any(seen.opened_at == FOR_EVER for seen in self.rounds.values())
            assert amid, f"rank {self.rank} is held at its gate, and there is nobody to open it"
            yield Pause(None, self.moved)

    def _delay(self) -> float:
        return self.simulation.delay(self.random)


def _record_key(number: int, rank: int) -> str:
    return f"record/{number}/{rank}"
