"""A plain loop in real processes: saves while it stands still, stops, and kills at any instant."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.loops import train
from helpers.trainings import Launcher, Process, answers, events
from helpers.waiting import wait_until
from holdfast.layouts.layout import NATIVE
from holdfast.log import RunLog
from holdfast.resume.choose import select_checkpoint

# Stands still in one place after the step 3, until there is a file "go".
STALLS = """
import sys, time
from pathlib import Path
import torch
sys.path.insert(0, TESTS)
from helpers.loops import Loop

def stall(kind):
    if sys.argv[1] == kind and loop.ckpt.step_count >= 3:
        Path("stalled").touch()
        while not Path("go").exists():
            time.sleep(0.01)

class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()
    @staticmethod
    def backward(ctx, grad):
        stall("backward")
        return grad

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 400
    def __getitem__(self, index):
        if index == 32:
            stall("data")
        return torch.full((8,), float(index)) / 400, torch.zeros(1)

data = torch.utils.data.DataLoader(Rows(), batch_size=8)
loop = Loop(Path("run"), data=data, stop_grace_seconds=float(sys.argv[2]))
loop.model[0].register_forward_pre_hook(lambda *given: stall("forward"))
loop.model[0].register_forward_hook(lambda module, given, out: Backward.apply(out))
with loop.ckpt:
    for batch in loop.ckpt.batches(until=100_000):
        stall("evaluation")
        loop.update(batch)
"""


def start(launcher: Launcher, folder: Path, kind: str, grace: float = 25.0) -> Process:
    program = STALLS.replace("TESTS", repr(str(Path(__file__).parents[1])))
    process = launcher.start(kind, str(grace), cwd=folder, program=program)
    wait_until(lambda: (folder / "stalled").exists() or process.code is not None, 60, process.output)
    return process


def ask_by(door: str, process: Process, folder: Path, launcher: Launcher) -> None:
    if door == "signal":
        process.send(signal.SIGUSR1)
    elif door == "trigger_file":
        (folder / "run" / "axolotl_checkpoint.save").touch()
    else:
        launcher.start("save", "run", cwd=folder)


@pytest.mark.parametrize(
    ("kind", "door"),
    [
        ("forward", "signal"),
        ("forward", "command"),
        ("backward", "trigger_file"),
        ("evaluation", "signal"),
        ("evaluation", "trigger_file"),
        ("data", "command"),
        ("data", "signal"),
    ],
)
def test_a_save_is_durable_while_training_stands_still(
    launcher: Launcher, tmp_path: Path, kind: str, door: str
) -> None:
    process = start(launcher, tmp_path, kind)
    asked = time.time()
    ask_by(door, process, tmp_path, launcher)
    (saved,) = wait_until(lambda: events(tmp_path / "run", "saved"), 20, process.output)
    assert not (tmp_path / "go").exists() and saved["doors"] == [door]
    print(f"{kind}, {door}: durable {saved['at'] - asked:.3f} s after it was asked for")
    status = json.loads((tmp_path / "run" / ".holdfast" / "status.json").read_text())
    assert saved["step"] == status["step"] >= 3
    (tmp_path / "go").touch()
    process.send(signal.SIGTERM)
    assert process.wait() == 75
    assert all(answer["saved"] for answer in answers(tmp_path / "run").values())


@pytest.mark.parametrize("kind", ["forward", "backward", "evaluation", "data"])
def test_fault_31_a_stop_is_over_within_its_grace_though_the_loop_never_comes_back(
    launcher: Launcher, tmp_path: Path, kind: str
) -> None:
    """SIGTERM while forward, backward, an evaluation, or the data never returns."""
    process = start(launcher, tmp_path, kind, grace=1.5)
    process.send(signal.SIGTERM)
    assert process.wait(15) == 75, process.output
    (saved,) = events(tmp_path / "run", "saved")
    assert saved["step"] >= 3 and events(tmp_path / "run", "end")[-1]["code"] == 75


WITH_WORKERS = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, TESTS)
from helpers.loops import Loop
loop = Loop(Path("run"), workers=2)
with loop.ckpt:
    for batch in loop.ckpt.batches(until=100_000):
        loop.update(batch)
print("not reached")
"""


def test_fault_30_a_stop_that_kills_the_data_workers_first_is_a_stop_like_any_other(
    launcher: Launcher, tmp_path: Path
) -> None:
    """SIGTERM to the whole process group of a loop with data workers."""
    program = WITH_WORKERS.replace("TESTS", repr(str(Path(__file__).parents[1])))
    process = launcher.start(cwd=tmp_path, program=program)
    status = tmp_path / "run" / ".holdfast" / "status.json"
    wait_until(lambda: status.exists() and json.loads(status.read_text())["step"] >= 5, 60, process.output)
    os.killpg(process.pid, signal.SIGTERM)  # as torchrun does: everybody at once
    assert process.wait() == 75, process.output
    (saved,) = events(tmp_path / "run", "saved")
    assert saved["doors"] == ["signal"] and "not reached" not in process.output


def newest(run: Path) -> int:
    chosen = select_checkpoint(run, "auto", NATIVE, RunLog(lambda text: None))
    return -1 if chosen is None or chosen.manifest is None else chosen.manifest.step


KILLS = 200 if os.environ.get("HOLDFAST_FULL") else 20


@pytest.mark.timeout(10 * KILLS)
def test_fault_01_20_kills_in_the_middle_of_saves_lose_nothing_that_was_answered(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """SIGKILL at random times of a training that saves every second step and is started again and again."""
    record_property("injected", KILLS)
    run, chance, resumed = tmp_path / "run", random.Random(3), 0
    for _ in range(KILLS):
        child = os.fork()
        if child == 0:
            try:
                train(run, 100_000, save_steps=2, save_total_limit=3)
            finally:
                os._exit(1)
        had = len(events(run, "start"))
        wait_until(lambda had=had: len(events(run, "start")) > had, 60, "a start")  # type: ignore[misc]
        wait = time.monotonic() + chance.uniform(0.0, 0.5)
        wait_until(lambda wait=wait: time.monotonic() > wait)  # type: ignore[misc]
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        answered: list[dict[str, Any]] = events(run, "saved")
        last = answered[-1]["step"] if answered else -1
        assert newest(run) >= last, "a checkpoint that was answered is gone"
        resumed += last > 0
    assert resumed > KILLS // 2, "hardly anything was saved, so hardly anything was tried"
    whole = train(tmp_path / "whole", newest(run) + 3)
    assert train(run, newest(run) + 3).digest() == whole.digest()
