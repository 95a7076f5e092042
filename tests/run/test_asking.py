"""`holdfast.save` and `holdfast.status`: a training, from Python in another process."""

import json
import threading
from pathlib import Path

import pytest

import holdfast
from helpers.serving import training
from helpers.support import holdfast as command
from helpers.support import line_of, tell
from helpers.waiting import wait_until
from holdfast.errors import (
    ConfigError,
    HoldfastError,
    RunNotAliveError,
    RunNotFoundError,
    SaveError,
    WaitTimeoutError,
)
from holdfast.run.directory import RunDirectory
from holdfast.run.inbox import Inbox
from holdfast.run.run import Run
from holdfast.store.verify import verify


def pending(root: Path) -> int:
    return len(Inbox(RunDirectory.open(root)).pending()[0])


def in_a_thread(root: Path) -> tuple[threading.Thread, list[object]]:
    """Asks with `wait=True`; returns what comes of it."""
    became: list[object] = []

    def ask() -> None:
        try:
            became.append(holdfast.save(root, wait=True).answer)
        except HoldfastError as error:
            became.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, became


def test_a_save_is_asked_for_waited_for_and_told_of_when_it_fails(tmp_path: Path) -> None:
    with training(tmp_path) as run:
        asked = holdfast.save(tmp_path, "before lr")
        assert asked.answer is None
        (request,), _ = Inbox(RunDirectory.open(tmp_path)).pending()
        assert (request.id, request.label, request.why, request.stop) == (asked.id, "before lr", "holdfast.save", False)
        with pytest.raises(WaitTimeoutError, match=f"the request {asked.id} stands"):
            asked.wait(timeout=0.0)
        tell(run, "save")
        answer = asked.wait()
        assert answer == asked.answer and answer.step == 7 and verify(Path(answer.path)).good
        assert line_of(run) == "saved"
        thread, became = in_a_thread(tmp_path)
        wait_until(lambda: pending(tmp_path))
        tell(run, "fail")
        thread.join(30)
        assert isinstance(became[0], SaveError) and "the save failed at step 8: a bad day" in str(became[0])


def test_a_stop_is_one_as_the_commands_is(tmp_path: Path) -> None:
    with training(tmp_path):
        holdfast.save(str(tmp_path), stop=True)
        (request,), _ = Inbox(RunDirectory.open(tmp_path)).pending()
        assert request.stop and request.door == "command"


def test_whoever_waits_hears_that_the_process_is_gone(tmp_path: Path) -> None:
    with training(tmp_path) as run:
        thread, became = in_a_thread(tmp_path)
        wait_until(lambda: pending(tmp_path))
        run.kill()
        run.wait()
        thread.join(30)
    assert isinstance(became[0], RunNotAliveError) and "the request is served when it is resumed" in str(became[0])


def test_status_is_what_the_command_prints(tmp_path: Path) -> None:
    with training(tmp_path) as run:
        status = holdfast.status(tmp_path)
        printed = json.loads(command("status", tmp_path, "--json").stdout)
        changes = ("written_at", "loss")
        assert {**status, **dict.fromkeys(changes)} == {**printed, **dict.fromkeys(changes)}
        assert (status["alive"], status["pid"], status["step"]) == (True, run.pid, 6)
        tell(run, "end")
        run.wait()
    assert not holdfast.status(tmp_path)["alive"] and holdfast.status(tmp_path)["outcome"] == "finished"


def test_errors_are_ours(tmp_path: Path) -> None:
    for ask in (holdfast.save, holdfast.status):
        with pytest.raises(RunNotFoundError):
            ask(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="timeout: has no meaning without wait=True"):
        holdfast.save(tmp_path, timeout=3)
    with pytest.raises(ConfigError, match="label: has 5000 bytes"):
        holdfast.save(tmp_path, "x" * 5000)
    for ask in (holdfast.save, holdfast.status):
        with pytest.raises(ConfigError, match="run: 3 is no path"):
            ask(3)  # type: ignore[arg-type]
    run = Run.open(tmp_path)
    with pytest.raises(ConfigError, match="label: 5 is no text"):
        holdfast.save(tmp_path, 5)  # type: ignore[arg-type]
    for timeout in ("x", -1):
        with pytest.raises(ConfigError, match=f"timeout: {timeout!r} is no number of seconds"):
            holdfast.save(tmp_path, wait=True, timeout=timeout)  # type: ignore[arg-type]
    assert not pending(tmp_path), "nothing was asked for"
    asked = holdfast.save(tmp_path)
    with pytest.raises(HoldfastError, match="this process trains the run, and would wait for itself"):
        asked.wait()
    run.close("finished", 0)
    with pytest.raises(RunNotAliveError, match="no process is training the run"):
        holdfast.save(tmp_path, wait=True)
    (tmp_path / ".holdfast" / "status.json").write_text("[]")
    assert holdfast.status(tmp_path) == {"path": str(tmp_path), "alive": False}
