"""How long simulated ranks take to agree, where one store serves them one after the other."""

import random
import sys
from pathlib import Path

from benchmarks.table import head, row
from holdfast.ranks.agreement import Claim, Present, Put

# The simulation is the one that the tests explore.
sys.path.append(str(Path(__file__).parent.parent / "tests"))
from ranks.simulated_rank import Habits
from ranks.simulated_store import Message, Read, Wait
from ranks.simulation import Simulation

# Measured with torch's TCPStore on two cores: one key, and what each further key of a message adds.
_ONE_KEY = 60e-6
_KEY_TO_WAIT_FOR = 0.8e-3 / 1024
_KEY_TO_READ = 2.6e-3 / 1024
# One way over a cluster's network.
_TRAVEL = 50e-6


def report(folder: Path) -> None:
    """Prints the table."""
    head("agreement of simulated ranks", "ms")
    for size in (4, 64, 1024):
        for evaluating in (False, True):
            text = f"{size} ranks, {'in an evaluation' if evaluating else 'training'}"
            row(text, agreement_seconds(size, evaluating=evaluating), 1e3)


def agreement_seconds(size: int, *, evaluating: bool, rounds: int = 3) -> list[float]:
    """Virtual seconds from the coordinator's call until the last rank has read the decision, one value a round.

    Args:
        size: How many ranks.
        evaluating: Whether all of them are in an evaluation, from the call to long after the decision.
        rounds: How many agreements.
    """
    # Forwards and backwards of a second and more; evaluations of up to a minute.
    habits = Habits(update=0.5, evaluation=60.0, evaluates=1.0 if evaluating else 0.0)
    simulation = Simulation(size, 1, rounds, habits=habits, delay=_travel, cost=served_in)
    simulation.run(1e5)
    assert all(seen.taken is not None for rank in simulation.ranks for seen in rank.rounds.values())
    return [
        max(rank.rounds[number].decided_at for rank in simulation.ranks) - called
        for number, called in simulation.called_at.items()
    ]


def served_in(message: Message) -> float:
    """Seconds that the store takes for a message."""
    match message:
        case Put() | Claim():
            return _ONE_KEY
        case Wait(keys):
            return max(_ONE_KEY, len(keys) * _KEY_TO_WAIT_FOR)
        case Read(keys):
            return max(_ONE_KEY, len(keys) * _KEY_TO_READ)
        case Present(keys):
            return len(keys) * _ONE_KEY


def _travel(chance: random.Random) -> float:
    return chance.uniform(0.5, 1.5) * _TRAVEL
