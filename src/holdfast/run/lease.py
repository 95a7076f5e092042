"""The lease of a run, which one process trains: a second start is refused on a live run, and takes over a dead one."""

import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from holdfast.errors import LeaseLostError, RunBusyError
from holdfast.run.directory import RunDirectory
from holdfast.store import files, names
from holdfast.store.folder import exists, open_at, status_of
from holdfast.text import shown

# A process on another host cannot be looked at. Without a heartbeat for this long it is taken for dead.
HEARTBEAT_LIMIT_SECONDS = 30.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Whoever brings checkpoints into the directory of a run that nobody trains holds a lock on this file.
_BRINGING = "bringing"
_OPENED = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Holder:
    """The process that holds, or held, a run's lease. `generation` grows with every start in this directory."""

    run: str
    token: str
    generation: int
    host: str
    boot: str
    pid: int
    started: float
    released: bool = False


class Lease:
    """The right to write checkpoints into a run directory.

    Args:
        directory: The run directory.
        holder: This process.
    """

    def __init__(self, directory: RunDirectory, holder: Holder) -> None:
        self._directory = directory
        self.holder = holder

    @classmethod
    def take(cls, directory: RunDirectory, continues: str | None) -> "Lease":
        """Takes the lease.

        Args:
            directory: The run directory.
            continues: The identity of the run that goes on here; None begins a new one.

        Raises:
            RunBusyError: Another process that is alive holds it, or one brings checkpoints here.
        """
        with _locked(directory):
            _require_nobody_brings(directory)
            last = _certainly(directory)
            if last is not None and is_alive(directory, last):
                raise _busy(directory, last)
            generation = 1 if last is None else last.generation + 1
            lease = cls(directory, _myself(continues or uuid.uuid4().hex, generation))
            files.replace(directory.lease, json.dumps(asdict(lease.holder), indent=1).encode())
        return lease

    def assign(self, run: str) -> None:
        """Gives the lease to another run: what this start goes on with was not known when it was taken.

        Raises:
            LeaseLostError: Another process has taken it.
            OSError: It cannot be written.
        """
        with _locked(self._directory):
            self.check()
            self.holder = replace(self.holder, run=run)
            files.replace(self._directory.lease, json.dumps(asdict(self.holder), indent=1).encode())

    def check(self) -> None:
        """Tells whether this process still holds the lease.

        Called just before a checkpoint is published. Looking and publishing are two steps, so a takeover right in
        between goes unseen; the other host waits 30 s, which makes that a matter of a stopped process alone.

        Raises:
            LeaseLostError: Another process has taken the run over, or the lease is gone.
            OSError: The lease cannot be read, so nobody knows.
        """
        if not is_ours(self._directory, self.holder.token):
            if not exists(self._directory.lease):
                raise LeaseLostError(
                    f"{self._directory.lease} is gone, so that nobody can tell who trains the run: somebody removed it;"
                    " to save again, start the training again"
                )
            raise LeaseLostError(
                f"another process has taken over the run in {self._directory.root}",
                hint="this process can no longer save there; it took too long, or two were started",
            )

    def release(self) -> None:
        """Gives the lease back, so that the next start need not look whether this process is alive."""
        with _locked(self._directory):
            now = read(self._directory)
            if now is not None and now.token == self.holder.token:
                files.replace(self._directory.lease, json.dumps({**asdict(now), "released": True}, indent=1).encode())


