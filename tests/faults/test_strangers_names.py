"""Names in a run directory that mean something to a run, which a stranger takes, exchanges and gives to others."""

import json
import os
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from faults.accounts import done_as, unprotected
from faults.desk import Desk
from faults.ground import GROUP, KINDS, OPEN, ROOT, STICKY, Ground, belongs_to, exchange, give, plant, state_by_number
from faults.programs import runs
from helpers.loops import train
from holdfast.errors import HoldfastError
from holdfast.store import names

Record = Callable[[str, object], None]

OURS = '{"at": 1, "event": "end", "outcome": "stopped", "code": 75}\n'
TRIGGER = "axolotl_checkpoint.save"


def puts(place: Ground, name: str, whats: list[str], target: Path, content: str = "") -> Callable[[], int]:
    """The stranger's turn: puts one thing after another under a name, each when the last has gone from there."""
    path = place.run / name

    def turn() -> int:
        if not whats or belongs_to(path, place.stranger) or not place.run.exists():
            return 0
        planted = place.run / f"planted-{name}-{len(whats)}"
        what = whats.pop(0)
        if what == "hard link":
            planted.hardlink_to(target)
        else:
            plant(planted, what, target)
            if what == "file":
                planted.write_text(f"{content}the stranger's")
        if os.path.lexists(path):
            exchange(planted, path)
        else:
            planted.rename(path)
        return 1

    return turn


@pytest.mark.parametrize("place", [GROUP, OPEN, ROOT], indirect=True)
def test_security_s26_with_two_accounts_nothing_is_added_to_what_has_the_journals_name(
    place: Ground, record_property: Record
) -> None:
    """Another account puts links, hard links, pipes, files and directories of its in the journal's place."""
    whats = ["link", "pipe", "file", "directory", "file", "hard link"]
    with (
        unprotected(),
        place.training(lambda desk: desk.trains(place.run, {"say": print})) as desk,
        place.strange(puts(place, "events.jsonl", whats, place.home / "events.jsonl", OURS)) as stranger,
    ):
        while stranger.exchanged < len(whats):
            assert place.ask(desk).startswith("saved"), desk.said()
        assert place.ask(desk).startswith("saved"), desk.said()
        assert desk.end() == 0
    with place.program(lambda: runs("status", str(place.run), "--outcome"), "status") as child:
        assert child.wait() == 0 and "code 0" in child.said(), child.said()
    assert "is moved to events.jsonl.set-aside" in desk.printed()
    record_property("injected", len(whats))
    place.require_untouched()


def begins(run: Path) -> None:
    """What a child does: begins a training, and says why it cannot."""
    try:
        train(run, 3, save_steps=1, say=print)
    except HoldfastError as error:
        print("refused", error, flush=True)


@pytest.mark.parametrize("place", [STICKY], indirect=True)
@pytest.mark.parametrize("name", ["events.jsonl", ".holdfast"])
def test_security_s26_with_two_accounts_what_cannot_be_moved_out_of_the_way_refuses_a_start_by_its_name(
    place: Ground, name: str
) -> None:
    """In a sticky directory another account has made the journal, or the control directory, beforehand."""
    what = "file" if name == "events.jsonl" else "directory"
    done_as(place.stranger, lambda: plant(place.run / name, what, place.private), umask=0)
    with place.program(lambda: begins(place.run)) as child:
        assert child.wait() == 0, child.said()
    (refused,) = (line for line in child.said().splitlines() if line.startswith("refused"))
    assert str(place.run / name) in refused and "Traceback" not in child.said()
    place.require_untouched()


def renames_to_the_trigger(place: Ground, desk: Desk, files: list[str]) -> Callable[[], int]:
    """The stranger's turn: gives the user's files the trigger's name, one after another, and then what is his.

    Each is left there for as long as the run takes to look; what has not gone by then is taken away.
    """
    trigger = place.run / TRIGGER
    whats = iter(["link", "pipe", "directory", "file"])
    until = 0

    def turn() -> int:
        nonlocal until
        if os.path.lexists(trigger):
            if desk.step >= until:
                trigger.rename(place.run / f"was-{uuid.uuid4().hex}")
            return 0
        if files:
            (place.run / files.pop()).rename(trigger)
        elif what := next(whats, ""):
            plant(place.run / what, what, place.home / "precious")
            (place.run / what).rename(trigger)
        else:
            return 0
        until = desk.step + 25
        return 1

    return turn


