"""Two processes use one place at once, and change over after any of their requests."""

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import pytest

from beyond.conftest import Disks
from beyond.machines import Machine
from beyond.place import Client, Place
from beyond.promises import Promises
from beyond.turns import Interruption, Turns
from helpers.full import FULL
from helpers.support import RUN
from holdfast.remote import retention
from holdfast.remote.keys import CheckpointKey

# What changes between two requests of one listing is seen or not.
PAGE = 3
_NOTHING = CheckpointKey("", 0, 0, "")


class Plan(NamedTuple):
    """The order of the requests of two machines.

    Args:
        interrupted: The place of the one that is interrupted by the other; None for `turns`.
        at: The number of requests that it makes before.
        parts: The parts of the other's story that come then; the others come at the end.
        turns: The places of those whose turns it is, each with the number of requests of the turn.
    """

    interrupted: int | None = None
    at: int = 0
    parts: int = 2
    turns: tuple[tuple[int, int], ...] = ()


Part = Callable[[], None]


class Pair:
    """Two machines at one place, where the first has mirrored two checkpoints of its run."""

    def __init__(self, disks: Disks, plan: Plan) -> None:
        self.plan = plan
        self.place = Place()
        self.promises = Promises(self.place, disks.first.saved | disks.second.saved, is_strict=False)
        self.before = Machine(Client(self.place), disks.first, self.promises)
        self.before.start()
        self.before.train(0, 1)
        self.machines = [Machine(Client(self.place, page=PAGE), disk, self.promises) for disk in disks]
        self.first, self.second = self.machines
        self.first.term = self.before.term

    def run(self, first: Sequence[Part], second: Sequence[Part]) -> list[str]:
        """Runs the story of each, which is in parts; gives what was broken."""
        stories = (first, second)

        def tell(number: int, begin: int = 0, end: int = 2) -> None:
            with self.machines[number].story():
                for part in stories[number][begin:end]:
                    part()

        if self.plan.interrupted is None:
            turns = Turns(self.plan.turns)
            for machine in self.machines:
                machine.store.turns = turns
            turns.run([(machine.store, partial(tell, number)) for number, machine in enumerate(self.machines)])
        else:
            number, parts = self.plan.interrupted, self.plan.parts
            self.machines[number].store.turns = Interruption(self.plan.at, partial(tell, 1 - number, 0, parts))
            tell(number)
            tell(1 - number, parts)
        self.promises.look()
        for machine, later in (self.machines, self.machines[::-1]):
            said = [key for key in machine.said if machine.term < later.term]
            if said and not later.chooses and max(said) > max(later.chosen, default=_NOTHING):
                self.promises.problems.append("a start went on from an older one than was said before it had the run")
        return self.promises.problems


def a_life(machine: Machine, *numbers: int) -> list[Part]:
    return [partial(machine.train, *numbers)]


def a_start(machine: Machine) -> list[Part]:
    """A machine goes on, whether another one is alive or not."""

    def start() -> None:
        machine.start()
        machine.pull()

    return [start, *a_life(machine, 0, 1)]


def a_life_and_a_start(pair: Pair) -> list[str]:
    return pair.run(a_life(pair.first, 2, 3), a_start(pair.second))


def a_life_and_a_branch(pair: Pair) -> list[str]:
    """Somebody wants to go on from an older one, which the first machine is about to delete."""
    pair.second.chooses = 1
    return a_life_and_a_start(pair)


def a_deletion_and_a_branch(pair: Pair) -> list[str]:
    for number in (2, 3):
        pair.before.send(number)
    pair.second.chooses = 1
    return pair.run([partial(pair.first.retain, 3)], a_start(pair.second))


def two_starts(pair: Pair) -> list[str]:
    return pair.run([pair.first.start, *a_life(pair.first, 2)], a_start(pair.second))


def a_life_and_a_pin(pair: Pair) -> list[str]:
    pair.second.disk = pair.first.disk
    return pair.run(a_life(pair.first, 2, 3), [partial(pair.second.pin, 1), partial(pair.second.pin, 0)])


def a_copied_directory(pair: Pair) -> list[str]:
    """A copy of it sends what it has of the same start, and then its own."""
    own, pair.second.disk = pair.second.disk, pair.first.disk

    def send() -> None:
        for number in (2, 3):
            pair.second.send(number, term=pair.before.term)
        pair.second.disk = own
        pair.second.train(0, 1)

    return pair.run(a_life(pair.first, 2, 3), [pair.second.start, send])


def sent_by_hand_and_a_start(pair: Pair) -> list[str]:
    """What a killed upload has left is swept by a start while somebody sends it from the old disk."""
    attempt = pair.first.disk.attempts[2]
    pair.place.objects[CheckpointKey(RUN, 1, 3, attempt).of("a")] = pair.promises.saved[attempt]["a"]
    by_hand = [partial(pair.first.send, number, claims=False) for number in (2, 0)]
    return pair.run(by_hand, a_start(pair.second))


def deleted_by_hand(pair: Pair) -> list[str]:
    def by_hand() -> None:
        pair.second.retried(lambda: retention.delete(pair.second.store, pair.promises.mirrored[0]))

    return pair.run(a_life(pair.first, 2, 3), [by_hand])


PAIRS = [
    a_life_and_a_start,
    a_life_and_a_branch,
    a_deletion_and_a_branch,
    two_starts,
    a_life_and_a_pin,
    a_copied_directory,
    sent_by_hand_and_a_start,
    deleted_by_hand,
]


def plans(pair: Callable[[Pair], list[str]], disks: Disks, every: int = 1) -> Iterator[Plan]:
    """Before any request of one comes the other, to its end or as far as its start; or they take turns at random."""
    lengths = []
    for number in (0, 1):
        alone = Pair(disks, Plan(number, 10_000))
        pair(alone)
        lengths.append(alone.machines[number].store.requests)
        yield from (Plan(number, at, parts) for at in range(0, lengths[number], every) for parts in (1, 2))
    chosen = random.Random(1)
    for _ in range(200 if FULL else 5):
        i, j = (chosen.randrange(length) for length in lengths)
        yield Plan(turns=((0, i), (1, j), (0, 10_000)))
        yield Plan(turns=tuple((number % 2, chosen.randint(0, 9)) for number in range(30)))


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.__name__)
def test_fault_50_of_two_at_one_mirror_neither_breaks_a_promise(
    disks: Disks, pair: Callable[[Pair], list[str]], record_property: Callable[[str, object], None]
) -> None:
    """Of two processes one comes between any two requests of the other, or they take turns at random."""
    injected = 0
    for plan in plans(pair, disks, every=1 if FULL else 3):
        assert pair(Pair(disks, plan)) == [], plan
        injected += 1
    record_property("injected", injected)
