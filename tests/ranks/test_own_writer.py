"""A Trainer of two processes that its own writer alone can save, with collectives: in all training threads together."""

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
    return start(launcher, tmp_path_factory.mktemp("whole"), tiny, 2, "plain").digests()


def test_all_ranks_write_at_the_boundary_that_they_agree_on_and_resume_to_the_same_bytes(
    launcher: Launcher, tmp_path: Path, tiny: Path, uninterrupted: list[str]
) -> None:
    run = tmp_path / "out"
    job = start(launcher, tmp_path, tiny, 2, "ours", STAND="1 5,1 7")
    job.processes[1].wait_for("stands after 1 5")
    before = len(events(run, "agreed"))
    assert holdfast("save", run).returncode == 0
    wait_until(lambda: len(events(run, "agreed")) > before)
    (tmp_path / "go-5").touch()
    job.processes[1].wait_for("stands after 1 7")
    wait_until(lambda: [event["step"] for event in events(run, "saved")] == [4, 6])
    job.kill()
    assert [process.output.count("written in MainThread") for process in job.processes] == [2, 2]
    checkpoint = run / "checkpoint-6"
    assert holdfast("verify", checkpoint).returncode == 0
    files = {file["path"] for file in json.loads((checkpoint / "MANIFEST.json").read_text())["files"]}
    assert {f"{name}_{rank}{end}" for name, end in (("rng_state", ".pth"),) for rank in range(2)} <= files
    assert {"optimizer.pt", "parts/__0_0.distcp", "parts/__1_0.distcp"} <= files
    assert start(launcher, tmp_path, tiny, 2, "ours", "auto").digests() == uninterrupted


def test_a_stop_of_one_rank_and_scheduled_saves(
    launcher: Launcher, tmp_path: Path, tiny: Path, uninterrupted: list[str]
) -> None:
    run = tmp_path / "out"
    job = start(launcher, tmp_path, tiny, 2, "ours", STAND="0 5")
    job.processes[0].wait_for("stands")
    before = len(events(run, "agreed"))
    job.processes[1].send(signal.SIGTERM)
    wait_until(lambda: len(events(run, "agreed")) > before)
    (tmp_path / "go-5").touch()
    assert job.wait() == [75, 75]
    assert [event["step"] for event in events(run, "saved")] == [4, 6]
    assert start(launcher, tmp_path, tiny, 2, "ours", "auto").digests() == uninterrupted
    assert [event["step"] for event in events(run, "saved")] == [4, 6, 8, 12]
