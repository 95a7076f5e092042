"""Stops as they really arrive: from torchrun, from a scheduler that signals everything, after a launcher's death."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from helpers.full import FULL, in_full
from helpers.support import holdfast
from helpers.trainings import Launcher, Process, events
from helpers.waiting import wait_until
from ranks.conftest import Ranks, free_port

# What a launcher leaves its ranks, and what a stop may take.
GRACE = 25.0

SLOW = pytest.mark.skipif(
    not os.environ.get("HOLDFAST_FAULTS"), reason="each start takes seconds: HOLDFAST_FAULTS=1, make test-faults"
)

# A user's script. Its arguments: how many data workers, and the grace.
SCRIPT = """
import os, signal, sys, time
from pathlib import Path
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler
from holdfast import Checkpointer

if "OWN_HANDLER" in os.environ:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(os.environ["OWN_HANDLER"])))
rank, workers, grace = int(os.environ.get("RANK", 0)), int(sys.argv[1]), float(sys.argv[2])
torch.manual_seed(7)
rows = torch.randn(4000, 4)
model, sampler = torch.nn.Linear(4, 1), None
if "RANK" in os.environ:
    dist.init_process_group("gloo")
    model, sampler = DistributedDataParallel(model), DistributedSampler(rows)
optimizer = torch.optim.AdamW(model.parameters())
data = DataLoader(rows, batch_size=2, sampler=sampler, num_workers=workers)
try:
    with Checkpointer("run", model=model, optimizer=optimizer, data=data, stop_grace_seconds=grace) as checkpointer:
        for batch in checkpointer.batches(until=1_000_000):
            model(batch).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            checkpointer.step()
            if not Path(f"pid-{rank}").exists():
                Path(f"new-{rank}").write_text(str(os.getpid()))
                Path(f"new-{rank}").rename(f"pid-{rank}")
            time.sleep(0.01)
except SystemExit as end:
    Path(f"code-{rank}").write_text(str(end.code))
    raise
