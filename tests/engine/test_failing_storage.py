"""Storage that fails or hangs while a loop trains: training goes on, saves are tried again, stops end in time."""

import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.loops import Loop, train
from helpers.trainings import Launcher, Process, answers, events
from helpers.waiting import wait_until
from holdfast.capture.boundary import Boundary
from holdfast.capture.snapshot import Snapshots
from holdfast.engine import retry, save
from holdfast.errors import SaveError
from holdfast.store import commit


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """While this list holds anything, no checkpoint can be sealed; it is told of each try."""
    state: list[int] = []
    seal: Callable[..., Any] = commit.Attempt.seal

    def failing(attempt: commit.Attempt, *args: Any) -> Any:
        if state:
            state.append(attempt.step)
            raise OSError(5, "Input/output error")
        return seal(attempt, *args)

    monkeypatch.setattr(commit.Attempt, "seal", failing)
    return state


def test_fault_10_a_scheduled_save_that_fails_is_tried_again_until_one_succeeds(
    tmp_path: Path, broken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sealing the staged files raises EIO four times, then no more."""
    monkeypatch.setattr(retry, "_SCHEDULE", (0.05, 0.1))
    loop = Loop(tmp_path / "run", save_steps=5)
    status = loop.ckpt._engine.run.status
    broken.append(0)
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=9):
            loop.update(batch)
            if loop.ckpt.step_count == 7:
                wait_until(lambda: len(broken) > 4)
                now = status.now
                assert now.failing_since is not None and "Input/output error" in now.last_failure
                wait_until(lambda: status.now.next_try_at is not None)
                broken.clear()
                (saved,) = wait_until(lambda: events(tmp_path / "run", "saved"))
                assert wait_until(lambda: status.now.failing_since is None) and status.now.next_try_at is None
    assert saved["doors"] == ["schedule"] and saved["step"] in (6, 7)
    assert any("trying again in" in line for line in loop.said)
    assert len(events(tmp_path / "run", "saved")) == 1, "it was made good for, and is not due any more"
    quiet = train(tmp_path / "quiet", 9)
    assert (loop.losses, loop.digest()) == (quiet.losses, quiet.digest())


def test_who_asks_while_storage_fails_is_answered_at_once_and_nothing_is_tried_for_him(
    tmp_path: Path, broken: list[int]
) -> None:
    loop = Loop(tmp_path / "run")
    broken.append(0)
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=3):
            loop.update(batch)
            if loop.ckpt.step_count == 2:
                with pytest.raises(SaveError, match="Input/output error"):
                    loop.ckpt.save().wait(30)
                now = loop.ckpt._engine.run.status.now
                assert now.failing_since is not None and now.next_try_at is None
                broken.clear()
    assert not events(tmp_path / "run", "saved")


def test_what_the_schedule_missed_is_tried_once_more_when_training_ends(tmp_path: Path, broken: list[int]) -> None:
    loop = Loop(tmp_path / "run", save_steps=3)
    broken.append(0)
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=5):
            loop.update(batch)
            if loop.ckpt.step_count == 4:
                wait_until(lambda: events(tmp_path / "run", "failed"))
                broken.clear()
    assert [saved["step"] for saved in events(tmp_path / "run", "saved")][-1] in (4, 5)


def test_a_state_that_cannot_be_put_into_words_fails_the_save_and_answers_who_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop(tmp_path / "run")

    def manifest_entry(recorded: Any) -> Any:
        raise ValueError("no word for it")

    monkeypatch.setattr(loop.ckpt._state, "manifest_entry", manifest_entry)
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=3):
            loop.update(batch)
            if loop.ckpt.step_count == 2:
                with pytest.raises(SaveError, match="no word for it"):
                    loop.ckpt.save().wait(30)
    assert [answer["error"] for answer in answers(tmp_path / "run").values()] == ["no word for it"]


@pytest.mark.parametrize("stop", [False, True])
def test_an_error_of_our_own_answers_who_asked_and_a_stop_ends_training_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: bool
) -> None:
    loop = Loop(tmp_path / "run", on_stop="return")
    errors: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", errors.append)

    def is_still_valid(snapshots: Snapshots, boundary: Boundary) -> bool:
        raise ArithmeticError("nobody thought of this")

    with loop.ckpt:
        for batch in loop.ckpt.batches(until=2000):
            loop.update(batch)
            if loop.ckpt.step_count == 2:
                with monkeypatch.context() as broken:
                    broken.setattr(Snapshots, "is_still_valid", is_still_valid)
                    with pytest.raises(SaveError, match="in a way that it should not"):
                        loop.ckpt.save(stop=stop).wait(30)
            if not stop and loop.ckpt.step_count == 4:
                assert loop.ckpt.save().wait(30).saved
                break
    assert len(errors) == 1 and loop.ckpt.step_count < 2000 and loop.ckpt.stop_requested is stop


# Sealing what was staged waits or fails, and making its directory waits, as long as there is a file of that name beside
# the run directory.
STORAGE = """
import errno, os, sys, time
from pathlib import Path
sys.path.insert(0, TESTS)
from holdfast.engine import watchdog
from holdfast.store import commit
from helpers.loops import Loop
watchdog._SECONDS = 0.5
original = commit.Attempt.seal
def seal(self, *args):
    while Path("hangs").exists():
        time.sleep(0.01)
    if Path("fails").exists():
        Path("tries").open("a").write(f"{self.step}\\n")
        raise OSError(errno.EIO, "Input/output error")
    return original(self, *args)
commit.Attempt.seal = seal
make = commit.Attempt.__init__
def hanging(self, *args):
    while Path("hangs early").exists():
        time.sleep(0.01)
    make(self, *args)
commit.Attempt.__init__ = hanging
loop = Loop(Path("run"), say=print, save_steps=SAVE_STEPS, stop_grace_seconds=float(sys.argv[1]))
with loop.ckpt:
    for batch in loop.ckpt.batches(until=1_000_000):
        loop.update(batch)
        time.sleep(0.005)
"""


def start(launcher: Launcher, folder: Path, grace: float, save_steps: int | None = None) -> Process:
    program = STORAGE.replace("TESTS", repr(str(Path(__file__).parents[1]))).replace("SAVE_STEPS", repr(save_steps))
    process = launcher.start(str(grace), cwd=folder, program=program)
    wait_until(lambda: step(folder) >= 1 or process.code is not None, 60, "the first step")
    assert process.code is None, process.output
    return process


def step(folder: Path) -> int:
    status = folder / "run" / ".holdfast" / "status.json"
    return int(json.loads(status.read_text())["step"]) if status.exists() else 0


def goes_on(launcher: Launcher, folder: Path, hangs: str) -> tuple[Process, int]:
    """A training whose storage hangs, and how far it has come since it said so."""
    (folder / hangs).touch()
    process = start(launcher, folder, 25.0, save_steps=5)
    process.wait_for("the storage may hang; training goes on")
    reached = step(folder)
    return process, wait_until(lambda: step(folder) if step(folder) > reached + 20 else 0, 60, f"more than {reached}")


def test_fault_14_training_goes_on_while_storage_hangs_and_what_was_missed_is_saved_afterwards(
    launcher: Launcher, tmp_path: Path
) -> None:
    """Sealing the staged files does not come back for as long as a file is there."""
    process, reached = goes_on(launcher, tmp_path, "hangs")
    status = json.loads((tmp_path / "run" / ".holdfast" / "status.json").read_text())
    assert status["failing_since"] is not None and "has not come back" in status["last_failure"]
    (tmp_path / "hangs").unlink()
    late = wait_until(lambda: [e for e in events(tmp_path / "run", "saved") if e["step"] > reached])
    assert late[0]["doors"] == ["schedule"]
    process.send(signal.SIGTERM)
    assert process.wait() == 75, process.output


def test_fault_14_storage_that_hangs_before_the_snapshot_is_whole_does_not_hold_training_either(
    launcher: Launcher, tmp_path: Path
) -> None:
    """Making the directory of an attempt does not come back for as long as a file is there."""
    process, _ = goes_on(launcher, tmp_path, "hangs early")
    (tmp_path / "hangs early").unlink()
    failed = wait_until(lambda: events(tmp_path / "run", "failed"))
    assert "training went on before the snapshot was whole" in failed[0]["error"]
    wait_until(lambda: events(tmp_path / "run", "saved"))
    assert not events(tmp_path / "run", "capture"), "nobody wrote past the gate"
    process.send(signal.SIGTERM)
    assert process.wait() == 75, process.output


def test_fault_14_a_stop_while_storage_hangs_ends_within_its_grace(launcher: Launcher, tmp_path: Path) -> None:
    """Sealing the staged files never comes back, and SIGTERM is sent."""
    process = start(launcher, tmp_path, 3.0)
    (tmp_path / "hangs").touch()
    begun = time.monotonic()
    process.send(signal.SIGTERM)
    assert process.wait(30) == 143, process.output
    assert time.monotonic() - begun < 10, "on a machine that is not loaded it is below 3"
    assert "no checkpoint was saved within 3 s of the stop" in process.output
    assert "was not saved; the last checkpoint is" in process.output
    assert not events(tmp_path / "run", "saved")
    assert [answer["saved"] for answer in answers(tmp_path / "run").values()] == [False]


def test_fault_14_a_disk_that_takes_no_request_in_hides_no_second_ctrl_c(launcher: Launcher, tmp_path: Path) -> None:
    """Writing the request of the first Ctrl+C never comes back."""
    program = HANGING_INBOX.replace("TESTS", repr(str(Path(__file__).parents[1])))
    process = launcher.start(cwd=tmp_path, program=program)
    wait_until(lambda: step(tmp_path) >= 1 or process.code is not None, 60, "the first step")
    process.send(signal.SIGINT)
    wait_until(lambda: (tmp_path / "hanging").exists())
    pressed = time.monotonic()
    wait_until(lambda: time.monotonic() - pressed > 1.1)
    process.send(signal.SIGINT)
    assert process.wait(30) == 130, process.output
    assert "second Ctrl+C" in process.output


HANGING_INBOX = """
import sys, threading, time
from pathlib import Path
sys.path.insert(0, TESTS)
from holdfast.run.inbox import Inbox
from helpers.loops import Loop
def submit(self, request):
    Path("hanging").touch()
    threading.Event().wait()
Inbox.submit = submit
loop = Loop(Path("run"), say=print, stop_grace_seconds=100)
with loop.ckpt:
    for batch in loop.ckpt.batches(until=1_000_000):
        loop.update(batch)
        time.sleep(0.005)
"""


def test_fault_10_a_stop_under_a_failing_disk_is_tried_again_ends_in_time_with_1_and_says_what_is_lost(
    launcher: Launcher, tmp_path: Path
) -> None:
    """Sealing the staged files always raises EIO, and SIGTERM is sent."""
    (tmp_path / "fails").touch()
    process = start(launcher, tmp_path, 5.0)
    process.send(signal.SIGTERM)
    assert process.wait(30) == 1, process.output
    tries = (tmp_path / "tries").read_text().split()
    assert len(tries) >= 2 and len(set(tries)) <= 2, "training does not go on meanwhile"
    assert f"checkpoint failed step={tries[-1]} trigger=request:" in process.output
    (answer,) = answers(tmp_path / "run").values()
    assert not answer["saved"] and "Input/output error" in answer["error"]
    assert (answer["step"], events(tmp_path / "run", "end")[-1]["code"]) == (int(tries[-1]), 1)


def test_fault_10_a_stop_that_failed_at_first_is_saved_when_the_disk_works_again(
    launcher: Launcher, tmp_path: Path
) -> None:
    """Sealing the staged files raises EIO for the first two tries of the save that SIGTERM asks for."""
    (tmp_path / "fails").touch()
    process = start(launcher, tmp_path, 50.0)
    process.send(signal.SIGTERM)
    wait_until(lambda: len(events(tmp_path / "run", "failed")) == 2)
    assert answers(tmp_path / "run") == {}, "the answer is what becomes of it in the end"
    (tmp_path / "fails").unlink()
    assert process.wait() == 75, process.output
    (answer,) = answers(tmp_path / "run").values()
    (saved,) = events(tmp_path / "run", "saved")
    assert answer["saved"] and (answer["step"], saved["doors"]) == (saved["step"], ["signal"])


def test_an_error_of_our_own_after_the_answer_leaves_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise ArithmeticError("nobody thought of this")

    loop = Loop(tmp_path / "run", on_stop="return")
    monkeypatch.setattr(threading, "excepthook", lambda error: None)
    monkeypatch.setattr(save, "_retain", fail)
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=4):
            loop.update(batch)
            if loop.ckpt.step_count == 2:
                assert loop.ckpt.save().wait(30).saved
