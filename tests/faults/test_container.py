"""A training as process 1 of a container, without /proc, or with nowhere to write but its run directory."""

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from faults.desk import Desk
from faults.harness import Child, Wait, copy_of_base, forked, needs, require_nothing_lost
from helpers.waiting import wait_until

_CLONE_NEWNS, _CLONE_NEWPID = 0x00020000, 0x20000000


def mounted(kind: str, options: str, place: Path) -> None:
    subprocess.run(["mount", "-t", kind, "-o", options, "none", str(place)], check=True)


def a_proc_of_its_own(folder: Path) -> None:
    mounted("proc", "rw", Path("/proc"))


def no_proc(folder: Path) -> None:
    mounted("tmpfs", "ro", Path("/proc"))


def nowhere_to_write(folder: Path) -> None:
    a_proc_of_its_own(folder)
    home = folder / "home"
    home.mkdir()
    for place in (home, Path("/dev/shm"), Path("/var/tmp")):
        mounted("tmpfs", "ro,size=4k", place)
    os.environ["HOME"] = str(home)
    os.environ["XDG_CACHE_HOME"] = str(home / "cache")


def as_process_1(action: Callable[[], object], furnish: Callable[[Path], None], folder: Path) -> None:
    """Runs an action as the first process of a container that was furnished, and ends as it ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(_CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    assert libc.unshare(_CLONE_NEWPID) == 0, os.strerror(ctypes.get_errno())
    inner = os.fork()
    if inner:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        code = os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1])
        os._exit(code if code >= 0 else 128 - code)
    assert os.getpid() == 1
    furnish(folder)
    action()


def process_1_of(child: Child) -> int:
    """Its number as we see it."""
    children = Path(f"/proc/{child.pid}/task/{child.pid}/children")
    return int(wait_until(lambda: children.read_text().split())[0])


@pytest.mark.parametrize("ends", ["is stopped", "is killed"])
@pytest.mark.parametrize("furnish", [a_proc_of_its_own, no_proc, nowhere_to_write], ids=lambda one: one.__name__)
def test_fault_48_process_1_saves_stops_and_gives_way_to_the_next_start(
    tmp_path: Path, furnish: Callable[[Path], None], ends: str
) -> None:
    """Namespaces of processes and mounts; /proc its own or none; a home, /dev/shm and /var/tmp that take nothing."""
    needs("mount", root=True)
    run = copy_of_base(tmp_path / "run")
    desk = Desk()

    def action(wait: Wait, **changes: Any) -> None:
        as_process_1(lambda: desk.trains(run, changes), furnish, tmp_path)

    with forked(action, tmp_path / "said") as desk.child:
        desk.begin()
        saved = desk.answer()
        assert saved.startswith("saved"), saved
        number = signal.SIGTERM if ends == "is stopped" else signal.SIGKILL
        os.kill(process_1_of(desk.child), number)
        assert desk.child.wait() == (75 if ends == "is stopped" else 137), desk.child.said()
    require_nothing_lost(run, [int(saved.split()[1])])
