"""Whole trainings for tests: real `holdfast` processes that start at once, and what they leave behind."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from helpers.waiting import wait_until

# A training that stands still in the forward pass after the step BLOCK_AT, until there is a file "go".
BLOCKED = """
import os, time
from pathlib import Path
from trl import SFTTrainer
original = SFTTrainer.training_step
def blocked(self, *args, **kwargs):
    while self.state.global_step >= int(os.environ["BLOCK_AT"]) and not Path("go").exists():
        time.sleep(0.01)
    return original(self, *args, **kwargs)
SFTTrainer.training_step = blocked
from holdfast.cli.app import main
main()
"""

# A training whose files may not grow beyond 20 kB from its first step on, so that no checkpoint can be written.
SAVE_THAT_FAILS = """
import resource
from trl import SFTTrainer
original = SFTTrainer.training_step
def limited(self, *args, **kwargs):
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    return original(self, *args, **kwargs)
SFTTrainer.training_step = limited
from holdfast.cli.app import main
main()
"""


@dataclass
class Process:
    """A real process that runs `holdfast` with its own session, output file and signals."""

    pid: int
    output_file: Path

    @property
    def output(self) -> str:
        return self.output_file.read_text() if self.output_file.exists() else ""

    @property
    def code(self) -> int | None:
        """The exit code; negative for a signal that ended it; None while it runs."""
        ended = self.output_file.with_suffix(".code")
        return int(ended.read_text()) if ended.exists() else None

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait_for(self, text: str, limit: float = 60.0) -> None:
        def said() -> bool:
            if text not in self.output and self.code is not None:
                raise AssertionError(f"ended with {self.code} before it said {text!r}:\n{self.output}")
            return text in self.output

        wait_until(said, limit, f"{text!r} in the output of {self.pid}:\n{self.output}")

    def wait(self, limit: float = 60.0) -> int:
        wait_until(lambda: self.code is not None, limit, f"the end of {self.pid}:\n{self.output}")
        assert self.code is not None
        return self.code


class Launcher:
    """Starts `holdfast` in processes forked from one that has imported torch already, or the trainers (10 s, once)."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._folder = folder
        self._count = 0
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("preloaded.py")), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"},
        )

    def start(self, *argv: str | Path, cwd: Path, program: str | None = None, **env: str) -> Process:
        """Starts `holdfast ARGV`, or `program`, Python text that finds the arguments in `sys.argv`."""
        assert self._server.stdin and self._server.stdout
        self._count += 1
        output = self._folder / f"process-{self._count}.txt"
        job: dict[str, Any] = {"argv": [str(a) for a in argv], "cwd": str(cwd), "output": str(output), "env": env}
        self._server.stdin.write(json.dumps({**job, "program": program}) + "\n")
        self._server.stdin.flush()
        return Process(int(self._server.stdout.readline()), output)

    def close(self) -> None:
        assert self._server.stdin and self._server.stdout
        # Not only the pipe's end: a data worker that a test has forked and that lives a little longer has it open too.
        self._server.stdin.write("\n")
        self._server.stdin.close()
        self._server.wait(30)
        self._server.stdout.close()


def events(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The journal of a run, or its events of one kind."""
    journal = run / "events.jsonl"
    lines = journal.read_text().splitlines() if journal.exists() else []
    return [event for line in lines if (event := json.loads(line)) and kind in (None, event["event"])]


def answers(run: Path) -> dict[str, dict[str, Any]]:
    """All answers of a run, by the request's id."""
    found = [json.loads(path.read_text()) for path in (run / ".holdfast" / "answers").glob("*.json")]
    return {answer["request"]: answer for answer in found}


@dataclass
class Training:
    """A training that can be started, again and again, in one folder."""

    folder: Path
    launcher: Launcher
    config: dict[str, Any]

    @property
    def run(self) -> Path:
        return self.folder / "out"

    @property
    def trigger(self) -> Path:
        return self.run / "axolotl_checkpoint.save"

    def start(self, *options: str, program: str | None = None, block_at: int = 3, **changes: Any) -> Process:
        config = self.folder / "config.yml"
        config.write_text(yaml.safe_dump({**self.config, **changes}))
        return self.launcher.start(
            "train", "config.yml", *options, cwd=self.folder, program=program, BLOCK_AT=str(block_at)
        )

    def holdfast(self, *argv: str) -> Process:
        return self.launcher.start(*argv, cwd=self.folder)

    def saved(self) -> list[dict[str, Any]]:
        return events(self.run, "saved")

    def wait_for_step(self, step: int) -> None:
        status = self.run / ".holdfast" / "status.json"
        wait_until(lambda: status.exists() and json.loads(status.read_text())["step"] >= step, 60, f"step {step}")

    def wait_for_saves(self, count: int) -> list[dict[str, Any]]:
        return wait_until(lambda: found if len(found := self.saved()) >= count else [], 60, f"{count} saves")

    def manifest(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run / name / "MANIFEST.json").read_text())
        return found
