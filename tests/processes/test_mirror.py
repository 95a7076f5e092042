"""A machine that goes with its disk: real trainings with a mirror, killed, their directory removed, started again."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.full import in_full
from helpers.mirrors import DirectoryMirror
from helpers.object_servers import BUCKET, S3_ENVIRONMENT, free_port, needs
from helpers.trainings import BLOCKED, Launcher, Process, Training, events
from helpers.waiting import wait_until
from processes.test_resume import EXACT, LORA, outcome

# A plain loop that saves every fourth step, one with a label after the third and one in a slot after the sixth; stands
# still after the step in argv.
LOOP = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, TESTS)
from helpers.loops import Loop

stop, settings = int(sys.argv[1]), json.loads(sys.argv[2])
loop = Loop(Path("run"), save_steps=4, say=print, **settings)
with loop.ckpt:
    for batch in loop.ckpt.batches(until=22):
        loop.update(batch)
        if loop.ckpt.step_count == 3:
            loop.ckpt.save("three")
        if loop.ckpt.step_count == 6:
            loop.ckpt.save(slot="best")
        if loop.ckpt.step_count == stop:
            print("stands still", flush=True)
            time.sleep(600)
print("ends with", loop.digest(), "after the loss", loop.losses[-1])
"""

# A Trainer with dropout that is best at its second step; stands still in the evaluation at the step in argv.
TRAINER = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, TESTS)
import torch
from helpers import small_trainer
from transformers import Trainer

class Fit(small_trainer.Fit):
    def forward(self, x, labels):
        return super().forward(torch.nn.functional.dropout(x, 0.2, self.training), labels)

class Worsening(Trainer):
    def evaluate(self, *args, **kwargs):
        metrics = super().evaluate(*args, **kwargs)
        metrics["eval_loss"] = 1.0 if self.state.global_step == 2 else 2.0
        if self.state.global_step == stop:
            print("stands still", flush=True)
            time.sleep(600)
        return metrics

small_trainer.Fit = Fit
stop, settings = int(sys.argv[1]), json.loads(sys.argv[2])
trainer = small_trainer.train(Path("run"), kind=Worsening, eval_strategy="steps", eval_steps=2, save_steps=2,
    save_total_limit=2, load_best_model_at_end=True, max_steps=12, **settings)
trainer.save_model("run")
print("ends with", small_trainer.weights(trainer), Path(trainer.state.best_model_checkpoint).name)
"""


def are_mirrored(run: Path, *steps: int) -> bool:
    return {*steps} <= {event["step"] for event in events(run, "mirrored")}


class Machine:
    """A place where a training runs."""

    def __init__(self, folder: Path, launcher: Launcher, program: str, **settings: Any) -> None:
        folder.mkdir()
        self.folder, self.launcher, self.settings = folder, launcher, settings
        self.program = program.replace("TESTS", repr(str(Path(__file__).parents[1])))
        self.env: dict[str, str] = {}

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def start(self, stop: int = -1) -> Process:
        arguments = (str(stop), json.dumps(self.settings))
        return self.launcher.start(*arguments, cwd=self.folder, program=self.program, **self.env)

    def end(self) -> str:
        """Trains to the end; gives the last line."""
        process = self.start()
        assert process.wait(120) == 0, process.output
        (line,) = (line for line in process.output.splitlines() if line.startswith("ends with"))
        return line

    def train_and_go(self, stop: int, *mirrored: int) -> None:
        """Trains until a step, and until some are in the mirror; then the process is killed, and the disk is gone."""
        process = self.start(stop)
        process.wait_for("stands still")
        wait_until(lambda: are_mirrored(self.run, *mirrored), 60, process.output)
        process.send(signal.SIGKILL)
        process.wait()
        shutil.rmtree(self.folder)


@pytest.fixture
def mirror(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The settings of a mirror, in a directory or in a bucket."""
    if request.param == "file":
        return {"mirror": DirectoryMirror(tmp_path / "mirror").url}
    port = request.getfixturevalue("s3_port")
    return {"mirror": f"s3://{BUCKET}/{tmp_path.name}", "mirror_endpoint": f"http://127.0.0.1:{port}"}