@pytest.mark.parametrize("place", [GROUP, OPEN, ROOT], indirect=True)
def test_security_s07_s31_with_two_accounts_what_gets_the_triggers_name_is_kept_and_stops_nothing(
    place: Ground, record_property: Record
) -> None:
    """Another account gives the trigger's name to files of the user's and to the journal, and to what it has made."""
    contents = {"notes.txt": b"remember\n", "data.bin": bytes(10_000), "utf-16.txt": "text".encode("utf-16")}
    with place.training(lambda desk: desk.trains(place.run, {"say": print})) as desk:
        for name, content in contents.items():
            (place.run / name).write_bytes(content)
            give(place.run / name, place.user)
        numbers = {(place.run / name).stat().st_ino: content for name, content in contents.items()}
        renamed = [*contents, "events.jsonl"]
        with place.strange(renames_to_the_trigger(place, desk, renamed)) as stranger:
            stranger.wait_for(len(contents) + 5)
            desk.require_progress(25)
        assert place.ask(desk).startswith("saved"), desk.said()
        assert desk.end() == 0, desk.printed()
    kept = state_by_number(place.run)
    assert {number: kept[number][3] for number in numbers} == numbers
    journals = [
        json.loads(line) for state in kept.values() if state[3].startswith(b'{"at": ') for line in state[3].splitlines()
    ]
    assert {"start", "saved", "end"} <= {event["event"] for event in journals}
    record_property("injected", stranger.exchanged)
    place.require_untouched()


@pytest.mark.parametrize("place", [STICKY], indirect=True)
@pytest.mark.parametrize("what", ["link", "pipe", "directory", "file"])
def test_security_s07_s31_with_two_accounts_a_strangers_file_asks_for_nothing(place: Ground, what: str) -> None:
    """In a sticky directory another account has a link, a pipe, a directory or a file under the trigger's name."""
    with unprotected(), place.training(lambda desk: desk.trains(place.run, {"say": print})) as desk:
        done_as(place.stranger, lambda: plant(place.run / TRIGGER, what, place.home / "precious"), umask=0)
        desk.require_progress(20)
        assert desk.end() == 0
    assert "left alone and asks for nothing" in desk.printed() and "checkpoint saved" not in desk.printed()
    place.require_untouched()


def digs(folder: Path, levels: int = 1_500) -> None:
    """Makes a directory that has so many others in it, one in the other."""
    folder.mkdir(exist_ok=True)
    fd = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)


def count_of(folder: Path) -> int:
    """How many files and directories there are, however deep they lie."""
    done = subprocess.run(["find", str(folder), "-printf", "x"], check=True, capture_output=True, text=True)
    return len(done.stdout)


@pytest.mark.parametrize("place", [*KINDS, ROOT], indirect=True)
def test_security_s27_with_two_accounts_what_is_very_deep_is_left_and_stops_nobody(
    place: Ground, record_property: Record
) -> None:
    """Another account has made directories of 1,500 levels: leftovers by their names, a checkpoint, and others."""
    with place.program(lambda: begins(place.run), "first") as child:
        assert child.wait() == 0, child.said()
    deep = [names.trash("a" * 32), names.staging("a" * 32, 3, "b" * 32), "checkpoint-9", "deep"]
    for name in deep:
        done_as(place.stranger, lambda name=name: digs(place.run / name), umask=0)  # type: ignore[misc]
    before = [count_of(place.run / name) for name in deep]
    with place.training(lambda desk: desk.trains(place.run, {"say": print})) as desk:
        assert place.ask(desk).startswith("saved"), desk.said()
        assert desk.end() == 0
    printed = desk.printed()
    for verb in ("list", "verify", "status"):
        with place.program(lambda verb=verb: runs(verb, str(place.run)), verb) as child:  # type: ignore[misc]
            assert child.wait() == 0, child.said()
        printed += child.said()
    assert "Traceback" not in printed and "Recursion" not in printed
    assert [count_of(place.run / name) for name in deep] == before
    for name in deep[:2]:
        assert sum(name in line for line in desk.printed().splitlines()) == 1, desk.printed()
    record_property("injected", len(deep))
    place.require_untouched()
