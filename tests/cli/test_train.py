"""`holdfast train --nproc`: what it starts, and what it ends with."""

import re
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.support import RUN, holdfast
from helpers.trainings import Training, events
from helpers.waiting import wait_until
from holdfast.run.outcome import Outcome
from holdfast.train.torchrun import code_of, command


def ended(how: str, code: int) -> Outcome:
    return replace(STARTED, outcome=how, code=code, ended_at=2.0)


STARTED = Outcome(RUN, "0" * 32, 1, 1, None)


def test_torchrun_is_told_of_everything_that_one_process_would_be_told() -> None:
    started = command(4, Path("a b.yml"), ["max_steps=3", "seed=1"], "auto")
    assert started[0] == sys.executable and "--standalone" in started
    assert started[started.index("--nproc-per-node") + 1] == "4"
    ours = ["-m", "holdfast", "train", "a b.yml", "--set", "max_steps=3", "--set", "seed=1", "--resume", "auto"]
    assert started[-len(ours) :] == ours
    assert "--resume" not in command(2, Path("c.yml"), [], None)


@pytest.mark.parametrize(
    ("start", "code", "signalled", "expected"),
    [
        (ended("finished", 0), 0, None, 0),
        (ended("finished", 0), 1, None, 1),  # another rank failed after rank 0 had ended
        (ended("finished", 0), 1, signal.SIGTERM, 0),
        (ended("finished", 3), 1, None, 3),
        (ended("stopped", 0), 0, None, 75),
        (ended("stopped", 0), 1, signal.SIGTERM, 75),
        (ended("stopped", 1), 1, None, 1),
        (ended("failed: ValueError", 1), 1, None, 1),
        (ended("left: SIGTERM: nothing is new", 0), 0, signal.SIGTERM, 75),
        (ended("left: SIGINT: no step was taken yet", 130), 1, signal.SIGINT, 130),
        (STARTED, 1, None, 1),
        (STARTED, 0, signal.SIGTERM, 1),  # killed before it could say how it ended
        (None, 1, None, 1),
        (None, -9, None, 1),
        (None, 1, signal.SIGINT, 130),
        (None, -15, signal.SIGTERM, 143),
    ],
)
def test_the_code_is_that_of_one_process(
    start: Outcome | None, code: int, signalled: int | None, expected: int
) -> None:
    assert code_of(start, code, signalled) == expected


def test_no_processes_at_all_is_an_error_of_the_command_line() -> None:
    refused = holdfast("train", "config.yml", "--nproc", "0")
    assert refused.returncode == 2 and "--nproc" in refused.stderr and "x>=1" in refused.stderr


def test_a_wrong_configuration_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text("base_model: nowhere\n")
    refused = holdfast("train", "config.yml", "--nproc", "2", cwd=tmp_path)
    assert refused.returncode == 2 and "learning_rate" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["config.yml"]


def test_a_launcher_inside_a_launcher_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "outer")
    refused = holdfast("train", "config.yml", "--nproc", "2", cwd=tmp_path)
    assert refused.returncode == 2 and "leave --nproc out" in refused.stderr


@pytest.mark.timeout(240)
def test_two_processes_save_on_a_signal_and_go_on_and_stop_at_the_next(training: Training) -> None:
    process = training.start("--nproc", "2")
    wait_until(lambda: events(training.run, "start") or process.code is not None, 150, "the start of both ranks")
    assert process.code is None, process.output
    training.wait_for_step(3)
    process.send(signal.SIGUSR1)
    (first,) = training.wait_for_saves(1)
    training.wait_for_step(first["step"] + 2)
    process.send(signal.SIGINT)
    assert process.wait() == 75, process.output
    last = training.saved()[-1]
    assert last["step"] > first["step"] and events(training.run)[-1]["outcome"] == "stopped"
    for saved in (first, last):
        assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in Path(saved["path"]).iterdir()}
    assert (training.run / "model.safetensors").read_bytes() == Path(last["path"], "model.safetensors").read_bytes()
    assert "Traceback" not in process.output
    assert len(re.findall(r"^stopped after a good save$", process.output, re.M)) == 1, "said by one rank"