in_a_bucket = needs("moto", "obstore")


@pytest.mark.parametrize(
    "mirror",
    [pytest.param("file", marks=in_full("in a bucket it stays")), pytest.param("s3", marks=in_a_bucket)],
    indirect=True,
)
def test_fault_51_a_loop_whose_disk_is_gone_goes_on_from_the_mirror_and_ends_with_the_same_bits(
    launcher: Launcher, tmp_path: Path, mirror: dict[str, str], record_property: Callable[[str, object], None]
) -> None:
    """SIGKILL to a loop with a mirror, in a directory and in a bucket, and its run directory is removed; twice."""
    record_property("injected", 2)
    whole = Machine(tmp_path / "whole", launcher, LOOP).end()
    first = Machine(tmp_path / "first", launcher, LOOP, **mirror)
    second = Machine(tmp_path / "second", launcher, LOOP, **mirror)
    first.env = second.env = S3_ENVIRONMENT
    first.train_and_go(14, 3, 6, 12)
    process = second.start(stop=17)
    process.wait_for("stands still")
    assert "going on from step 12" in process.output and "took run" in process.output
    for step, key, name in ((3, "label", "three"), (6, "slot", "best")):
        manifest_file = second.run / f"checkpoint-{step}" / "MANIFEST.json"
        wait_until(manifest_file.exists, 60, process.output)
        manifest = json.loads(manifest_file.read_text())
        assert manifest["reasons"][0][key] == name, process.output
    wait_until(lambda: are_mirrored(second.run, 16), 60, process.output)
    process.send(signal.SIGKILL)
    process.wait()
    third = Machine(tmp_path / "third", launcher, LOOP, **mirror)
    third.env = S3_ENVIRONMENT
    assert third.end() == whole
    assert {path.name for path in third.run.glob("checkpoint-*")} >= {"checkpoint-16", "checkpoint-20"}
    back = second.start()  # a machine that was given up comes back with its disk: nothing is trained twice
    assert back.wait() == 0 and "pulled checkpoint-20" in back.output and whole in back.output, back.output


@pytest.mark.parametrize(
    "mirror",
    ["file", pytest.param("s3", marks=[in_a_bucket, in_full("in a directory it stays")])],
    indirect=True,
)
def test_fault_51_a_trainer_whose_disk_is_gone_ends_with_the_same_model_and_loads_the_same_best(
    launcher: Launcher, tmp_path: Path, mirror: dict[str, str]
) -> None:
    """SIGKILL to a Trainer with a mirror, in a directory and in a bucket, and its output_dir is removed."""
    whole = Machine(tmp_path / "whole", launcher, TRAINER)
    expected = whole.end()
    assert expected.endswith("checkpoint-2")
    first = Machine(tmp_path / "first", launcher, TRAINER, **mirror)
    second = Machine(tmp_path / "second", launcher, TRAINER, **mirror)
    first.env = second.env = S3_ENVIRONMENT
    first.train_and_go(10, 2, 8)
    assert second.end() == expected
    for name in ("model.safetensors", "checkpoint-2/model.safetensors", "checkpoint-12/model.safetensors"):
        assert (second.run / name).read_bytes() == (whole.run / name).read_bytes(), name


def test_where_the_loop_does_not_come_back_from_a_stop_the_last_line_says_what_is_where(
    launcher: Launcher, tmp_path: Path
) -> None:
    mirror = DirectoryMirror(tmp_path / "mirror")
    machine = Machine(tmp_path / "machine", launcher, LOOP, mirror=mirror.url, stop_grace_seconds=5)
    process = machine.start(stop=5)
    process.wait_for("stands still")
    wait_until(lambda: are_mirrored(machine.run, 3, 4), 60, process.output)
    mirror.path.rename(tmp_path / "away")
    process.send(signal.SIGTERM)
    assert process.wait() == 75, process.output
    assert "the loop did not end within 5 s of the stop; leaving after a good save" in process.output
    last = process.output.splitlines()[-1]
    assert last == "mirrored up to step 4; 5 is on this disk only: holdfast push run sends it"


