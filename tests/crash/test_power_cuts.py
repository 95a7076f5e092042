"""The power goes at every moment of what the program does to a disk: what it promised is kept, and it starts again."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from crash.breaking import Breaker
from crash.disk import Tree, lay_out
from crash.recorder import Recorder
from crash.stories import STORIES, Story, opens, prunes, saves, told, told_on
from holdfast.run.directory import RunDirectory
from holdfast.store import files

Record = Callable[[str, object], None]

# How many states of one moment are looked at; where more are possible, these are a sample.
MOST = 20 if os.environ.get("HOLDFAST_FAULTS") else 1
LIMIT = 30 * MOST
LIMIT_AFTER_A_KILL = 4 * MOST
LIMIT_IN_A_RECOVERY = 4 * MOST


@pytest.mark.parametrize("name", STORIES)
def test_fault_03_04_10_what_was_acknowledged_is_there_or_the_older_one_and_never_a_mix(
    memory: Path, record_property: Record, name: str
) -> None:
    """A model of a disk forgets any part of what was not synced, at every moment of a save, a deletion and a pin."""
    breaker = Breaker(memory)
    assert list(itertools.islice(breaker.break_everywhere(told(memory / "disk", name), limit=LIMIT), 3)) == []
    assert len(breaker.seen) >= (5 if "request" in name or "pin" in name else 20), (
        "hardly anything was lost: the test shows nothing"
    )
    record_property("injected", len(breaker.seen))


@pytest.mark.parametrize(
    ("name", "second"),
    [
        ("a save", prunes),
        ("a save of a step that is there", prunes),
        ("a save and what retention deletes", opens),
        ("a save and what retention deletes", prunes),
        ("a save of a step that is there", saves(7)),
    ],
)
def test_fault_01_02_03_the_work_of_a_killed_process_is_safe_to_go_on_from(
    memory: Path, record_property: Record, name: str, second: Story
) -> None:
    """SIGKILL after every change of a name; another process starts or deletes; then the model cuts the power."""
    disk = told(memory / "disk", name)
    breaker = Breaker(memory)
    killed = 0
    shape: tuple[str, ...] | None = None
    for count in range(len(disk.events) + 1):
        if shape != (shape := _names(disk.up_to(count).visible())):
            killed += 1
            later = told_on(memory / f"killed-{count}", disk, count, second)
            found = breaker.break_everywhere(later, limit=LIMIT_AFTER_A_KILL, begin=count)
            assert list(itertools.islice(found, 3)) == [], f"killed after {count} of {len(disk.events)} events"
    assert killed > 6
    record_property("injected", killed + len(breaker.seen))


@pytest.mark.parametrize("name", ["a save", "a save and what retention deletes"])
def test_fault_05_a_recovery_that_is_cut_off_can_be_done_again(
    memory: Path, record_property: Record, name: str
) -> None:
    """The model cuts the power at every moment of a start after a power cut, for a sample of those starts."""
    breaker = Breaker(memory)
    assert not list(breaker.break_everywhere(told(memory / "disk", name), limit=6))
    once = len(breaker.seen)
    assert list(itertools.islice(breaker.break_recoveries(10 * MOST, LIMIT_IN_A_RECOVERY), 3)) == []
    assert len(breaker.seen) > once + 20
    record_property("injected", len(breaker.seen) - once)


def test_fault_05_to_recover_twice_is_to_recover_once(memory: Path, record_property: Record) -> None:
    """The model cuts the power at every moment of a save; then the program starts twice."""
    disk = told(memory / "disk", "a save")
    trees = list(dict.fromkeys(tree for tree, _ in disk.after_power_cuts(limit=4)))
    for number, tree in enumerate(trees):
        top = memory / f"state-{number}"
        lay_out(tree, top)
        once, twice = _after_a_start(top), _after_a_start(top)
        assert once.keys() == twice.keys()
        assert [path for path in once if "checkpoint-" in path and once[path] != twice[path]] == []
    assert len(trees) > 20
    record_property("injected", len(trees))


def test_fault_03_a_run_directory_that_was_made_is_there(memory: Path) -> None:
    """The model cuts the power right after the directory of a run, and the one above it, were made."""
    recorder = Recorder(memory)
    with recorder.recording():
        RunDirectory.create(memory / "runs" / "one")
    last = [dict(tree) for tree, count in recorder.disk.after_power_cuts() if count == len(recorder.disk.events)]
    assert last and all("runs/one" in tree for tree in last)


def test_the_model_forgets_what_was_not_synced(memory: Path) -> None:
    def story(recorder: Recorder) -> None:
        fd = files.open_new(recorder.top / "new")
        files.write_all(fd, b"abcd")
        os.close(fd)
        (recorder.top / "new").rename(recorder.top / "file")
        files.sync_directory(recorder.top)
        files.remove(recorder.top / "file")

    top = memory / "disk"
    top.mkdir()
    recorder = Recorder(top)
    with recorder.recording():
        story(recorder)
    found = [(tree, count) for tree, count in recorder.disk.after_power_cuts()]
    contents = {b"", b"ab", b"abcd", bytes(4)}
    before = {tree for tree, count in found if count < len(recorder.disk.events)}
    assert before == {(), *(((name, content),) for name in ("new", "file") for content in contents)}
    after = {tree for tree, count in found if count == len(recorder.disk.events)}
    assert after == {(), *((("file", content),) for content in contents)}, "the synced rename was forgotten"


def test_what_goes_past_the_recorder_is_found(memory: Path) -> None:
    recorder = Recorder(memory)
    with pytest.raises(AssertionError, match="past the recorder"), recorder.recording():
        (memory / "file").write_bytes(b"x")


def _after_a_start(top: Path) -> dict[str, bytes | None]:
    recorder = Recorder(top)
    with recorder.recording():
        opens(recorder)
    return dict(recorder.disk.visible())


def _names(tree: Tree) -> tuple[str, ...]:
    """What somebody sees who looks no deeper than a run's checkpoints, requests and answers."""
    return tuple(path for path, _ in tree if path.count("/") == 1 or "/requests/" in path or "/answers/" in path)
