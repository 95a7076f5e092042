"""Starts of the program that is rehearsed: to a step, and interrupted as a scheduler would."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from holdfast.drill import trace
from holdfast.drill.trace import Trace
from holdfast.errors import HoldfastError, UnsupportedError
from holdfast.run import outcome
from holdfast.run.directory import RunDirectory
from holdfast.run.inbox import Inbox
from holdfast.run.rehearsal import Rehearsal
from holdfast.run.request import Answer, Request

_LOOK_SECONDS = 0.02
# A program is given this long beyond the grace before it is killed.
_BEYOND_SECONDS = 60.0
_LAST_LINES = 12


@dataclass(frozen=True)
class Interrupted:
    """The outcome of the start that was stopped.

    Args:
        trace: Its steps.
        answer: The answer to the save that was asked for; None where there was none in time.
        seconds: From the signal until every rank had ended.
        stopped: True where it ended as a stop with a good save.
        waited: How long training waited for saves, in seconds, in all.
    """

    trace: Trace
    answer: Answer | None
    seconds: float
    stopped: bool
    waited: float


class Starts:
    """Starts the program, each time with the same run directory.

    Args:
        command: The program and its arguments.
        scratch: An empty directory.
    """

    def __init__(self, command: Sequence[str], scratch: Path) -> None:
        self._command = command
        self._scratch = scratch
        self._run = scratch / "run"

    def to(self, name: str, steps: int, *, afresh: bool = True) -> Trace:
        """Has the program train to a step, and returns its steps.

        Args:
            name: The name of this start, for its files.
            steps: The step.
            afresh: Begins with an empty run directory; otherwise it goes on from what is there.

        Raises:
            HoldfastError: The program never opened Holdfast, or ended before that step otherwise than by its own end.
        """
        if afresh:
            shutil.rmtree(self._run, ignore_errors=True)
        plan = self._plan(name, steps=steps)
        process = self._start(name, plan)
        with _ended_with_us(process):
            code = process.wait()
        result = trace.read(plan)
        if not result.pids:
            raise UnsupportedError(
                f"the command ended with {code} and never opened Holdfast{self._last_lines(name)}",
                hint="it must train with Checkpointer, attach(trainer) or holdfast train",
            )
        if result.left_at is None:
            raise HoldfastError(
                f"the command ended with {code} at step {result.last_step}, before step {steps}{self._last_lines(name)}"
            )
        return result

    def interrupted(self, name: str, at: int, until: int, grace: float) -> Interrupted:
        """Has the program train, asks it for a save at a step, and stops it by SIGTERM."""
        shutil.rmtree(self._run, ignore_errors=True)
        plan = self._plan(name, interrupted_at=at, until=until)
        process = self._start(name, plan)
        with _ended_with_us(process):
            _wait(lambda: trace.read(plan).last_step >= at, process)
            if process.poll() is not None:
                raise HoldfastError(
                    f"the command ended with {process.returncode} before step {at}{self._last_lines(name)}",
                    hint="it came further before: give a smaller --kill-at",
                )
            directory = RunDirectory.open(self._run)
            answer = self._ask(directory, plan, process, grace)
            ranks = list(_processes(trace.read(plan).pids))
            begun = time.monotonic()
            for rank in ranks:
                with suppress(psutil.NoSuchProcess):
                    rank.send_signal(signal.SIGTERM)
            gone, _ = psutil.wait_procs(ranks, grace + _BEYOND_SECONDS)
            seconds = time.monotonic() - begun
            if len(gone) == len(ranks):
                process.wait()  # a launcher ends after them
        last, status = outcome.read(directory), directory.read_json(directory.status)
        stopped = last is not None and last.outcome == "stopped"
        waited = float(status.get("held_seconds", 0.0)) if isinstance(status, dict) else 0.0
        return Interrupted(trace.read(plan), answer, seconds, stopped, waited)

    def _ask(self, directory: RunDirectory, plan: Rehearsal, process: Any, grace: float) -> Answer | None:
        inbox, request = Inbox(directory), Request("command", label="drill", why="holdfast drill")
        inbox.submit(request)
        plan.asked.touch()
        _wait(lambda: inbox.answer_to(request.id) is not None, process, grace)
        return inbox.answer_to(request.id)

    def _plan(self, name: str, **steps: int) -> Rehearsal:
        traces = self._scratch / name
        traces.mkdir()
        return Rehearsal(str(self._run), str(traces), **{"steps": 0, **steps})

    def _start(self, name: str, plan: Rehearsal) -> "subprocess.Popen[bytes]":
        with self._log(name).open("wb") as log:
            try:
                # A session of its own: what a terminal sends is for us alone.
                return subprocess.Popen(
                    self._command,
                    env=plan.environment(),
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            except OSError as error:
                raise UnsupportedError(f"{self._command[0]}: {error.strerror or error}") from error

    def _log(self, name: str) -> Path:
        return self._scratch / f"{name}.log"

    def _last_lines(self, name: str) -> str:
        lines = self._log(name).read_text(errors="replace").splitlines()[-_LAST_LINES:]
        return "; the end of what it said:" + "".join(f"\n    {line}" for line in lines) if lines else ""


def _wait(happened: Callable[[], bool], process: "subprocess.Popen[bytes]", seconds: float | None = None) -> None:
    """Returns when it has happened, when the process has ended, or when the time is up."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while not happened() and process.poll() is None and (deadline is None or time.monotonic() < deadline):
        time.sleep(_LOOK_SECONDS)


def _processes(pids: Sequence[int]) -> Iterator[psutil.Process]:
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            yield psutil.Process(pid)


@contextmanager
def _ended_with_us(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Ends the program, and all that it has started, when it is still there at the end."""
    try:
        yield
    finally:
        if process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                launcher = psutil.Process(process.pid)
                launcher.suspend()  # it would start others in the place of ranks that die
                # torchrun gives its ranks sessions of their own, where no signal to a group reaches them.
                for each in launcher.children(recursive=True):
                    with suppress(psutil.NoSuchProcess):
                        each.kill()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
