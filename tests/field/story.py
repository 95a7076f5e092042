"""The story that is told with every program: it is asked, signalled, killed and resumed, and ends as if it never was.

The program stands still at steps that are named beforehand, so nothing depends on how fast a machine is: a request is
made there, training goes on once it was noticed, and the answer is awaited.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from field.program import path_of
from helpers.trainings import answers, events
from helpers.waiting import wait_until

PROGRAMS = Path(__file__).parent / "programs"
_LIMIT_SECONDS = 240.0
_TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


PROOFS = ("file", "command", "signal", "SIGTERM", "Ctrl+C", "SIGKILL", "exact", "retention")
"""What is proved, in the order of the story."""


@dataclass
class Story:
    """A program's trainings in one folder.

    Args:
        folder: An empty folder.
        command: The command that trains; `OUT` in it stands for the run directory.
        ranks: The number of its processes; more than one run under torchrun, which ends with 0 after a stop.
        env: Further variables of its environment.
    """

    folder: Path
    command: Sequence[str]
    ranks: int = 1
    env: Mapping[str, str] = field(default_factory=dict)
    output: str = ""
    """What all starts have printed so far."""
    proved: list[str] = field(default_factory=list)
    """What has held so far, of `PROOFS`."""
    _starts: int = 0
    _begun: list["subprocess.Popen[str]"] = field(default_factory=list)
    _asked_for: list[str] = field(default_factory=list)
    """The digests of the checkpoints that were asked for."""

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def _output(self) -> Path:
        return self.folder / f"output-{self._starts}.txt"

    def tell(self) -> None:
        """Tells it all.

        Raises:
            AssertionError: Something does not hold; `proved` has what did before it.
        """
        alone = self.never_interrupted()
        self.asked_in_every_way_then_terminated()
        self.interrupted_by_hand()
        self.killed_after_a_save()
        self._end(self._start(()))
        self.proved.append("SIGKILL")
        assert self._result() == alone, f"resumed {self._result()}, alone {alone}\n{self.output}"
        self.proved.append("exact")
        self.retained()
        self.proved.append("retention")

    def close(self) -> None:
        """Ends what still runs: of a story that was broken off."""
        for process in self._begun:
            if process.poll() is None:
                _kill_all(process)
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()

    def never_interrupted(self) -> Any:
        """Trains without Holdfast, and returns what that ended with."""
        self._end(self._start((), FIELD_PLAIN="1"))
        shutil.rmtree(self.run, ignore_errors=True)
        ended_with = self._result()
        self._mark("result.json").unlink()
        return ended_with

    def asked_in_every_way_then_terminated(self) -> None:
        """Asks by file, command and signal, and has SIGTERM save and stop."""
        process = self._start((1, 2, 3, 5))
        self._saved_by(process, 1, "trigger_file", (self.run / "axolotl_checkpoint.save").touch)
        self.proved.append("file")
        self._saved_by_command(process, 2)
        self.proved.append("command")
        self._saved_by(process, 3, "signal", lambda: os.kill(self._pid(), signal.SIGUSR1))
        self.proved.append("signal")
        self._stopped_by(process, 5, signal.SIGTERM)
        self.proved.append("SIGTERM")

    def interrupted_by_hand(self) -> None:
        """Resumes, and has Ctrl+C save and stop."""
        step = self._last_saved() + 2
        self._stopped_by(self._start((step,)), step, signal.SIGINT)
        self.proved.append("Ctrl+C")

    def killed_after_a_save(self) -> None:
        """Resumes, asks for a save, and has SIGKILL end it later, so that steps are lost."""
        step = self._last_saved() + 1
        process = self._start((step, step + 3))
        self._saved_by_command(process, step)
        self._hold(process, step + 3)
        _kill_all(process)
        self._gather()

    def retained(self) -> None:
        """Checks that what was asked for was kept, and of the scheduled ones the last and the one resumed from."""
        manifests = {path.parent.name: path.read_text() for path in self.run.glob("*/MANIFEST.json")}
        scheduled = [
            name
            for name, manifest in manifests.items()
            if all(
                reason["door"] == "schedule" and "save_at_end" not in reason["why"]
                for reason in json.loads(manifest)["reasons"]
            )
        ]
        assert len(scheduled) <= 2, f"of the scheduled checkpoints one is kept, and one resumed from: {scheduled}"
        kept = {json.loads(manifest)["sha256"] for manifest in manifests.values()}
        assert kept >= set(self._asked_for), f"what was asked for is kept: {manifests.keys()}"

    def _start(self, holds: Iterable[int], **env: str) -> "subprocess.Popen[str]":
        command = [part.replace("OUT", str(self.run)) for part in self.command]
        launcher = [*_TORCHRUN, str(self.ranks)] if self.ranks > 1 else []
        variables = {
            **os.environ,
            "PYTHONPATH": path_of(),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1",
            "FIELD_HOLDS": ",".join(map(str, holds)),
            **self.env,
            **env,
        }
        self._starts += 1
        with self._output.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, *launcher, *command],
                cwd=self.folder,
                env=variables,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        self._begun.append(process)
        return process

    def _hold(self, process: "subprocess.Popen[str]", step: int) -> None:
        def is_there() -> bool:
            assert process.poll() is None, f"ended with {process.poll()} before step {step}:\n{self._printed()}"
            return self._mark(f"at-{step}").exists()

        wait_until(is_there, _LIMIT_SECONDS, f"step {step}:\n{self._printed()}")

    def _saved_by_command(self, process: "subprocess.Popen[str]", step: int) -> None:
        commands = []
        self._saved_by(process, step, "command", lambda: commands.append(self._save_command()))
        said = commands[0].communicate(timeout=_LIMIT_SECONDS)
        assert commands[0].returncode == 0, said

    def _saved_by(self, process: "subprocess.Popen[str]", step: int, door: str, ask: Callable[[], object]) -> None:
        """Asks at a step, has training go on once that was noticed, and waits for the checkpoint.

        Ranks that went on before they agree could agree on a step behind the next one at which they are held.
        """
        self._hold(process, step)
        agreed = len(events(self.run, "agreed"))
        request = self._noticed(door, ask)
        if self.ranks > 1:
            wait_until(lambda: len(events(self.run, "agreed")) > agreed, 60, f"an agreement:\n{self._printed()}")
        self._mark(f"go-{step}").touch()
        answer = wait_until(lambda: self._answer(request), _LIMIT_SECONDS, f"an answer:\n{self._printed()}") or {}
        is_good = answer["saved"] and answer["step"] in self._steps_from(step)
        assert is_good, f"asked after step {step}: {answer}\n{self._printed()}"
        self._asked_for.append(answer["digest"])

    def _noticed(self, door: str, ask: Callable[[], object]) -> dict[str, Any]:
        """Asks, and returns the request as the journal has it."""
        before = len(self._requests(door))
        ask()
        wait_until(lambda: len(self._requests(door)) > before, 60, f"a request by {door}:\n{self._printed()}")
        return self._requests(door)[-1]

    def _stopped_by(self, process: "subprocess.Popen[str]", step: int, number: signal.Signals) -> None:
        self._hold(process, step)
        # A launcher hands SIGTERM on; Ctrl+C comes to everybody.
        is_handed_on = self.ranks > 1 and number == signal.SIGTERM
        stop = self._noticed("signal", lambda: (os.kill if is_handed_on else os.killpg)(process.pid, number))
        self._mark(f"go-{step}").touch()
        code = process.wait(_LIMIT_SECONDS)
        outcome = json.loads((self.run / ".holdfast" / "outcome.json").read_text())
        printed = self._gather()
        assert outcome["outcome"] == "stopped", f"{outcome}, {code}:\n{printed}"
        assert self.ranks > 1 or code == 75, f"{number.name} ended it with {code}:\n{printed}"
        answer = self._answer(stop)
        assert answer and answer["saved"] and answer["step"] in self._steps_from(step), f"{answer}:\n{printed}"
        assert not self._mark("result.json").exists(), f"went on as if it had finished:\n{printed}"

    def _steps_from(self, step: int) -> range:
        """Returns the steps that a request may get which was made after one: ranks go on while they agree on theirs.

        They may be busy with a scheduled save, and agree after that.
        """
        return range(step, step + (4 if self.ranks > 1 else 2))

    def _end(self, process: "subprocess.Popen[str]") -> None:
        ended = process.wait(_LIMIT_SECONDS)
        printed = self._gather()
        assert ended == 0, f"ended with {ended}:\n{printed}"

    def _requests(self, door: str) -> list[dict[str, Any]]:
        return [event for event in events(self.run, "request") if event["door"] == door]

    def _answer(self, request: dict[str, Any]) -> dict[str, Any] | None:
        return answers(self.run).get(request["id"])

    def _last_saved(self) -> int:
        return int(events(self.run, "saved")[-1]["step"])

    def _result(self) -> Any:
        return json.loads(self._mark("result.json").read_text())

    def _mark(self, name: str) -> Path:
        return self.run.with_name(f"{self.run.name}.{name}")

    def _printed(self) -> str:
        return self._output.read_text()[-6000:]

    def _gather(self) -> str:
        self.output += self._printed()
        return self._printed()

    def _pid(self) -> int:
        return int(json.loads((self.run / ".holdfast" / "status.json").read_text())["pid"])

    def _save_command(self) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "holdfast", "save", str(self.run), "--wait", "--timeout", "120"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._begun.append(process)
        return process


def _kill_all(process: "subprocess.Popen[str]") -> None:
    """Kills a start and its ranks, which a launcher has given sessions of their own."""
    everybody = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in everybody:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(everybody, timeout=30)
    process.wait(_LIMIT_SECONDS)
