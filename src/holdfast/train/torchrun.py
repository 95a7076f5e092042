"""Runs `holdfast train --nproc N`: the same training in N processes of this machine, started by torchrun."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from holdfast.errors import FAILED, UnsupportedError, ended_by_signal
from holdfast.ranks import launcher
from holdfast.run import outcome, rehearsal
from holdfast.run.outcome import Outcome
from holdfast.train.config.load import load

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)


def run_in_processes(count: int, path: Path, overrides: Sequence[str], resume: str | None) -> int:
    """Trains, and returns the exit code that one process would have.

    Args:
        count: The number of processes.
        path: The configuration's file.
        overrides: `KEY=VALUE` for keys that the command line sets.
        resume: The checkpoint to resume: `auto`, `true` or a path. None leaves it to the configuration.

    Raises:
        ConfigError: The configuration is wrong. Nothing was started.
        RunError: The run directory does not tell which start was the last one. Nothing was started, or it has ended.
        UnsupportedError: A launcher has started this process already.
    """
    if launcher.world_size() > 1 or launcher.under_elastic_agent():
        raise UnsupportedError(
            "--nproc starts processes, and this one was itself started by a launcher",
            hint="leave --nproc out under torchrun, accelerate and srun, or start holdfast train without them",
        )
    config = load(path, overrides).config
    root = rehearsal.output_dir_for(config.output_dir)
    before = outcome.last_in(root)
    with _Signals() as signals:
        # A session of its own: a terminal's Ctrl+C comes to the ranks through us alone.
        torchrun = subprocess.Popen(command(count, path, overrides, resume), start_new_session=True)
        signals.pass_on_to(torchrun.pid)
        code = torchrun.wait()
    last = outcome.last_in(root)
    is_of_before = last is None or (before is not None and last.token == before.token)
    return code_of(None if is_of_before else last, code, signals.ended_by)


def command(count: int, path: Path, overrides: Sequence[str], resume: str | None) -> list[str]:
    """Returns the command line that trains in several processes."""
    options = [part for override in overrides for part in ("--set", override)]
    options += [] if resume is None else ["--resume", resume]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return [*torchrun, "-m", "holdfast", "train", str(path), *options]


def code_of(start: Outcome | None, code: int, signalled: int | None) -> int:
    """Returns the exit code that `docs/cli.md` promises.

    Args:
        start: The record of this training's start; None where it did not come so far.
        code: torchrun's own exit code: 1 for whatever a rank ended with.
        signalled: The signal to end that was passed on, if any.
    """
    if start is None:
        return ended_by_signal(signalled) if signalled else code if code > 0 else FAILED
    if start.exit_code == 0 and code != 0 and not signalled:
        return FAILED  # another rank failed after rank 0 had finished
    return start.exit_code


class _Signals:
    """Passes signals on to the ranks themselves. Use it as a context manager.

    torchrun would send them to the ranks' data workers as well, would end with a traceback, would kill the ranks after
    30 seconds, and would itself die of SIGUSR1 and leave the ranks behind.
    """

    def __init__(self) -> None:
        self._torchrun: int | None = None
        self._before: dict[int, Any] = {}
        self._early: list[int] = []
        self.ended_by: int | None = None

    def __enter__(self) -> "_Signals":
        for number in (*_ENDS, signal.SIGUSR1):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def pass_on_to(self, torchrun: int) -> None:
        """Passes signals on to the processes of `torchrun` from now on, and those that came before."""
        self._torchrun = torchrun
        while self._early:
            self._pass_on(torchrun, self._early.pop(0))

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number in _ENDS and self.ended_by is None:
            self.ended_by = number
        if self._torchrun is None:
            self._early.append(number)
        else:
            self._pass_on(self._torchrun, number)

    def _pass_on(self, torchrun: int, number: int) -> None:
        with suppress(psutil.NoSuchProcess):
            agent = psutil.Process(torchrun)
            ranks = agent.children()
            if number == signal.SIGUSR1:
                ranks = ranks[:1]  # who asks the others
            elif not ranks:
                ranks = [agent]  # it has started nobody yet
            for process in ranks:
                process.send_signal(number)
