"""A small real training in a forked child that can be traced, limited and killed, and what must hold afterwards.

The child is forked from a process that has trained before, so that it starts at once and imports nothing.
"""

import atexit
import functools
import gc
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from helpers.loops import Loop, train
from helpers.trainings import events
from helpers.waiting import wait_until
from holdfast.store import catalog
from holdfast.store.verify import verify

BEFORE, UNTIL, AFTER = 3, 5, 6  # the step of the older checkpoint, where the child ends, where its resume does
THOROUGH = bool(os.environ.get("HOLDFAST_FAULTS"))


def needs(*tools: str, root: bool = False) -> None:
    """Skips where a tool or root is missing."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing or (root and os.geteuid()):
        pytest.skip(f"SKIPPED, NOT PASSED: needs {' and '.join([*missing, *(['root'] if root else [])])}")


Wait = Callable[[], object]


class Child:
    """A forked process that runs an action, and waits for `go` where the action calls what it is given."""

    def __init__(self, action: Callable[[Wait], object], output: Path) -> None:
        self.output = output
        self._code: int | None = None
        (waits, self._starts), (self._is_ready, ready) = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._starts)  # or its own copy of the other end would keep it waiting for ever
            self._become(lambda: action(lambda: os.write(ready, b"x") and os.read(waits, 1)))
        os.close(waits)
        os.close(ready)

    def _become(self, action: Callable[[], object]) -> None:
        code = 1
        try:
            os.setsid()
            said = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(said, 1)
            os.dup2(said, 2)
            sys.stdout, sys.stderr = (open(fd, "w", closefd=False) for fd in (1, 2))  # noqa: SIM115 - of its own
            gc.freeze()  # a collection touches every object of the parent, and what is touched is copied
            action()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:  # noqa: BLE001 - the child ends here, whatever happens
            traceback.print_exc()
        finally:
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            finally:  # where nothing can be written either: what follows is the parent's
                os._exit(code)

    def wait_until_ready(self, limit: float = 60.0) -> None:
        """Waits until it waits."""
        assert select.select([self._is_ready], [], [], limit)[0] and os.read(self._is_ready, 1), self.said()

    def go(self) -> None:
        """Lets it go on."""
        os.write(self._starts, b"x")

    def wait(self, limit: float = 60.0) -> int:
        """Its exit code, negative for a signal."""
        wait_until(self.has_ended, limit, f"the end of a child: {self.said()}")
        assert self._code is not None
        return self._code

    def has_ended(self) -> bool:
        """Whether it runs no more."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code is not None

    def said(self) -> str:
        """What it has printed."""
        return self.output.read_text() if self.output.exists() else ""

    def close(self) -> None:
        """Leaves nothing of it."""
        os.close(self._starts)
        os.close(self._is_ready)
        if not self.has_ended():
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


@contextmanager
def forked(action: Callable[[Wait], object], output: Path) -> Iterator[Child]:
    """A child that is gone at the end."""
    child = Child(action, output)
    try:
        yield child
    finally:
        child.close()


def goes_on(run: Path, phase: str, wait: Wait) -> None:
    """What the child does: resumes, saves at each of two steps, and keeps one scheduled checkpoint.

    strace counts the calls of each thread from where it was attached. So that the first ones of the thread that saves
    are met, and not always the first ones of a start, it is attached for one `phase` or the other.
    """
    if phase == "start":
        wait()
    loop = Loop(run, save_steps=1, save_total_limit=1)
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=UNTIL):
            if phase == "saves" and not loop.losses:
                wait()
            loop.update(batch)


def traced(run: Path, output: Path, injection: str, phase: str = "saves") -> int:
    """Runs `goes_on` in a child under strace with an injection, and gives the child's exit code."""
    call = injection.partition(":")[0]
    with forked(lambda wait: goes_on(run, phase, wait), output) as child:
        child.wait_until_ready()
        log = output.with_suffix(".strace")
        what = ["-f", "-qq", "-e", "signal=none", "-e", f"trace={call}", "-e", f"inject={injection}"]
        command = ["strace", *what, "-o", str(log), "-p", str(child.pid)]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as tracer:
            try:
                wait_until(lambda: is_traced(child.pid) or tracer.poll() is not None, 30, "strace")
                if tracer.poll() is not None:
                    assert tracer.stderr is not None
                    pytest.skip(f"SKIPPED, NOT PASSED: strace cannot trace here: {tracer.stderr.read().decode()}")
                child.go()
                return child.wait()
            finally:
                if tracer.poll() is None:
                    with suppress(ProcessLookupError):
                        os.kill(child.pid, signal.SIGKILL)
                tracer.wait(30)


def is_traced(pid: int) -> bool:
    """Whether strace has all threads of a process."""
    return all("TracerPid:\t0\n" not in (task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir())


def copy_of_base(target: Path) -> Path:
    """A run with one checkpoint, of step BEFORE."""
    shutil.copytree(_base(), target, symlinks=True)
    return target


@functools.cache
def _base() -> Path:
    run = Path(_folder()) / "base"
    train(run, BEFORE, save_steps=1, save_total_limit=1)
    return run


@functools.cache
def whole(until: int) -> str:
    """What a run ends with that nothing has happened to."""
    return train(Path(_folder()) / f"whole-{until}", until).digest()


@functools.cache
def _folder() -> str:
    # Not a fixture's: it is made once a process, whichever test comes first.
    folder = tempfile.mkdtemp(prefix="holdfast-faults-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def acknowledged(run: Path) -> list[int]:
    """The steps that were answered "saved", in order."""
    return [BEFORE, *(int(event["step"]) for event in events(run, "saved"))]


def require_nothing_lost(run: Path, answered: Sequence[int], told: str = "", **parts: object) -> None:
    """What was answered, or something newer, verifies and resumes to the bytes of an undisturbed run; never a mix."""
    entries = catalog.entries(run)
    good = [entry.step for entry in entries if entry.manifest is not None and verify(entry.path).good]
    damaged = [entry.path.name for entry in entries if entry.manifest is None or not verify(entry.path).good]
    assert not damaged, f"{told}: not whole, though they have the name of a checkpoint: {damaged}"
    assert good and max(good) >= max(answered), f"{told}: {answered} were answered and {good} are there"
    until = max(AFTER, max(good) + 1)
    assert train(run, until, **parts).digest() == whole(until), f"{told}: it resumed to something else"
    left = [path.name for path in run.iterdir() if path.name.startswith(".") and path.name != ".holdfast"]
    assert not left, f"{told}: the next start left {left}"