@contextmanager
def kept_free(directory: RunDirectory) -> Iterator[None]:
    """Keeps a run directory free of trainings, and of others who bring checkpoints there, while this one brings some.

    Raises:
        RunBusyError: A process trains there, or another brings checkpoints.
    """
    with _locked(directory):
        holder = _certainly(directory)
        if holder is not None and is_alive(directory, holder):
            raise _busy(directory, holder)
        fd = open_at(directory.control / _BRINGING, _OPENED | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise _brings(directory) from None
    try:
        yield
    finally:
        os.close(fd)


def _require_nobody_brings(directory: RunDirectory) -> None:
    with suppress(FileNotFoundError):
        fd = open_at(directory.control / _BRINGING, _OPENED)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _brings(directory) from None
        finally:
            os.close(fd)


def _brings(directory: RunDirectory) -> RunBusyError:
    return RunBusyError(
        f"holdfast pull is bringing checkpoints into {directory.root}",
        hint="wait until that has ended, or choose another directory",
    )


def read(directory: RunDirectory) -> Holder | None:
    """Returns the process that holds or held the lease; None where none ever did, or it cannot be read."""
    return _holder(directory.read_json(directory.lease))


def is_ours(directory: RunDirectory, token: str) -> bool:
    """Tells whether a run's lease is still that of a process, wherever the name of the control directory leads.

    Where it leads to another one with a later lease, a start that came meanwhile has the run: nobody but this user can
    have made that. An earlier lease was moved there together with its directory.

    Raises:
        OSError: The lease cannot be read, so nobody knows.
    """
    holder = _certainly(directory)
    if holder is None or holder.token != token:
        return False
    named = directory.as_named()
    other = None if named is None else _certainly(named)
    return named is None or other is None or other.token == token or _taken_at(named) < _taken_at(directory)


def _taken_at(directory: RunDirectory) -> int:
    return status_of(directory.lease).st_mtime_ns


def follow(directory: RunDirectory, token: str) -> None:
    """Holds the control directory that other processes find, where a run with that lease has made it anew."""
    named = directory.as_named()
    holder = None if named is None else read(named)
    if named is not None and holder is not None and holder.token == token:
        directory.exchange_control(named)


def _certainly(directory: RunDirectory) -> Holder | None:
    """Returns the holder, for decisions: raises where a failing disk does not show a lease, which is not gone then."""
    try:
        data = files.read(directory.lease, limit=1 << 20)
    except FileNotFoundError:
        return None
    try:
        return _holder(json.loads(data))
    except (ValueError, RecursionError):
        return None


def _holder(content: object) -> Holder | None:
    kinds: dict[str, Any] = Holder.__annotations__
    if not isinstance(content, dict) or set(content) != set(kinds):
        return None
    for key, kind in kinds.items():
        if not isinstance(content[key], (int, float) if kind is float else kind):
            return None
    holder = Holder(**content)
    return holder if names.is_token(holder.run) and names.is_token(holder.token) else None


def is_alive(directory: RunDirectory, holder: Holder) -> bool:
    """Tells whether the holder's process still runs: by looking at it on this host, by its heartbeat on another."""
    if holder.released:
        return False
    if holder.host == socket.gethostname():
        return holder.boot == _boot() and _start_of(holder.pid) == holder.started
    return time.time() - heartbeat(directory) < HEARTBEAT_LIMIT_SECONDS


def is_this_process(holder: Holder) -> bool:
    """Tells whether this very process is, or was, the holder."""
    return holder.host == socket.gethostname() and holder.pid == os.getpid()


def heartbeat(directory: RunDirectory) -> float:
    """Returns the time of the last sign of life, in seconds since the epoch: the status is rewritten every second.

    A run that has only just begun has a new lease, and maybe the status of the run before.
    """
    latest = 0.0
    for place in (directory.status, directory.lease):
        with suppress(OSError):
            latest = max(latest, status_of(place).st_mtime)
    return latest


def _busy(directory: RunDirectory, holder: Holder) -> RunBusyError:
    here = holder.host == socket.gethostname()
    if is_this_process(holder):
        return RunBusyError(
            f"this process (process {holder.pid}) is training the run in {directory.root} already",
            hint="end the training that was begun first: leave its with block, or call its close()",
        )
    where = f"process {holder.pid}" + ("" if here else f" on {shown(holder.host)}")
    return RunBusyError(
        f"{where} is training the run in {directory.root}",
        hint=f"stop it with: holdfast stop {directory.root}",
    )


def _myself(run: str, generation: int) -> Holder:
    pid = os.getpid()
    return Holder(run, uuid.uuid4().hex, generation, socket.gethostname(), _boot(), pid, _start_of(pid) or 0.0)


def _boot() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _start_of(pid: int) -> float | None:
    """Returns the time at which a process was started, in the system's own unit; None where it runs no more.

    The kernel counts ticks since it started, which no change of the clock moves; psutil's seconds since the epoch do
    move, and serve where there is no /proc.
    """
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state == "Z" else float(rest[18])
    except OSError:
        if _BOOT_ID.exists():
            return None
    import psutil

    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


@contextmanager
def _locked(directory: RunDirectory) -> Iterator[None]:
    """Keeps other processes from looking at the lease and changing it."""
    fd = open_at(directory.control / "lock", _OPENED | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
