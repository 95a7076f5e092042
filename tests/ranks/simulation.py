"""Many ranks that train and agree in virtual time, and what befalls them."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from holdfast.ranks import agreement
from holdfast.ranks.agreement import Offer, Steps
from ranks.simulated_rank import FOR_EVER, SECONDS, Habits, Rank
from ranks.simulated_store import Message, Server
from ranks.virtual_time import Pause, Process, Signal, World

_CALMING_SECONDS = 100.0

Join = Callable[[int, int, Offer, float], Steps]


@dataclass(frozen=True)
class Fault:
    """What befalls a rank: `stop` (SIGSTOP), `cut` (from the store; the training's own network holds) or `die`."""

    kind: str
    rank: int
    at: float
    seconds: float = 0.0


class Simulation:
    """A training of many ranks with several agreements in a row.

    Args:
        size: How many ranks.
        seed: Of all chance.
        rounds: How many agreements.
        habits: How training behaves.
        faults: What befalls the ranks.
        ends: After which boundary a rank's data has ended. The others go on without it.
        paces: How much longer than it should a rank's time limits take; 1 where nothing is said.
        delay: How long a message travels.
        cost: How long the store serves one.
        join: The protocol of a rank that is not the coordinator.
        opens_early: Breaks the gate: it is open before there is a decision.
    """

    def __init__(
        self,
        size: int,
        seed: int,
        rounds: int = 3,
        *,
        habits: Habits | None = None,
        faults: Sequence[Fault] = (),
        ends: Mapping[int, int] | None = None,
        paces: Mapping[int, float] | None = None,
        delay: Callable[[random.Random], float] = lambda chance: chance.uniform(0, 0.05),
        cost: Callable[[Message], float] = lambda message: 0.0,
        join: Join = agreement.join,
        opens_early: bool = False,
    ) -> None:
        self.size, self.seed, self.rounds = size, seed, rounds
        self.habits, self.faults, self.ends = habits or Habits(), faults, ends or {}
        self.delay, self.join, self.opens_early = delay, join, opens_early
        self.world = World()
        self.server = Server(self.world, cost)
        self.called_at: dict[int, float] = {}
        self.calm_at = max((fault.at + fault.seconds for fault in faults), default=0.0)
        self.last_call_at = self.calm_at + _CALMING_SECONDS
        self._here: dict[int, int] = {}
        self._all_here: dict[int, Signal] = {}
        self._gone_home: list[int] = []
        self._finished: dict[int, int] = {}
        self._unfinished = size
        self.ranks = [Rank(self, rank, (paces or {}).get(rank, 1.0)) for rank in range(size)]

    def run(self, limit: float) -> None:
        """Until every living rank has been through all rounds."""
        self.start()
        self.world.run(self._is_over, limit)

    def start(self) -> None:
        """Begins training and agreeing."""
        for fault in self.faults:
            self.world.at(fault.at, partial(self._befall, fault))
        # So that something happens then, even if nobody is left who does anything.
        self.world.at(self.calm_at + 2 * SECONDS, lambda: None)
        for rank in self.ranks:
            rank.start(rank.train())
            rank.start(rank.answer_calls() if rank.rank else rank.call())

    def arrive(self, number: int, *, for_ever: bool) -> None:
        """A rank is at a boundary, and so does not keep others from the next backward."""
        self._here[number] = self._here.get(number, 0) + 1
        if for_ever:
            self._gone_home.append(number)
        waited = [number, *(other for other in self._all_here if other > number)] if for_ever else [number]
        for other in waited:
            if other in self._all_here and self._is_complete(other):
                self._all_here.pop(other).fire()

    def gather(self, number: int) -> Process:
        """Waits until all ranks are in the step after a boundary."""
        while not self._is_complete(number):
            yield Pause(None, self._all_here.setdefault(number, Signal(self.world)))

    def finish(self, rank: Rank) -> None:
        """A rank is done with one more round."""
        self._finished[rank.rank] = self._finished.get(rank.rank, 0) + 1
        self._unfinished -= self._finished[rank.rank] == self.rounds

    def _is_over(self) -> bool:
        if not self.ranks[0].dead:
            return not self._unfinished
        # Nobody calls any more; what was called must come to its end all the same.
        shut = (seen.opened_at == FOR_EVER for rank in self.ranks if not rank.dead for seen in rank.rounds.values())
        return self.world.now > self.calm_at + SECONDS and not any(shut)

    def _is_complete(self, number: int) -> bool:
        return self._here.get(number, 0) + sum(end < number for end in self._gone_home) == self.size

    def _befall(self, fault: Fault) -> None:
        rank, until = self.ranks[fault.rank], fault.at + fault.seconds
        match fault.kind:
            case "stop":
                rank.stopped_until = max(rank.stopped_until, until)
            case "cut":
                rank.line.cut_until = max(rank.line.cut_until, until)
            case "die" if not rank.dead:
                rank.dead = True
                self._unfinished -= self._finished.get(rank.rank, 0) < self.rounds
