"""Two local accounts that root makes and removes: the one that trains, and a stranger, and what is done as either."""

import ctypes
import fcntl
import os
import pwd
import stat
import struct
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import Any, NoReturn

import pytest

from faults.harness import needs
from helpers.waiting import wait_until

_PREFIX = "holdfast-test-"
_LIBC = ctypes.CDLL(None, use_errno=True)
_MNT_DETACH = 2
_CLONE_NEWNS, _MS_BIND, _MS_REC, _MS_PRIVATE, _PR_SET_DUMPABLE = 0x00020000, 4096, 16384, 1 << 18, 4
_PROTECTIONS = ("symlinks", "fifos", "regular", "hardlinks")


@dataclass(frozen=True)
class Account:
    """A local account. `team` is a group that both are in."""

    name: str
    uid: int
    gid: int
    team: int


@contextmanager
def two_accounts() -> Iterator[tuple[Account, Account]]:
    """The account that trains and the stranger's, both gone at the end. Only root makes accounts; skips elsewhere."""
    needs("useradd", "userdel", "groupadd", "groupdel", "getent", root=True)
    _remove_left()
    team = f"{_PREFIX}team-{os.getpid()}"
    names = [f"{_PREFIX}{who}-{os.getpid()}" for who in ("trains", "strange")]
    try:
        _run("groupadd", "--system", team)
        for name in names:
            _run("useradd", "--system", "--user-group", "--no-create-home", "--groups", team, name)
        entries = [pwd.getpwnam(name) for name in names]
        group = int(_run("getent", "group", team).split(":")[2])
        trains, strange = (Account(entry.pw_name, entry.pw_uid, entry.pw_gid, group) for entry in entries)
        yield trains, strange
    finally:
        for name in names:
            subprocess.run(["userdel", "--force", name], capture_output=True, check=False)
        subprocess.run(["groupdel", team], capture_output=True, check=False)


def _remove_left() -> None:
    """Removes the accounts of a process that was killed."""
    for entry in pwd.getpwall():
        number = entry.pw_name.rpartition("-")[2]
        if entry.pw_name.startswith(_PREFIX) and number.isdecimal() and not Path(f"/proc/{number}").exists():
            subprocess.run(["userdel", "--force", entry.pw_name], capture_output=True, check=False)
            subprocess.run(["groupdel", f"{_PREFIX}team-{number}"], capture_output=True, check=False)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"SKIPPED, NOT PASSED: {command[0]} makes no account here: {done.stderr.strip()}")
    return done.stdout


def become(account: Account, umask: int = 0o022) -> None:
    """Makes this process, a child of root's, one of the account's, for good."""
    _let_python_be_read()
    os.setgroups([account.team])
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)
    # As for a program that the account has started: else its /proc would be root's.
    assert _LIBC.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0) == 0
    os.umask(umask)
    os.environ.update(HOME="/nonexistent", USER=account.name, LOGNAME=account.name)
    os.chdir("/")


