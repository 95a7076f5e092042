"""What several tests share: real processes, real small checkpoints, and processes that die half-way."""

import errno
import itertools
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import settings

from helpers.failing_disk import CHANGES, FailingDisk, Fate, fails_with, is_cut_short
from holdfast.cli.app import main
from holdfast.store import catalog, commit, digest, files
from holdfast.store.manifest import Manifest

# A machine that is busy is no bug, so no example has a deadline.
fuzzed = settings(deadline=None, max_examples=40)

RUN = "0123456789abcdef" * 2
OTHER_RUN = "fedcba9876543210" * 2

# A file of tensors that holds none.
NO_TENSORS = (8).to_bytes(8, "little") + b"{}      "
# The least that a Trainer resumes from, a few bytes each.
RESUMABLE: Mapping[str, bytes] = {
    "model.safetensors": b"weights",
    "optimizer.pt": b"moments",
    "rng_state.pth": b"generators",
    "scheduler.pt": b"schedule",
    "trainer_state.json": b"{}",
}
SCHEDULED = {"id": "0" * 32, "door": "schedule", "why": "save_strategy steps", "label": "", "asked_at": 1.0}
ASKED = {"id": "1" * 32, "door": "command", "why": "holdfast save", "label": "before lr", "asked_at": 1.0}


def manifest(step: int = 7, **changes: Any) -> Manifest:
    """A manifest, with what a test does not care for filled in."""
    fields: dict[str, Any] = {
        "layout": "transformers",
        "run": RUN,
        "attempt": "a" * 32,
        "parent": None,
        "sequence": 1,
        "step": step,
        "world_size": 1,
        "created": "2026-01-02T03:04:05+00:00",
        "reasons": (SCHEDULED,),
        "boundary": {"face": "logged"},
        "versions": {"torch": "2.13.0"},
        "files": (),
    }
    return Manifest(**(fields | changes))


def stage(directory: Path, content: Mapping[str, bytes] = RESUMABLE) -> None:
    """Writes the files of a layout into a directory."""
    for name, data in content.items():
        path = directory / name
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True)
        files.write_new(path, data)


def commit_checkpoint(root: Path, step: int, content: Mapping[str, bytes] = RESUMABLE, **fields: Any) -> Path:
    """Makes a checkpoint as a run does, by the commit protocol. `fields` are the manifest's."""
    attempt = commit.Attempt(root, fields.get("run", RUN), step)
    stage(attempt.folder.path, content)
    given = {
        "attempt": attempt.token,
        "sequence": catalog.next_sequence(catalog.entries(root), fields.get("run", RUN)),
        "files": attempt.seal(digest.of_descriptor),
        **fields,
    }
    return attempt.publish(manifest(step, **given), lambda: None).path


def content_of(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, by its path there; a link by where it points."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink():
            found[name] = b"-> " + os.fsencode(path.readlink())
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def holdfast(*arguments: str | bytes | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end, in a child that is forked and not started anew: that saves it the imports."""
    argv = ["holdfast", *map(os.fsdecode, arguments)]
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        child = os.fork()
        if child == 0:
            _become_holdfast(argv, output.fileno(), errors.fileno(), cwd)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said = []
        for file in (output, errors):
            file.seek(0)
            said.append(file.read().decode())
    return subprocess.CompletedProcess(argv, code, *said)


def _become_holdfast(argv: list[str], output: int, errors: int, cwd: Path | None) -> NoReturn:
    code: object = 1
    try:
        os.dup2(output, 1)
        os.dup2(errors, 2)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - as a new process has them
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False, errors="backslashreplace")  # noqa: SIM115
        if cwd is not None:
            os.chdir(cwd)
        sys.argv = argv
        main()
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - the child ends here, whatever happens
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


def holdfast_begun(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    """Starts the command in a process of its own; `communicate` waits for its end."""
    command = [sys.executable, "-m", "holdfast", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@contextmanager
def process(script: str, *arguments: str | Path, prefix: Sequence[str] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a script in a process of its own, with pipes to talk through. Nothing of it outlives the test."""
    command = [*prefix, sys.executable, "-u", "-c", script, *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=0, start_new_session=True) as started:
        try:
            yield started
        finally:
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)


def line_of(started: subprocess.Popen[bytes], limit: float = 30.0) -> str:
    """The next line that a process prints; empty at its end; fails after `limit` seconds without one."""
    assert started.stdout is not None
    assert select.select([started.stdout], [], [], limit)[0], f"nothing printed within {limit:g} s"
    return started.stdout.readline().decode().rstrip("\n")


def tell(started: subprocess.Popen[bytes], line: str) -> None:
    """Gives a process a line to read."""
    assert started.stdin is not None
    started.stdin.write(line.encode() + b"\n")


@contextmanager
def tiny_disk(path: Path, *, options: str) -> Iterator[Path]:
    """Mounts a file system of its own, small enough to be filled. Only root may; skips elsewhere."""
    path.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(path)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"SKIPPED, NOT PASSED: a full disk needs a mount, and this user may not: {made.stderr.decode()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(path: Path) -> None:
    """Takes all the room that is left on a disk."""
    with (path / "filler").open("wb", buffering=0) as filler:
        for size in (1 << 20, 4096, 1):
            try:
                while filler.write(bytes(size)):
                    pass
            except OSError:
                continue


def succeeds_in_child(action: Callable[[], object]) -> bool:
    """Whether an action gives something true in a process of its own, whose limits and user it may change."""
    child = os.fork()
    if child == 0:
        code = 2
        try:
            code = 0 if action() else 1
        except BaseException as error:  # noqa: BLE001 - the child ends here, whatever happens
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def dies_at(count: int, action: Callable[[], object]) -> bool:
    """Runs an action in a child that SIGKILL ends right before its count-th change to the disk.

    Returns:
        Whether the action was cut off; False where it came to its end before that.
    """
    return _in_child(count, _die, action) == -signal.SIGKILL


def meets_error_at(count: int, action: Callable[[], object]) -> bool:
    """Runs an action in a child whose count-th change to the disk fails with EIO, and no other.

    Returns:
        Whether there was such an operation. The action must not raise, error or not.
    """
    return _in_child(count, fails_with(errno.EIO), action) == 1


def _in_child(count: int, fate: Fate, action: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        code = 99
        try:
            disk = FailingDisk(CHANGES, count, fate)
            disk.install(pytest.MonkeyPatch())
            action()
            code = 1 if disk.failed else 0
        except BaseException as error:  # noqa: BLE001 - the child ends here, whatever happens
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code != 99, f"the action raised at operation {count}"
    return code


def _die(real: Callable[..., Any], args: tuple[Any, ...]) -> NoReturn:
    """SIGKILL comes; a write is torn in the middle."""
    with suppress(OSError, IndexError, TypeError):
        if real.__name__.endswith("write"):
            is_cut_short(real, args)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL ends a process at once")


def every_crash(directory: Path, prepare: Callable[[Path], object], action: Callable[[Path], object]) -> Iterator[Path]:
    """Prepares a directory, cuts an action off in it at the first operation, and so on for each, up to its end.

    Yields:
        The directory as each crash left it; the last one is of the action that came to its end.
    """
    for count in itertools.count(1):
        root = directory / f"crash-{count}"
        root.mkdir()
        prepare(root)
        died = dies_at(count, lambda root=root: action(root))  # type: ignore[misc]
        yield root
        if not died:
            assert count > 3, "the action changed nothing"
            return
