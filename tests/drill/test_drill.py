"""`holdfast drill`: rehearsals of real trainings, with the faults that it exists to find."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import helpers
from helpers.full import in_full
from helpers.waiting import wait_until

FORKING = Path(helpers.__file__).with_name("forking.py")
PRELUDE = """
import sys, time, torch
from holdfast import Checkpointer
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.2), torch.nn.Linear(4, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
rows = torch.utils.data.TensorDataset(torch.randn(24, 4))
loader = torch.utils.data.DataLoader(rows, batch_size=4, shuffle=True)
def update(x, extra=0.0):
    loss = model(x).square().mean() + extra
    loss.backward(); optimizer.step(); optimizer.zero_grad()
    return loss
"""
EXACT = """
with Checkpointer("own", model=model, optimizer=optimizer, data=loader) as ckpt:
    for (x,) in ckpt.batches(until=1000):
        ckpt.step(loss=update(x))
open("after", "w")
"""

Drill = Callable[..., "tuple[int, dict[str, Any], str]"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("drill") / "socket"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, FORKING, "serve", path], stdout=subprocess.PIPE, env=environment, text=True
    ) as serving:
        assert serving.stdout and serving.stdout.readline() == "serving\n"
        yield path
        serving.kill()


@pytest.fixture
def drill(server: Path, tmp_path: Path) -> Drill:
    """Runs `holdfast drill OPTIONS --json -- PROGRAM` in `tmp_path`; gives exit code, object and standard error."""

    def run(program: str, *options: str) -> tuple[int, dict[str, Any], str]:
        script = tmp_path / "script.py"
        script.write_text(PRELUDE + program)
        scratch = tmp_path / "scratch"
        scratch.mkdir(exist_ok=True)
        ended = subprocess.run(
            [
                sys.executable,
                "-m",
                "holdfast",
                "drill",
                *options,
                "--json",
                "--",
                sys.executable,
                "-S",
                FORKING,
                server,
                script,
            ],
            cwd=tmp_path,
            env={**os.environ, "TMPDIR": str(scratch)},
            capture_output=True,
            text=True,
            check=False,
        )
        return ended.returncode, json.loads(ended.stdout), ended.stderr

    return run


def test_a_training_that_resumes_exactly_passes_and_leaves_nothing(drill: Drill, tmp_path: Path) -> None:
    code, found, _ = drill(EXACT, "--steps", "12")
    assert code == 0 and found["exact"] and found["in_time"] and found["deterministic"]
    assert found["first_difference"] is None and found["save"]["saved"] and found["ranks"] == 1
    assert 6 <= found["resumed_at"] < 12 and found["seconds_to_exit"] < found["grace"]
    # Neither its own directory, nor what it does after training, nor anything of the drill.
    assert {path.name for path in tmp_path.iterdir()} == {"script.py", "scratch"}
    assert not list((tmp_path / "scratch").iterdir())


def test_a_training_that_does_not_repeat_itself_is_told_so(drill: Drill) -> None:
    code, found, _ = drill("torch.seed()\n" + EXACT, "--steps", "8")
    assert code == 6 and not found["deterministic"] and not found["exact"]
    assert found["first_difference"]["step"] == 1 and "loss" in found["first_difference"]["parts"]


def test_generators_that_nobody_seeds_and_nobody_uses_are_no_difference(drill: Drill) -> None:
    code, found, _ = drill("import random, numpy\nrandom.seed(); numpy.random.seed()\n" + EXACT, "--steps", "8")
    assert code == 0 and found["exact"]


def test_state_that_is_in_no_part_is_found(drill: Drill) -> None:
    program = """
moving = [0.0]  # a number that a loop keeps for itself
with Checkpointer("own", model=model, optimizer=optimizer, data=loader) as ckpt:
    for (x,) in ckpt.batches(until=1000):
        ckpt.step(loss=update(x, moving[0]))
        moving[0] += 1.0
"""
    code, found, _ = drill(program, "--steps", "10")
    assert code == 1 and found["deterministic"] and not found["exact"] and found["in_time"]
    assert found["first_difference"] == {"step": found["resumed_at"] + 1, "rank": 0, "parts": ["loss"]}


def test_a_training_that_leaves_too_late_fails(drill: Drill) -> None:
    program = EXACT.replace("loader) as", 'loader, on_stop="return") as').replace("open(", "time.sleep(1.2)\nopen(")
    code, found, _ = drill(program, "--steps", "8", "--grace", "1")
    assert code == 1 and found["exact"] and not found["in_time"] and found["seconds_to_exit"] > 1


def test_a_program_that_never_opens_holdfast_is_told_so(drill: Drill) -> None:
    code, found, _ = drill("print('trained without')")
    assert code == 2 and "never opened Holdfast" in found["error"] and "trained without" in found["error"]
    assert "attach" in found["hint"]


def test_a_program_that_fails_shows_its_words(drill: Drill) -> None:
    code, found, _ = drill(EXACT.replace("ckpt.step(", "assert ckpt.step_count < 3, 'too hot'\n        ckpt.step("))
    assert code == 1 and "at step 3" in found["error"] and "too hot" in found["error"]


def test_a_training_that_is_shorter_is_rehearsed_as_far_as_it_goes(drill: Drill) -> None:
    code, found, _ = drill(EXACT.replace("1000", "9"))
    assert (code, found["steps"]) == (0, 9), found


def test_ctrl_c_ends_ranks_that_a_launcher_has_given_sessions_of_their_own(tmp_path: Path) -> None:
    launcher = "echo $$ >shell; setsid sh -c 'echo $$ >rank.new; mv rank.new rank; exec sleep 600' & wait"
    command = [sys.executable, "-m", "holdfast", "drill", "--", "sh", "-c", launcher]
    with subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=subprocess.DEVNULL
    ) as drilling:
        wait_until(lambda: (tmp_path / "rank").exists())
        started = [psutil.Process(int((tmp_path / name).read_text())) for name in ("shell", "rank")]
        drilling.send_signal(signal.SIGINT)
        assert drilling.wait(60) == 130
    gone, alive = psutil.wait_procs(started, 10)
    for process in alive:
        process.kill()
    assert len(gone) == 2


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--steps", "4"), "--steps: a drill needs 5 steps"),
        (("--steps", "10", "--kill-at", "8"), "--kill-at: 8 is not between 1 and 6"),
        (("--kill-at", "0"), "--kill-at: 0 is not between 1 and 16"),
    ],
)
def test_options_that_leave_no_room_are_refused(drill: Drill, options: tuple[str, ...], problem: str) -> None:
    code, found, _ = drill(EXACT, *options)
    assert code == 2 and problem in found["error"]


def test_no_command_and_a_command_that_is_not_there(tmp_path: Path) -> None:
    holdfast = [sys.executable, "-m", "holdfast", "drill"]
    none = subprocess.run(holdfast, capture_output=True, text=True, check=False)
    assert none.returncode == 2 and "no command" in none.stderr
    absent = subprocess.run([*holdfast, "--", "./nowhere"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert absent.returncode == 2 and "./nowhere" in absent.stderr


@in_full("drills of one process stay, and ranks/ has what ranks do when they are stopped and resumed")
def test_ranks_under_torchrun_are_rehearsed_together(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        PRELUDE
        + """
import torch.distributed as dist
dist.init_process_group("gloo")
# Buffers that each rank moves by its own batches, and that are seen to differ at a save.
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Sequential(torch.nn.BatchNorm1d(4, affine=False), model))
torch.manual_seed(dist.get_rank())
loader = torch.utils.data.DataLoader(rows, batch_size=4, sampler=torch.utils.data.DistributedSampler(rows))
"""
        + EXACT.replace("data=loader", "data=loader, save_steps=3")
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "script.py"]
    holdfast = [sys.executable, "-m", "holdfast", "drill", "--steps", "8", "--json", "--", *torchrun]
    ended = subprocess.run(holdfast, cwd=tmp_path, capture_output=True, text=True, check=False)
    found = json.loads(ended.stdout)
    assert ended.returncode == 0 and found["exact"] and found["in_time"] and found["ranks"] == 2


AVERAGE = """
class Average(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.aside = torch.nn.Linear(4, 1), [torch.zeros(1, 4)]
    def forward(self, x):
        return self.fc(x) - x @ self.aside[0].T
model = Average()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with Checkpointer("own", model=model, optimizer=optimizer, data=loader) as ckpt:
    for (x,) in ckpt.batches(until=1000):
        loss = update(x)
        model.aside[0].mul_(0.9).add_(model.fc.weight.detach())
        ckpt.step(loss=loss)
"""
INNER = (
    """
class Slow(torch.optim.Optimizer):  # an optimizer around another, which alone says what it keeps
    def __init__(self, inner):
        self.inner, self.slow, self.taken = inner, [p.detach().clone() for p in model.parameters()], 0
        self.param_groups, self.state, self.defaults = inner.param_groups, inner.state, inner.defaults
    def step(self, closure=None):
        self.inner.step()
        self.taken += 1
        if self.taken % 3 == 0:
            for slow, p in zip(self.slow, model.parameters()):
                slow.add_(p.detach() - slow, alpha=0.5)
                p.data.copy_(slow)
    def zero_grad(self, set_to_none=True):
        self.inner.zero_grad(set_to_none)
    def state_dict(self):
        return {"inner": self.inner.state_dict(), "slow": self.slow, "taken": self.taken}
    def load_state_dict(self, state):
        self.inner.load_state_dict(state["inner"])
        self.slow, self.taken = [t.clone() for t in state["slow"]], state["taken"]
optimizer = Slow(optimizer)
"""
    + EXACT
)
GRADIENTS = """
with Checkpointer("own", model=model, optimizer=optimizer, data=loader) as ckpt:
    for (x,) in ckpt.batches(until=1000):
        loss = model(x).square().mean()
        loss.backward(); optimizer.step()  # and never zero_grad
        ckpt.step(loss=loss)
"""
SAMPLER = (
    """
import random
class Shuffled(torch.utils.data.Sampler):
    def __init__(self):
        self.own = random.Random(7)
    def __iter__(self):
        order = list(range(24))
        self.own.shuffle(order)
        return iter(order)
    def __len__(self):
        return 24
loader = torch.utils.data.DataLoader(rows, batch_size=4, sampler=Shuffled())
"""
    + EXACT
)
AHEAD = """
with Checkpointer("own", model=model, optimizer=optimizer, data=loader) as ckpt:
    batches = ckpt.batches(until=1000)
    (ahead,) = next(batches)
    for (following,) in batches:  # one batch is always fetched ahead
        ckpt.step(loss=update(ahead))
        ahead = following
"""
# What each puts back is how it was before: what was saved, or put back, did not have it.
FAULTS = {
    "a tensor in no part": (AVERAGE, "from holdfast.state import outside; outside.Outside.restore = lambda *_: []"),
    "an optimizer's own state": (
        INNER,
        "from holdfast.state import stated_optimizer as s; s.StatedOptimizerPart.restore = lambda *_, strict: []",
    ),
    "gradients over a boundary": (
        GRADIENTS,
        "from holdfast.state import gradients as g; g.Gradients.restore = lambda *_: []",
    ),
    "a generator in a sampler": (SAMPLER, "from holdfast.state.data import inner; inner._walk = lambda data: {}"),
    "a batch that was taken and not used": (
        AHEAD,
        "from holdfast.state.data import lookahead as l; l.Lookahead._unused = lambda self: 0",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_is_put_back_is_found(drill: Drill, fault: str) -> None:
    program, putting_it_back = FAULTS[fault]
    code, found, _ = drill(program, "--steps", "14")
    assert (code, found["exact"]) == (0, True), found
    code, found, _ = drill(putting_it_back + program, "--steps", "14")
    assert (code, found["deterministic"], found["exact"]) == (1, True, False), found
    assert found["first_difference"]["step"] > found["resumed_at"]
