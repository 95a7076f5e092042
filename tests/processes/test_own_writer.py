"""A Trainer that its own writer alone can save: in the training thread, at a boundary, and committed by us."""

import json
import signal
from pathlib import Path

import pytest

from helpers.own_writer import start
from helpers.support import holdfast
from helpers.trainings import Launcher, events
from helpers.waiting import wait_until


@pytest.fixture(scope="module")
def uninterrupted(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> list[str]:
    """What plain transformers ends with."""
    return start(launcher, tmp_path_factory.mktemp("whole"), tiny, "plain").digests()


def test_what_is_asked_for_in_a_step_is_saved_at_the_next_boundary_and_resumes_to_the_same_bytes(
    launcher: Launcher, tmp_path: Path, tiny: Path, uninterrupted: list[str]
) -> None:
    run = tmp_path / "out"
    job = start(launcher, tmp_path, tiny, "ours", STAND="5,7")
    (process,) = job.processes
    process.wait_for("stands after 5")
    assert holdfast("save", run).returncode == 0
    wait_until(lambda: events(run, "request"))
    (tmp_path / "go-5").touch()
    process.wait_for("stands after 7")
    wait_until(lambda: [event["step"] for event in events(run, "saved")] == [4, 6])
    status = json.loads(wait_until(lambda: (run / ".holdfast" / "status.json").read_text()))
    assert status["capture"] == "in this test its own writer alone reads it"
    job.kill()
    assert "written in MainThread" in process.output and "holdfast-" not in process.output
    checkpoint = run / "checkpoint-6"
    assert holdfast("verify", checkpoint).returncode == 0
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "parts"} <= {path.name for path in checkpoint.iterdir()}
    assert not [path for path in run.rglob("*") if path.is_file() and b"canary-secret" in path.read_bytes()]
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == "out/checkpoint-4"
    assert start(launcher, tmp_path, tiny, "ours", "auto").digests() == uninterrupted


def test_plain_transformers_goes_on_from_a_scheduled_save(
    launcher: Launcher, tmp_path: Path, tiny: Path, uninterrupted: list[str]
) -> None:
    assert start(launcher, tmp_path, tiny, "ours").digests() == uninterrupted
    assert [event["step"] for event in events(tmp_path / "out", "saved")] == [4, 8, 12]
    (outcome,) = start(launcher, tmp_path, tiny, "plain", "out/checkpoint-8").digests()
    weights, _ = outcome.split("_")  # its summary is of the rest alone
    assert uninterrupted[0].startswith(weights)


def test_a_checkpoint_of_another_kind_of_trainer_is_refused(launcher: Launcher, tmp_path: Path, tiny: Path) -> None:
    start(launcher, tmp_path, tiny, "ours").digests()
    job = start(launcher, tmp_path, tiny, "ours", "auto", FORM="FSDP")
    assert job.wait() == [1]
    assert "was written by a trainer that uses no sharding of its own, and this one uses FSDP" in job.output


def test_a_stop_saves_the_next_boundary_and_leaves_there(
    launcher: Launcher, tmp_path: Path, tiny: Path, uninterrupted: list[str]
) -> None:
    job = start(launcher, tmp_path, tiny, "ours", STAND="5")
    job.processes[0].wait_for("stands")
    job.processes[0].send(signal.SIGTERM)
    wait_until(lambda: events(tmp_path / "out", "request"))
    (tmp_path / "go-5").touch()
    assert job.wait() == [75]
    assert "signal" in {event["step"]: event["doors"] for event in events(tmp_path / "out", "saved")}[6]
    assert start(launcher, tmp_path, tiny, "ours", "auto").digests() == uninterrupted


def test_a_writer_that_fails_costs_that_save_and_no_more(
    launcher: Launcher, tmp_path: Path, tiny: Path, uninterrupted: list[str]
) -> None:
    assert start(launcher, tmp_path, tiny, "ours", FAIL="4").digests() == uninterrupted
    (failed,) = events(tmp_path / "out", "failed")
    assert failed["step"] == 4 and failed["error"] == "this writer has an error of its own"
    assert [event["step"] for event in events(tmp_path / "out", "saved")] == [8, 12]


def test_after_an_error_in_a_step_the_state_may_be_that_of_no_boundary(
    launcher: Launcher, tmp_path: Path, tiny: Path
) -> None:
    job = start(launcher, tmp_path, tiny, "ours", RAISE="6")
    assert job.wait() == [1]
    assert "AssertionError in the middle of an update" in job.output
    assert [event["step"] for event in events(tmp_path / "out", "saved")] == [4]