def _let_python_be_read() -> None:
    """Opens the way to the interpreter and the sources, for this process alone: root's home is closed to others."""
    needed = [Path(place).resolve() for place in (sys.base_prefix, sys.prefix, Path(__file__).parents[2])]
    closed = {next((above for above in reversed(path.parents) if _is_closed(above)), None): path for path in needed}
    closed.pop(None, None)
    if not closed:
        return
    assert _LIBC.unshare(_CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    _leave_disks_of_other_tests()
    for above in closed:
        assert above is not None
        held = {path: os.open(path, os.O_PATH) for path in needed if above in path.parents}
        _mount("none", above, "tmpfs", 0, "mode=755")
        for path, fd in held.items():
            path.mkdir(parents=True)
            _mount(f"/proc/self/fd/{fd}", path, None, _MS_BIND | _MS_REC)
            os.close(fd)


def _leave_disks_of_other_tests() -> None:
    """Lets go of file systems in files: one that is mounted here still cannot have its power cut there."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        device, mount, *_ = line.split()
        if device.startswith("/dev/loop"):
            _LIBC.umount2(os.fsencode(mount.encode().decode("unicode_escape")), _MNT_DETACH)


def _is_closed(folder: Path) -> bool:
    return not folder.stat().st_mode & stat.S_IXOTH


def _mount(source: str | None, target: Path | str, kind: str | None, flags: int, options: str = "") -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    done = _LIBC.mount(*texts, ctypes.c_ulong(flags), options.encode() or None)
    assert done == 0, f"mount {target}: {os.strerror(ctypes.get_errno())}"


def done_as(account: Account, action: Callable[[], Any], umask: int = 0o022) -> str:
    """What an action gives, as text, in a process of the account; the text of its error if it raises."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        _end_with(lambda: os.write(writes, str(_as(account, action, umask)).encode()))
    os.close(writes)
    with open(reads, "rb") as file:  # noqa: PTH123 - a descriptor
        said = file.read().decode()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0, f"the process of {account.name} ended with {code}: {said}"
    return said


def _as(account: Account, action: Callable[[], Any], umask: int) -> Any:
    become(account, umask)
    try:
        return action()
    except Exception as error:  # noqa: BLE001 - the test looks at it
        return f"{type(error).__name__}: {error}"


def _end_with(action: Callable[[], object]) -> NoReturn:
    code = 1
    try:
        action()
        code = 0
    except BaseException:  # noqa: BLE001 - the child ends here, whatever happens
        traceback.print_exc()
    finally:
        os._exit(code)


class Stranger:
    """A process of the stranger's that does one turn after another, and counts what it has exchanged.

    Args:
        account: The stranger.
        turn: Gives how many things it has exchanged. What fails by a race that is lost is the next turn's.
    """

    def __init__(self, account: Account, turn: Callable[[], int]) -> None:
        self._shared = mmap(-1, 16)
        self._pid = os.fork()
        if self._pid == 0:
            _end_with(lambda: self._go_on(account, turn))

    def _go_on(self, account: Account, turn: Callable[[], int]) -> None:
        become(account, 0)
        parent = os.getppid()
        while not self._get(8) and os.getppid() == parent:
            with suppress(OSError):
                struct.pack_into("q", self._shared, 0, self.exchanged + turn())

    def _get(self, place: int) -> int:
        value: int = struct.unpack_from("q", self._shared, place)[0]
        return value

    @property
    def exchanged(self) -> int:
        """How many things it has exchanged."""
        return self._get(0)

    def wait_for(self, count: int, limit: float = 60.0) -> None:
        """Waits until it has exchanged so many more."""
        until = self.exchanged + count
        wait_until(lambda: self.exchanged >= until, limit, f"{count} exchanges of a stranger")

    def end(self) -> int:
        """Ends it, and gives how many things it has exchanged."""
        if self._pid:
            struct.pack_into("q", self._shared, 8, 1)
            pid, self._pid = self._pid, 0
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "the stranger had an error of its own"
        return self.exchanged


@contextmanager
def strange(account: Account, turn: Callable[[], int]) -> Iterator[Stranger]:
    """A stranger that is gone at the end."""
    stranger = Stranger(account, turn)
    try:
        yield stranger
    finally:
        stranger.end()


@contextmanager
def unprotected() -> Iterator[None]:
    """Lets links and pipes of others be followed in sticky directories, as kernels once did. Skips where it may not.

    A process of its own takes the protections away, and gives them back when this one says so, or has been killed.
    """
    with (Path(tempfile.gettempdir()) / f"{_PREFIX}protections.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (waits, ends), (says, problem) = os.pipe(), os.pipe()
        guard = os.fork()
        if guard == 0:
            os.setsid()
            os.close(ends)
            _end_with(lambda: _without_protections(problem, waits))
        os.close(waits)
        os.close(problem)
        try:
            if said := os.read(says, 1000).decode():
                pytest.skip(f"SKIPPED, NOT PASSED: the protections of links cannot be taken away here: {said}")
            yield
        finally:
            os.close(ends)
            os.close(says)
            os.waitpid(guard, 0)


def _without_protections(problem: int, waits: int) -> None:
    paths = [Path("/proc/sys/fs") / f"protected_{what}" for what in _PROTECTIONS]
    before: dict[Path, str] = {}
    try:
        for path in paths:
            before[path] = path.read_text()
            path.write_text("0")
    except OSError as error:
        os.write(problem, str(error).encode())
    os.close(problem)
    os.read(waits, 1)
    for path, value in before.items():
        with suppress(OSError):
            path.write_text(value)


@contextmanager
def open_folder() -> Iterator[Path]:
    """A directory that both accounts can reach, gone at the end, however deep somebody has dug in it."""
    folder = Path(tempfile.mkdtemp(prefix="holdfast-strangers-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        subprocess.run(["rm", "-rf", str(folder)], check=True)