@in_full("one of a single process stays, and two ranks of a plain loop do")
def test_a_trainer_of_two_ranks_whose_disk_is_gone_ends_with_the_same_model_and_loads_the_same_best(
    launcher: Launcher, tmp_path: Path
) -> None:
    def started(machine: Machine, stop: int = -1) -> list[Process]:
        port, processes = str(free_port()), []
        for rank in ("0", "1"):
            machine.env = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}
            machine.env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            processes.append(machine.start(stop))
        return processes

    def ended(machine: Machine) -> str:
        processes = started(machine)
        assert [process.wait(120) for process in processes] == [0, 0], processes[0].output
        (line,) = (line for line in processes[0].output.splitlines() if line.startswith("ends with"))
        return line

    whole = Machine(tmp_path / "whole", launcher, TRAINER, ddp_backend="gloo")
    expected = ended(whole)
    mirror = DirectoryMirror(tmp_path / "mirror").url
    first, second = (
        Machine(tmp_path / name, launcher, TRAINER, mirror=mirror, ddp_backend="gloo") for name in ("first", "second")
    )
    killed = started(first, stop=10)
    killed[0].wait_for("stands still")
    wait_until(lambda: are_mirrored(first.run, 2, 8), 60, killed[0].output)
    for process in killed:
        process.send(signal.SIGKILL)
        process.wait()
    shutil.rmtree(first.folder)
    assert ended(second) == expected
    for name in ("model.safetensors", "checkpoint-2/model.safetensors", "checkpoint-12/model.safetensors"):
        assert (second.run / name).read_bytes() == (whole.run / name).read_bytes(), name


@in_full("a Trainer with a mirror stays")
def test_a_training_of_a_yaml_file_whose_disk_is_gone_ends_with_the_same_weights_and_the_same_log(
    training: Training, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        **EXACT,
        **LORA,
        "max_steps": 24,
        "eval_steps": 4,
        "save_steps": 4,
        "save_total_limit": 1,
    }
    whole = Training(tmp_path / "whole", training.launcher, training.config)
    whole.folder.mkdir()
    assert whole.start(**settings).wait(120) == 0
    settings |= {"mirror": DirectoryMirror(tmp_path / "mirror").url, "mirror_keep": 1}
    process = training.start(program=BLOCKED, block_at=10, **settings)
    wait_until(lambda: are_mirrored(training.run, 8), 60, process.output)
    process.send(signal.SIGKILL)
    process.wait()
    shutil.rmtree(training.run)
    process = training.start("--resume", "auto", **settings)
    assert process.wait(120) == 0, process.output
    assert "going on from step 8" in process.output and "mirrored up to step 24 (" in process.output, process.output
    assert outcome(training.run) == outcome(whole.run)


def test_fault_52_what_a_killed_training_had_queued_is_sent_by_the_next(launcher: Launcher, tmp_path: Path) -> None:
    """The directory of the mirror is moved away; SIGKILL to the training while nothing can be sent."""
    mirror = DirectoryMirror(tmp_path / "mirror")
    machine = Machine(tmp_path / "machine", launcher, LOOP, mirror=mirror.url)
    process = machine.start(stop=14)
    process.wait_for("to look at it")  # its start is over, and looks for nothing there any more
    away = mirror.path.rename(tmp_path / "away")
    process.wait_for("stands still")
    process.wait_for("nothing can be sent")
    process.wait_for("checkpoint saved step=12")
    process.send(signal.SIGKILL)
    process.wait()
    away.rename(mirror.path)
    process = machine.start()
    assert process.wait(120) == 0, process.output
    steps = [event["step"] for event in events(machine.run, "mirrored")]
    assert {3, 6, 20} <= {*steps} and f"mirrored up to step 20 ({mirror.url})" in process.output
    assert len(steps) == len({*steps})
