"""Axolotl's plugin, in Axolotl itself. What it is asked and how it is stopped: `tests/field`, its rows.

Its pins are others than this project's, so that it has an environment of its own: `make test-axolotl`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.trainings import Launcher, Process, events
from helpers.waiting import wait_until

pytest.importorskip("axolotl", reason="Axolotl has an environment of its own: make test-axolotl")

from helpers.axolotl_runs import configuration, without_speed

pytestmark = pytest.mark.timeout(600)

BIN = Path(sys.executable).parent
TESTS = Path(__file__).parents[1]
STEPS = 12
# What Axolotl's own command runs in a process.
PROGRAM = """
import sys
from axolotl.cli.train import do_cli
do_cli(sys.argv[1])
"""


@dataclass
class Runs:
    """Trainings of Axolotl in one folder."""

    folder: Path
    launcher: Launcher
    inputs: Path
    started: list[Process] = field(default_factory=list)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def configure(self, **changes: Any) -> None:
        usual = {"output_dir": "out", "max_steps": STEPS, "save_steps": 1000}
        config = configuration(self.inputs, **{**usual, **changes})
        (self.folder / "config.yml").write_text(yaml.safe_dump(config))

    def start(self, *holds: int, **changes: Any) -> Process:
        """Starts a training; it stands still after some steps, until `go`."""
        self.configure(**changes)
        self.started.append(
            self.launcher.start("config.yml", cwd=self.folder, program=PROGRAM, FIELD_HOLDS=",".join(map(str, holds)))
        )
        return self.started[-1]

    def mark(self, name: str) -> Path:
        return self.folder / f"config.yml.{name}"

    def stands_at(self, step: int) -> None:
        process = self.started[-1]
        wait_until(lambda: self.mark(f"at-{step}").exists() or process.code is not None, 120, f"step {step}")
        assert process.code is None, process.output

    def go(self, step: int) -> None:
        self.mark(f"go-{step}").touch()

    def stop(self, step: int) -> None:
        """Stops a training that stands after a step, which is what is saved."""
        self.stands_at(step)
        before = len(self.saved())
        self.started[-1].send(signal.SIGTERM)
        wait_until(lambda: len(self.saved()) > before, 60, "the save of a stop")
        self.go(step)
        assert self.started[-1].wait(120) == 75, self.started[-1].output

    def saved(self) -> list[tuple[int, str]]:
        """The step of each checkpoint, and who asked for it."""
        return [(event["step"], event["doors"][0]) for event in events(self.out, "saved")]

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in self.out.glob("checkpoint-*"))

    def log(self) -> list[dict[str, Any]]:
        """What the whole training has logged, its speed apart."""
        state = json.loads((self.out / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
        return without_speed(state["log_history"])


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    return {
        "AXOLOTL_DO_NOT_TRACK": "1",
        "HF_HOME": str(tmp_path_factory.mktemp("hub")),
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
    }


@pytest.fixture(scope="module")
def launcher(environment: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    with pytest.MonkeyPatch.context() as variables:
        for name, value in environment.items():
            variables.setenv(name, value)
        started = Launcher(tmp_path_factory.mktemp("processes"), "--axolotl")
    yield started
    started.close()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inputs")


@pytest.fixture
def runs(tmp_path: Path, launcher: Launcher, inputs: Path) -> Iterator[Runs]:
    made = Runs(tmp_path, launcher, inputs)
    yield made
    for process in made.started:
        if process.code is None:
            process.send(signal.SIGKILL)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"holdfast": {"save_minuts": 5}}, "holdfast.save_minuts: unknown key, did you mean 'save_minutes'?"),
        ({"holdfast": {"save_minutes": 0}}, "holdfast.save_minutes: must be greater than 0, found 0"),
        ({"holdfast": {"on_stop": "return"}}, "holdfast.on_stop: unknown key"),
        ({"holdfast": "yes"}, "holdfast: expected keys and values, found 'yes'"),
        (
            {"dynamic_checkpoint": {"enabled": True, "chek_interval": 5}},
            "dynamic_checkpoint.chek_interval: unknown key, did you mean 'check_interval'?",
        ),
        ({"dynamic_checkpoint": {"trigger_file_path": "a/b"}}, "dynamic_checkpoint.trigger_file_path: 'a/b' is not"),
        ({"use_ray": True}, "use_ray: true trains in workers of Ray, where this version was never run"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_named_in_a_line_before_anything_is_made(
    runs: Runs, changes: dict[str, Any], line: str
) -> None:
    process = runs.start(**changes)
    assert process.wait(60) == 1
    assert any(f"Error: {line}" in said for said in process.output.splitlines()), process.output
    assert not runs.out.exists()


def test_the_trigger_file_is_looked_at_every_ten_steps_and_served_by_holdfast_alone(runs: Runs) -> None:
    process = runs.start(7, dynamic_checkpoint={"enabled": True, "keep": 1})
    runs.stands_at(7)
    trigger = runs.out / "axolotl_checkpoint.save"
    trigger.write_text("before the new data")
    runs.go(7)
    assert process.wait(120) == 0, process.output
    assert "to save within 10 steps:  touch out/axolotl_checkpoint.save" in process.output
    assert runs.saved() == [(10, "trigger_file"), (STEPS, "schedule")]
    assert "Saving dynamic checkpoint" not in process.output, "Axolotl's own callback has acted too"
    manifest = json.loads((runs.out / "checkpoint-10" / "MANIFEST.json").read_text())
    assert manifest["reasons"][0]["label"] == "before the new data"
    assert "Training completed!" in process.output and (runs.out / "model.safetensors").exists()


def test_without_its_block_the_trigger_file_is_off_and_all_else_is_there(runs: Runs) -> None:
    settings = {"keep_every": 4, "save_minutes": 600, "staging_memory": "64MB"}
    process = runs.start(6, dynamic_checkpoint=None, save_steps=1, save_total_limit=1, holdfast=settings)
    runs.stands_at(6)
    (runs.out / "axolotl_checkpoint.save").touch()
    asked = runs.launcher.start("save", "out", "--wait", "--label", "mine", cwd=runs.folder)
    assert asked.wait(60) == 0, asked.output
    runs.go(6)
    assert process.wait(120) == 0, process.output
    assert (runs.out / "axolotl_checkpoint.save").exists() and "touch out/" not in process.output
    assert runs.checkpoints() == ["checkpoint-12", "checkpoint-4", "checkpoint-6", "checkpoint-8"]


def test_its_choice_of_a_checkpoint_is_ours_which_verifies(runs: Runs) -> None:
    runs.start(3, 5)
    runs.stands_at(3)
    assert runs.launcher.start("save", "out", "--wait", cwd=runs.folder).wait(60) == 0
    runs.go(3)
    runs.stop(5)
    weights = runs.out / "checkpoint-5" / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-5] ^= 1
    weights.write_bytes(damaged)

    again = runs.start(4)
    runs.stop(4)
    assert "resumed from out/checkpoint-3: step 3" in again.output, again.output
    assert "checkpoint-5" in again.output and "skipped" in again.output

    named = runs.start(auto_resume_from_checkpoints=None, resume_from_checkpoint="out/checkpoint-3")
    assert named.wait(120) == 0, named.output
    assert "out/checkpoint-3: step 3" in named.output
    assert "Restored total_tokens" in named.output, "Axolotl reads its counts itself, where it knows the path"

    refused = runs.start(auto_resume_from_checkpoints=None, resume_from_checkpoint="out/superseded-5")
    assert refused.wait(120) == 1, refused.output


def test_its_evaluations_and_counts_are_those_of_a_training_that_was_never_stopped(runs: Runs) -> None:
    evaluated = {"val_set_size": 0.2, "eval_steps": 4}
    assert runs.start(alone=True, **evaluated).wait(120) == 0, runs.started[-1].output
    alone, left = runs.log(), (runs.out / "model.safetensors").read_bytes()
    assert any("eval_loss" in line for line in alone) and alone[-2]["tokens/total"]
    runs.out.rename(runs.folder / "alone")

    runs.start(5, **evaluated)
    runs.stop(5)
    runs.start(8, **evaluated)
    runs.stop(8)
    last = runs.start(**evaluated)
    assert last.wait(120) == 0, last.output
    assert (runs.out / "model.safetensors").read_bytes() == left
    assert runs.log() == alone


def test_a_run_whose_disk_is_gone_goes_on_from_the_mirror_of_the_holdfast_block(runs: Runs) -> None:
    evaluated = {"val_set_size": 0.2, "eval_steps": 4, "save_steps": 2, "save_total_limit": 1}
    assert runs.start(alone=True, **evaluated).wait(120) == 0, runs.started[-1].output
    alone, left = runs.log(), (runs.out / "model.safetensors").read_bytes()
    runs.out.rename(runs.folder / "alone")

    mirrored = {**evaluated, "holdfast": {"mirror": (runs.folder / "mirror").as_uri()}}
    process = runs.start(7, **mirrored)
    runs.stands_at(7)
    wait_until(lambda: any(event["step"] == 6 for event in events(runs.out, "mirrored")), 60)
    process.send(signal.SIGKILL)
    process.wait()
    shutil.rmtree(runs.out)
    last = runs.start(**mirrored)
    assert last.wait(120) == 0, last.output
    assert "going on from step 6" in last.output and f"mirrored up to step {STEPS} (" in last.output, last.output
    assert (runs.out / "model.safetensors").read_bytes() == left
    assert runs.log() == alone


def test_ctrl_c_in_the_terminal_of_its_own_command_saves_and_leaves_no_finished_model(
    runs: Runs, environment: Mapping[str, str]
) -> None:
    runs.configure()
    with (runs.folder / "output.txt").open("w") as output:
        command = subprocess.Popen(
            [BIN / "axolotl", "train", "config.yml", "--launcher", "python"],
            cwd=runs.folder,
            env={**os.environ, **environment, "FIELD_HOLDS": "3", "PYTHONPATH": environment["PYTHONPATH"]},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    hold = runs.folder / "config.yml.at-3"
    wait_until(lambda: list(runs.folder.glob("*.at-3")) or command.poll() is not None, 300, str(hold))
    os.killpg(command.pid, signal.SIGINT)
    wait_until(lambda: runs.saved(), 60, "the save")
    for at in runs.folder.glob("*.at-3"):
        at.with_name(at.name.replace("at-3", "go-3")).touch()
    code, said = command.wait(120), (runs.folder / "output.txt").read_text()
    assert code == 75, said
    assert runs.saved() == [(3, "signal")] and "Training completed!" not in said
    left = (runs.out / "model.safetensors").read_bytes()
    assert left == (runs.out / "checkpoint-3" / "model.safetensors").read_bytes()


def test_a_drill_of_its_own_command_is_exact(runs: Runs, environment: Mapping[str, str]) -> None:
    runs.configure(auto_resume_from_checkpoints=None, max_steps=1000)
    drill = [sys.executable, "-m", "holdfast", "drill", "--json", "--steps", "8"]
    ended = subprocess.run(
        [*drill, "--", BIN / "axolotl", "train", "config.yml", "--launcher", "python"],
        cwd=runs.folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    findings = json.loads(ended.stdout)
    assert findings["exact"] and findings["in_time"] and findings["resumed_at"] >= 4
    assert not runs.out.exists(), "it writes into the drill's directory alone"