"""
TORCHRUN = "import sys; from torch.distributed.run import main; main(sys.argv[1:])"
ACCELERATE = "from accelerate.commands.launch import main; main()"


@dataclass
class Folder:
    """Where trainings of two ranks are started one after the other."""

    path: Path
    launcher: Launcher
    started: list[Process] = field(default_factory=list)

    @property
    def run(self) -> Path:
        return self.path / "run"

    def torchrun(self, *, workers: int = 0, grace: float = GRACE) -> Process:
        """Starts a training, and returns when both ranks have taken a step."""
        options = ("--standalone", "--nproc-per-node", "2", "train.py", str(workers), str(grace))
        self._clear()
        agent = self.launcher.start(*options, cwd=self.path, program=TORCHRUN)
        self._wait_for_a_step([agent])
        return agent

    def accelerate(self, *options: str, ranks: int) -> Process:
        """The same by `accelerate launch`."""
        self._clear()
        port = str(free_port())
        given = (
            "--mixed_precision",
            "no",
            "--num_machines",
            "1",
            "--dynamo_backend",
            "no",
            "--main_process_port",
            port,
        )
        launched = self.launcher.start(
            *given, *options, "train.py", "0", str(GRACE), cwd=self.path, program=ACCELERATE, HF_HOME=str(self.path)
        )
        self._wait_for_a_step([launched], ranks)
        return launched

    def srun(self, *, workers: int = 0, **environment: str) -> list[Process]:
        """The same without an agent: every rank is told its place by its environment."""
        self._clear()
        place = {**environment, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        ranks = [
            self.launcher.start(
                str(workers), str(GRACE), cwd=self.path, program=SCRIPT, RANK=str(r), LOCAL_RANK=str(r), **place
            )
            for r in range(2)
        ]
        self._wait_for_a_step(ranks)
        return ranks

    def pid(self, rank: int) -> int:
        return int((self.path / f"pid-{rank}").read_text())

    def codes(self) -> list[str]:
        """What the ranks ended with, those that came back from their loop."""
        return [path.read_text() for path in sorted(self.path.glob("code-[01]"))]

    def end(self) -> None:
        """Ends what may still run."""
        for process in self.started:
            if process.code is None:
                os.killpg(process.pid, signal.SIGKILL)
        for rank in (0, 1):
            with suppress(OSError):  # a session of its own, under torchrun
                os.killpg(self.pid(rank), signal.SIGKILL)

    def _clear(self) -> None:
        (self.path / "train.py").write_text(SCRIPT)
        for left in self.path.glob("*-[01]"):
            left.unlink()

    def _wait_for_a_step(self, processes: list[Process], ranks: int = 2) -> None:
        self.started += processes

        def over() -> bool:
            return any(process.code is not None for process in processes)

        wait_until(lambda: len(list(self.path.glob("pid-[01]"))) == ranks or over(), 120, "a step of all ranks")
        assert not over(), [(process.code, process.output) for process in processes]


@pytest.fixture
def folder(tmp_path: Path, torch_launcher: Launcher) -> Iterator[Folder]:
    made = Folder(tmp_path, torch_launcher)
    yield made
    made.end()


def require_one_good_stop(folder: Folder, since: int, begun: float, output: str) -> int:
    """One checkpoint, on one step, inside the grace, and nothing that looks like an error of ours; how long the
    journal is by now."""
    assert time.monotonic() - begun < GRACE
    journal = events(folder.run)
    (saved,) = [event for event in journal[since:] if event["event"] == "saved"]
    assert saved["doors"] == ["signal"] * len(saved["doors"])
    assert journal[-1]["event"] == "end" and journal[-1]["outcome"] == "stopped"
    assert "site-packages/holdfast" not in output and "src/holdfast" not in output and "FAILED" not in output, output
    return len(journal)


def everything(process: Process) -> list[psutil.Process]:
    """A process and all that it started, and they: ranks and data workers."""
    first = psutil.Process(process.pid)
    with suppress(psutil.NoSuchProcess):  # of what comes and goes
        return [first, *first.children(recursive=True)]
    return []


@pytest.mark.timeout(300)
def test_fault_29_30_every_way_to_stop_saves_once_and_the_next_start_goes_on_from_there(folder: Folder) -> None:
    """Under torchrun: SIGTERM to one rank, to the agent (which signals data workers too), to every process."""
    agent = folder.torchrun()
    begun = time.monotonic()
    os.kill(folder.pid(1), signal.SIGTERM)
    assert agent.wait() == 0, agent.output
    seen = require_one_good_stop(folder, 0, begun, agent.output)
    assert folder.codes() == ["0", "0"], agent.output

    if FULL:  # in the way below, too, the agent hears of it and signals the others
        # The agent signals each rank's session, data workers included.
        agent = folder.torchrun(workers=2)
        assert f"resumed from run/checkpoint-{last_step(folder)}:" in agent.output
        begun = time.monotonic()
        agent.send(signal.SIGTERM)
        assert agent.wait() == 1, "torchrun's own code after its SIGTERM"
        seen = require_one_good_stop(folder, seen, begun, agent.output)
        assert folder.codes() == ["0", "0"], agent.output

    # A scheduler signals everything: ranks and workers hear of it twice.
    agent = folder.torchrun(workers=2)
    assert f"resumed from run/checkpoint-{last_step(folder)}:" in agent.output
    everybody = wait_until(lambda: found if len(found := everything(agent)) == 7 else [])
    begun = time.monotonic()
    for process in everybody:
        with suppress(psutil.NoSuchProcess):  # the agent, which hears of it first, may have ended it
            process.send_signal(signal.SIGTERM)
    assert agent.wait() == 1
    require_one_good_stop(folder, seen, begun, agent.output)
    assert folder.codes() == ["0", "0"], agent.output
    assert holdfast("verify", folder.run).returncode == 0
    assert holdfast("status", folder.run, "--outcome").returncode == 75, "what torchrun's own code does not tell"


def test_a_handler_of_each_rank_that_leaves_is_called_when_all_have_the_save(folder: Folder) -> None:
    """SIGTERM to all ranks: one that left at once would be missing in the update of the others."""
    ranks, begun = folder.srun(OWN_HANDLER="9"), time.monotonic()
    for process in ranks:
        process.send(signal.SIGTERM)
    assert [process.wait() for process in ranks] == [9, 9], ranks[0].output + ranks[1].output
    require_one_good_stop(folder, 0, begun, ranks[0].output + ranks[1].output)
    assert folder.codes() == ["9", "9"]
    assert holdfast("status", folder.run, "--outcome").returncode == 9


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("signalled", "code"),
    [
        pytest.param("all", 1, marks=in_full("torchrun's agent is accelerate's")),
        pytest.param("rank 1", 0, marks=SLOW),
        pytest.param("accelerate", 1, marks=SLOW),
    ],
)
def test_fault_29_30_under_accelerate_with_two_processes_it_is_as_under_torchrun(
    folder: Folder, signalled: str, code: int
) -> None:
    """SIGTERM to every process of `accelerate launch --multi_gpu`, to one rank, to accelerate itself."""
    agent = folder.accelerate("--multi_gpu", "--num_processes", "2", ranks=2)
    hit = {"all": everything(agent), "rank 1": [psutil.Process(folder.pid(1))], "accelerate": everything(agent)[:1]}
    begun = time.monotonic()
    for process in hit[signalled]:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
    assert agent.wait() == code, agent.output
    require_one_good_stop(folder, 0, begun, agent.output)
    assert folder.codes() == ["0", "0"], agent.output


@pytest.mark.timeout(300)
@pytest.mark.parametrize("processes", ["1", pytest.param("2", marks=SLOW)])
def test_fault_29_30_accelerate_on_the_cpu_leaves_its_one_training_behind_which_saves_for_itself(
    folder: Folder, processes: str
) -> None:
    """SIGTERM to `accelerate launch --cpu`, then to its process group, in which the training still is."""
    launched = folder.accelerate("--cpu", "--num_processes", processes, ranks=1)
    launched.send(signal.SIGTERM)
    assert launched.wait() == -signal.SIGTERM
    assert psutil.pid_exists(folder.pid(0)) and not events(folder.run, "request")
    begun = time.monotonic()
    os.killpg(launched.pid, signal.SIGTERM)
    wait_until(lambda: folder.codes() == ["75"], what="the end of the training")
    wait_until(lambda: events(folder.run)[-1]["event"] == "end")
    require_one_good_stop(folder, 0, begun, launched.output)


@SLOW
@pytest.mark.timeout(300)
def test_fault_29_after_a_good_stop_of_its_one_training_accelerate_ends_with_1(folder: Folder) -> None:
    """SIGTERM to the training that `accelerate launch --cpu` has started."""
    launched = folder.accelerate("--cpu", "--num_processes", "1", ranks=1)
    begun = time.monotonic()
    os.kill(folder.pid(0), signal.SIGTERM)
    assert launched.wait() == 1 and folder.codes() == ["75"], launched.output
    require_one_good_stop(folder, 0, begun, launched.output)


def last_step(folder: Folder) -> int:
    step: int = events(folder.run, "saved")[-1]["step"]
    return step


@pytest.mark.parametrize("signalled", [(0, 1), (0,), (1,)], ids=["both", "rank 0", "rank 1"])
def test_fault_29_30_a_signal_that_kills_the_data_workers_of_some_ranks_saves_once_too(
    folder: Folder, signalled: tuple[int, ...]
) -> None:
    """Without an agent: SIGTERM to the whole group of both ranks, of rank 0, of rank 1."""
    ranks = folder.srun(workers=1)
    begun = time.monotonic()
    for rank in signalled:
        os.killpg(ranks[rank].pid, signal.SIGTERM)
    output = [rank.wait() for rank in ranks], "".join(rank.output for rank in ranks)
    assert output[0] == [75, 75], output[1]
    require_one_good_stop(folder, 0, begun, output[1])


@in_full("tests/ranks/test_channel.py of a store that is gone, tests/run/test_lease.py of who is kept out")
@pytest.mark.timeout(200)
def test_fault_42_ranks_that_outlive_their_agent_cannot_save_and_keep_others_out_until_they_end(
    folder: Folder, torch_launcher: Launcher
) -> None:
    """SIGKILL of torchrun's agent; another job is started beside its orphans, and after them."""
    agent = folder.torchrun(grace=1.0)
    agent.send(signal.SIGKILL)
    agent.wait()
    beside = Ranks(folder.path, torch_launcher).start(until=2)
    assert beside.wait() == [1, 1]
    assert len(events(folder.run, "start")) == 1, "the run is still theirs"
    asked = holdfast("save", folder.run, "--wait")
    assert asked.returncode == 1 and "the store of torch.distributed is gone" in asked.stderr, asked.stderr
    for rank in (0, 1):
        os.kill(folder.pid(rank), signal.SIGTERM)
    wait_until(lambda: not any(psutil.pid_exists(folder.pid(rank)) for rank in (0, 1)), 30, "the end of the ranks")
    assert not events(folder.run, "saved")
    after = Ranks(folder.path, torch_launcher).start(until=2)
    assert after.wait() == [0, 0], after.output
