"""Whether the model can see: a sync that is left out, or two steps that are exchanged, must break a promise."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from crash.breaking import Breaker
from crash.disk import Disk, Named, Synced
from crash.mutants import exchanged, steps_of
from crash.stories import opens, prunes, told, told_on
from holdfast.run.inbox import Inbox
from holdfast.store import commit, files, pins, retention

ShardRange = tuple[str, ...]

# Syncs that a power cut of this machine does not need, by the functions that lead to each.
NEEDED_OTHERWISE = {
    "files._replacing < files.replace < lease.take": "the holder dies with its machine, but others share the storage",
    "files.sync_directory < files.replace < lease.take": "likewise",
    "files._replacing < files.replace < lease.release": "a lease that is not given back is looked at once more",
    "files.sync_directory < files.replace < lease.release": "likewise",
    "files.sync_directory < files.replace < outcome.write": "a sweep follows, and the lease, which sync the directory",
    "files.write_new < pins._mark < pins.pin": "the file of a pin is empty: its name is what counts",
}
# Those that are needed for what was told elsewhere: the names of a new run, and what a killed process has left.
OF_A_START = "files.sync_directory < retention.sweep < run._sweep"
BEFORE_A_DELETION = "files.sync_directory < retention.delete"


def places_of(disk: Disk, begin: int = 0) -> dict[str, ShardRange]:
    """The places that something is synced from, by the three innermost functions, numbered where those are alike."""
    found: dict[str, ShardRange] = {}
    alike: Counter[str] = Counter()
    for place in dict.fromkeys(event.place for event in disk.events[begin:] if isinstance(event, Synced)):
        short = [":".join(one.split(":")[:2]).rpartition("/")[2].replace(".py:", ".") for one in place[:3]]
        shown = " < ".join(short)
        alike[shown] += 1
        found[f"{shown} {alike[shown]}"] = place
    return found


def right_after(disk: Disk, name: str) -> int:
    """How many events had happened when something was first given a name that begins like this."""
    return next(
        number
        for number, event in enumerate(disk.events, 1)
        if isinstance(event, Named) and event.folder is not None and event.name.startswith(name)
    )


@pytest.mark.parametrize(
    ("name", "syncs"),
    [
        ("a save", 9),
        ("a save of a step that is there", 9),
        ("a save and what retention deletes", 9),
        ("a pin", 2),
        ("what waits for a mirror", 4),
    ],
)
def test_leaving_out_any_sync_breaks_a_promise(memory: Path, name: str, syncs: int) -> None:
    disk = told(memory / "disk", name)
    breaker = Breaker(memory)
    before = (f"{BEFORE_A_DELETION} < save._delete 1", f"{BEFORE_A_DELETION} 1")
    elsewhere = (*NEEDED_OTHERWISE, OF_A_START, *before)
    places = {shown: place for shown, place in places_of(disk).items() if not shown.startswith(elsewhere)}
    assert len(places) >= syncs
    assert [shown for shown, place in places.items() if not found_without(breaker, disk, place)] == []


def test_leaving_out_the_syncs_of_a_start_breaks_a_promise(memory: Path) -> None:
    disk = told(memory / "disk", "the first request of a run")
    assert found_without(Breaker(memory), disk, places_of(disk)[f"{OF_A_START} 1"])
    first = told(memory / "first", "a save and what retention deletes")
    begin = right_after(first, ".trash-")
    disk = told_on(memory / "second", first, begin, opens)
    assert found_without(Breaker(memory), disk, places_of(disk, begin)[f"{OF_A_START} 1"])


def test_leaving_out_the_sync_before_a_deletion_breaks_a_promise(memory: Path) -> None:
    first = told(memory / "first", "a save")
    begin = right_after(first, "checkpoint-8")
    disk = told_on(memory / "second", first, begin, prunes)
    assert found_without(Breaker(memory), disk, places_of(disk, begin)[f"{BEFORE_A_DELETION} 1"])


def found_without(breaker: Breaker, disk: Disk, place: ShardRange) -> str:
    """What the model finds when the syncs of a place do nothing."""
    begin = min(n for n, event in enumerate(disk.events) if isinstance(event, Synced) and event.place == place)
    return next(breaker.break_everywhere(disk, frozenset([place]), limit=25, begin=begin), "")


# Each function with steps on the disk, what it belongs to, and a story that needs their order.
ORDERED: list[tuple[Any, str, str]] = [
    (commit.Attempt, "publish", "a save of a step that is there"),
    (commit, "make_way", "a save of a step that is there"),
    (retention, "delete", "a save and what retention deletes"),
    (files, "write_new", "a save"),
    (Inbox, "answer", "a save"),
    (pins, "pin", "a pin"),
]
# Steps that may come in any order: the first by themselves, the second where nothing before is undone yet.
EITHER_WAY = {("pin", 1), ("delete", 0), ("publish", 1)}


def pairs() -> Iterator[Any]:
    for owner, name, story in ORDERED:
        steps = steps_of(getattr(owner, name))
        for number in range(len(steps) - 1):
            if (name, number) not in EITHER_WAY:
                yield pytest.param(owner, name, number, story, id=f"{name}: {steps[number]}")


@pytest.mark.parametrize(("owner", "name", "number", "story"), list(pairs()))
def test_exchanging_two_steps_breaks_a_promise(memory: Path, owner: Any, name: str, number: int, story: str) -> None:
    try:
        disk = told(memory / "wrong", story, changed(owner, name, exchanged(getattr(owner, name), number)))
    except (AssertionError, UnboundLocalError):
        return  # it does not even work
    assert next(Breaker(memory).break_everywhere(disk, limit=25), "")


def test_exchanging_the_first_two_steps_of_a_deletion_breaks_a_promise(memory: Path) -> None:
    first = told(memory / "first", "a save")
    begin = right_after(first, "checkpoint-8")
    with changed(retention, "delete", exchanged(retention.delete, 0)):
        disk = told_on(memory / "second", first, begin, prunes)
    assert next(Breaker(memory).break_everywhere(disk, limit=25, begin=begin), "")


@contextmanager
def changed(owner: Any, name: str, value: Callable[..., Any]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, value)
        yield
