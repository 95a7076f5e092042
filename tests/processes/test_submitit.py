"""A training under submitit, with its local executor: its signals save, and its own handler requeues."""

import json
import os
import signal
from pathlib import Path

import pytest
import submitit

from helpers.submitted import STANDS_AFTER, Job
from helpers.trainings import events
from helpers.waiting import wait_until


def test_its_sigterm_saves_and_goes_on_and_its_own_signal_saves_and_requeues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """submitit sends both at a preemption; its handler of SIGTERM does nothing, so that the other can be heard."""
    run = tmp_path / "run"
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
    executor = submitit.LocalExecutor(tmp_path / "jobs")
    executor.update_parameters(timeout_min=5)
    job = executor.submit(Job(str(tmp_path)))
    wait_until((tmp_path / "stands").exists, 60, "a training that stands")
    pid = json.loads((run / ".holdfast/status.json").read_text())["pid"]
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: len(events(run, "saved")) == 1, 30, "the save")
    assert not (tmp_path / "requeued").exists() and not events(run, "end")
    assert not events(run, "request")[0]["stop"]
    os.kill(pid, signal.SIGUSR2)
    assert job.result() == {"begun": STANDS_AFTER, "ended": 8, "starts": 2}
    assert (tmp_path / "requeued").read_text() == f"checkpoint-{STANDS_AFTER}"
    assert [(end["outcome"], end["code"]) for end in events(run, "end")] == [("stopped", 144), ("finished", 0)]
    output = (job.stdout() or "") + (job.stderr() or "")
    assert "Bypassing signal SIGTERM" in output and "SIGTERM: saving the last boundary\n" in output
