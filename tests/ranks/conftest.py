"""Trainings of several ranks: real processes, each forked from one that has torch imported."""

import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from helpers.trainings import Launcher, Process, answers, events
from helpers.waiting import wait_until


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Job:
    """The processes of one start."""

    processes: list[Process]

    def wait(self, limit: float = 120.0) -> list[int]:
        """The exit codes."""
        return [process.wait(limit) for process in self.processes]

    def digests(self) -> list[str]:
        """What each rank ended with."""
        for process in self.processes:
            assert process.wait(120.0) == 0, process.output
        return [re.findall(r"rank \d ends (\d+ \w+)", process.output)[0] for process in self.processes]

    def kill(self) -> None:
        """SIGKILL for all that still run."""
        for process in self.processes:
            if process.code is None:
                process.send(signal.SIGKILL)
        self.wait()

    @property
    def output(self) -> str:
        """What all ranks said."""
        return "\n".join(process.output for process in self.processes)


@dataclass
class Ranks:
    """Trainings in one run directory, one after the other."""

    folder: Path
    launcher: Launcher
    started: list[Job] = field(default_factory=list)

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def start(
        self, size: int = 2, *, elastic: bool = False, program: str = "", address: str = "127.0.0.1", **orders: Any
    ) -> Job:
        port = str(free_port())
        processes = []
        for rank in range(size):
            env = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "MASTER_ADDR": address,
                "MASTER_PORT": port,
                "LOOP": json.dumps({"run": str(self.run), **orders}),
                **({"TORCHELASTIC_RUN_ID": "test"} if elastic else {}),
            }
            text = f"{program}\nfrom ranks.loop import run\nrun()"
            processes.append(self.launcher.start(cwd=self.folder, program=text, **env))
        job = Job(processes)
        self.started.append(job)
        return job

    def saved(self) -> list[dict[str, Any]]:
        return events(self.run, "saved")

    def answers(self) -> dict[str, dict[str, Any]]:
        return answers(self.run)

    def wait_for_step(self, step: int) -> None:
        wait_until(lambda: self.status().get("step", 0) >= step, 60, f"step {step}")

    def wait_for_events(self, kind: str, count: int) -> None:
        wait_until(lambda: len(events(self.run, kind)) >= count, 60, f"{count} times {kind}")

    def status(self) -> dict[str, Any]:
        path = self.run / ".holdfast" / "status.json"
        try:
            found: dict[str, Any] = json.loads(path.read_text())
        except FileNotFoundError:
            return {}
        return found

    def manifest(self, step: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run / f"checkpoint-{step}" / "MANIFEST.json").read_text())
        return found


@pytest.fixture(scope="session")
def torch_launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    started = Launcher(tmp_path_factory.mktemp("ranks"))
    yield started
    started.close()


@pytest.fixture
def ranks(tmp_path: Path, torch_launcher: Launcher) -> Iterator[Ranks]:
    """Trainings that end with the test, whatever became of them."""
    made = Ranks(tmp_path, torch_launcher)
    yield made
    for job in made.started:
        for process in job.processes:
            if process.code is None:
                os.kill(process.pid, signal.SIGCONT)
        job.kill()
