"""Every request of a training that mirrors is broken, in every way; then another machine goes on."""

from collections.abc import Callable

import pytest

from beyond.conftest import Disks
from beyond.machines import Machine, recovered
from beyond.place import Client, Fate, Kind, Place
from beyond.promises import Promises
from helpers.full import FULL
from helpers.support import RUN
from holdfast.remote.keys import CheckpointKey


def mirrored(disks: Disks, fates: dict[int, Fate], *, is_strict: bool = True) -> tuple[Machine, list[str]]:
    """A training that starts and mirrors, and a machine that goes on; gives the first, and what was broken."""
    place = Place()
    promises = Promises(place, disks.first.saved | disks.second.saved, is_strict=is_strict)
    first = Machine(Client(place, fates), disks.first, promises)
    with first.story():
        first.start()
        first.train(0, 1, 2, 3)
    second = Machine(Client(place), disks.second, promises)
    recovered(second)
    place.pass_time(10_000)
    return first, promises.problems


def test_undisturbed_all_is_said_and_what_no_rule_speaks_for_is_deleted(disks: Disks) -> None:
    first, problems = mirrored(disks, {})
    assert problems == [] and first.ended == ""
    assert [key.sequence for key in first.promises.mirrored] == [1, 2, 3, 4, 10, 11, 12]
    assert [key.sequence for key in first.promises.whole()] == [12, 11, 4]


@pytest.mark.parametrize("kind", ["cut before", "cut after", "failed", "lost"])
def test_fault_49_after_every_request_that_is_cut_or_fails_another_machine_goes_on(
    disks: Disks, kind: Kind, record_property: Callable[[str, object], None]
) -> None:
    """A model of a store cuts the process off at, or fails, each request of a training that mirrors."""
    whole, _ = mirrored(disks, {})
    record_property("injected", whole.store.requests)
    for number in range(1, whole.store.requests + 1):
        machine, problems = mirrored(disks, {number: Fate(kind)})
        assert problems == [], f"request {number} {kind}"
        assert bool(machine.ended) is kind.startswith("cut")
        assert machine.ended or len(machine.promises.mirrored) == 7, f"request {number} {kind}: not all was mirrored"


@pytest.mark.parametrize("kind", ["cut before", "cut after"])
def test_fault_49_what_a_killed_process_has_sent_is_gone_on_with(
    disks: Disks, kind: Kind, record_property: Callable[[str, object], None]
) -> None:
    """A model of a store cuts the process off at every second request; the next one sends the same checkpoint."""
    record_property("injected", 30)
    for number in range(1, 60, 2):
        place = Place()
        promises = Promises(place, disks.first.saved)
        first, again = (Machine(Client(place, fates), disks.first, promises) for fates in ({number: Fate(kind)}, {}))
        with first.story():
            first.start()
            first.train(0, 1)
        again.start()
        arrived = [each for each in place.objects if f"-{disks.first.attempts[1]}/" in each]
        term = first.term or again.term
        again.send(1, term=term)
        assert max(promises.mirrored).attempt == disks.first.attempts[1] and promises.problems == []
        assert again.store.sent.isdisjoint(arrived), f"sent again after request {number}"


@pytest.mark.parametrize("kind", ["late", "twice"])
def test_fault_49_changes_that_come_late_or_once_more_break_no_promise(
    disks: Disks, kind: Kind, record_property: Callable[[str, object], None]
) -> None:
    """A model of a store makes a change after up to twice as many others as there are, or makes it once more then."""
    whole, _ = mirrored(disks, {})
    injected = 0
    for number in whole.store.changes[:: 1 if FULL else 7]:
        for after in range(1, 2 * whole.store.requests, 5 if FULL else 11):
            _, problems = mirrored(disks, {number: Fate(kind, after)}, is_strict=False)
            assert problems == [], f"request {number} {kind} after {after} others"
            injected += 1
    record_property("injected", injected)


@pytest.mark.parametrize("kind", ["late", "twice"])
def test_fault_49_what_a_start_removes_late_was_not_sent_again_by_then(
    disks: Disks, kind: Kind, record_property: Callable[[str, object], None]
) -> None:
    """A start removes what a killed upload has left, late or once more, and the old disk sends that by hand."""

    def sent_again(fates: dict[int, Fate]) -> tuple[Machine, list[str]]:
        place = Place()
        promises = Promises(place, disks.first.saved, is_strict=False)
        old = Machine(Client(place), disks.first, promises)
        old.start()
        old.train(0)
        attempt = disks.first.attempts[1]
        place.objects[CheckpointKey(RUN, old.term, 2, attempt).of("a")] = disks.first.saved[attempt]["a"]
        start = Machine(Client(place, fates), disks.second, promises)
        start.start()
        old.send(1, claims=False)
        place.pass_time(10_000)
        promises.look()
        return start, promises.problems

    injected = 0
    for number in sent_again({})[0].store.changes:
        for after in range(1, 40, 1 if FULL else 3):
            assert sent_again({number: Fate(kind, after)})[1] == [], f"request {number} {kind} after {after} others"
            injected += 1
    record_property("injected", injected)
