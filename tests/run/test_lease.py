import dataclasses
import errno
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.failing_disk import FailingDisk, fails_with
from helpers.support import RUN, dies_at, line_of, process, tell
from helpers.waiting import wait_until
from holdfast.errors import LeaseLostError, RunBusyError
from holdfast.run import lease
from holdfast.run.directory import RunDirectory
from holdfast.run.lease import HEARTBEAT_LIMIT_SECONDS, Holder, Lease

HOLD = """
import sys
from pathlib import Path
from holdfast.errors import RunBusyError
from holdfast.run.directory import RunDirectory
from holdfast.run.lease import Lease

directory = RunDirectory.open(Path(sys.argv[1]))
print("ready")
sys.stdin.readline()
try:
    lease = Lease.take(directory, None)
    print("holds", lease.holder.generation)
except RunBusyError as error:
    print("busy", error)
sys.stdin.readline()
"""


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    made = RunDirectory.create(tmp_path)
    return made


def held_by(directory: RunDirectory, **changes: Any) -> Holder:
    """Has the lease say that somebody else holds it: this process, but for the changes."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    started = float(Path(f"/proc/{os.getpid()}/stat").read_text().rpartition(")")[2].split()[19])
    fields: dict[str, Any] = {
        "run": RUN,
        "token": "a" * 32,
        "generation": 4,
        "host": socket.gethostname(),
        "boot": boot,
    }
    holder = Holder(**({**fields, "pid": os.getpid(), "started": started} | changes))
    directory.lease.path.write_text(json.dumps(dataclasses.asdict(holder)))
    return holder


def test_the_first_start_begins_a_run_and_a_resume_keeps_its_identity(directory: RunDirectory) -> None:
    first = Lease.take(directory, None)
    assert (first.holder.generation, first.holder.pid) == (1, os.getpid())
    first.release()
    second = Lease.take(directory, first.holder.run)
    assert (second.holder.run, second.holder.generation) == (first.holder.run, 2)
    second.release()
    third = Lease.take(directory, None)
    assert third.holder.run != first.holder.run and third.holder.generation == 3


def test_a_second_start_while_this_process_trains_is_refused(directory: RunDirectory) -> None:
    held = Lease.take(directory, None)
    with pytest.raises(RunBusyError, match=rf"this process \(process {os.getpid()}\) is training the run") as raised:
        Lease.take(directory, None)
    assert raised.value.exit_code == 1 and "close()" in (raised.value.hint or "")
    held.check()


def test_a_second_start_on_the_run_of_another_process_says_how_to_stop_it(directory: RunDirectory) -> None:
    with process(HOLD, directory.root) as other:
        assert line_of(other) == "ready"
        tell(other, "go")
        assert line_of(other) == "holds 1"
        with pytest.raises(RunBusyError, match=f"^process {other.pid} is training the run in") as raised:
            Lease.take(directory, None)
    assert raised.value.hint == f"stop it with: holdfast stop {directory.root}"
    assert raised.value.__notes__ == [raised.value.hint], "a trace would not show the way out"


def test_of_many_that_start_at_once_one_holds_the_lease(directory: RunDirectory) -> None:
    def started() -> Iterator[Any]:
        for _ in range(4):
            yield process(HOLD, directory.root)

    contexts = list(started())
    processes = [context.__enter__() for context in contexts]
    try:
        assert {line_of(one) for one in processes} == {"ready"}
        for one in processes:
            tell(one, "take")
        said = sorted(line_of(one).split()[0] for one in processes)
    finally:
        for context in contexts:
            context.__exit__(None, None, None)
    assert said == ["busy", "busy", "busy", "holds"]


def test_a_holder_that_was_killed_is_taken_over_even_while_nobody_has_buried_it(directory: RunDirectory) -> None:
    with process(HOLD, directory.root) as holder:
        assert line_of(holder) == "ready"
        tell(holder, "take")
        assert line_of(holder) == "holds 1"
        with pytest.raises(RunBusyError, match=f"process {holder.pid} is training"):
            Lease.take(directory, None)
        os.kill(holder.pid, signal.SIGKILL)
        wait_until(lambda: Path(f"/proc/{holder.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
        assert Lease.take(directory, None).holder.generation == 2


def test_while_checkpoints_are_brought_there_nobody_trains_and_nobody_else_brings_any(directory: RunDirectory) -> None:
    with lease.kept_free(directory):
        for another in (lambda: Lease.take(directory, None), lambda: lease.kept_free(directory).__enter__()):
            with pytest.raises(RunBusyError, match=f"^holdfast pull is bringing checkpoints into {directory.root}"):
                another()
    held = Lease.take(directory, None)
    with pytest.raises(RunBusyError, match="is training the run"), lease.kept_free(directory):
        pass
    held.release()
    with lease.kept_free(directory):
        pass


def test_security_s10_a_process_that_only_has_the_number_of_the_holder_is_not_the_holder(
    directory: RunDirectory,
) -> None:
    """The lease names a living process that was started at another time."""
    held_by(directory, started=1.0)
    assert Lease.take(directory, None).holder.generation == 5


def test_security_s10_a_holder_from_before_the_machine_was_started_is_dead(directory: RunDirectory) -> None:
    """The lease names a living process of another boot."""
    held_by(directory, boot="00000000-0000-0000-0000-000000000000")
    assert Lease.take(directory, None).holder.generation == 5


def test_the_same_process_named_in_full_is_alive(directory: RunDirectory) -> None:
    assert lease.is_alive(directory, held_by(directory))
    assert not lease.is_alive(directory, held_by(directory, released=True))


def test_a_holder_on_another_host_is_alive_as_long_as_it_is_heard_of(directory: RunDirectory) -> None:
    held_by(directory, host="elsewhere", pid=1)
    directory.status.path.touch()
    now = time.time()
    for path in (directory.lease.path, directory.status.path):
        os.utime(path, (now - 5, now - 5))
    with pytest.raises(RunBusyError, match="process 1 on elsewhere is training"):
        Lease.take(directory, None)
    for path in (directory.lease.path, directory.status.path):
        os.utime(path, (now - HEARTBEAT_LIMIT_SECONDS - 5,) * 2)
    assert Lease.take(directory, None).holder.generation == 5


def test_a_holder_on_another_host_that_has_only_just_started_is_alive(directory: RunDirectory) -> None:
    directory.status.path.touch()
    os.utime(directory.status.path, (1000, 1000))  # of the run before
    held_by(directory, host="elsewhere")
    with pytest.raises(RunBusyError):
        Lease.take(directory, None)


def test_who_was_taken_over_notices_and_takes_nothing_back(directory: RunDirectory) -> None:
    mine = Lease.take(directory, None)
    mine.check()
    other = held_by(directory)
    with pytest.raises(LeaseLostError, match="another process has taken over the run"):
        mine.check()
    mine.release()
    assert lease.read(directory) == other, "it released what it does not hold"


def test_a_lease_that_is_gone_is_lost(directory: RunDirectory) -> None:
    mine = Lease.take(directory, None)
    directory.lease.path.unlink()
    with pytest.raises(LeaseLostError, match=r"is gone, .* to save again, start the training again"):
        mine.check()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b'{"run": 1}', b"[" * 100_000],
    ids=["empty", "half", "a list", "an empty object", "too little", "very deep"],
)
def test_a_lease_that_cannot_be_read_holds_nobody_up(directory: RunDirectory, content: bytes) -> None:
    directory.lease.path.write_bytes(content)
    assert lease.read(directory) is None
    assert Lease.take(directory, None).holder.generation == 1


@pytest.mark.parametrize(
    "changes", [{"run": "../.."}, {"token": ""}, {"pid": "1"}, {"started": None}, {"more": 1}], ids=str
)
def test_a_lease_that_breaks_a_rule_is_none(directory: RunDirectory, changes: dict[str, Any]) -> None:
    content = dataclasses.asdict(held_by(directory))
    directory.lease.path.write_text(json.dumps({**content, **changes}))
    assert lease.read(directory) is None


def test_a_crash_at_any_change_while_it_is_taken_leaves_it_to_be_taken(tmp_path: Path) -> None:
    for count in range(1, 30):
        root = tmp_path / str(count)
        root.mkdir()
        directory = RunDirectory.create(root)
        Lease.take(directory, RUN).release()
        died = dies_at(count, lambda directory=directory: Lease.take(directory, RUN))  # type: ignore[misc]
        generation = Lease.take(directory, RUN).holder.generation
        assert generation in (2, 3)
        if not died:
            assert count > 3 and generation == 3
            return
    raise AssertionError("taking a lease has no end")


def test_a_heartbeat_is_the_latest_sign_of_life(directory: RunDirectory) -> None:
    assert lease.heartbeat(directory) == 0.0
    directory.lease.path.touch()
    os.utime(directory.lease.path, (1000, 1000))
    assert lease.heartbeat(directory) == 1000
    directory.status.path.touch()
    os.utime(directory.status.path, (2000, 2000))
    assert lease.heartbeat(directory) == 2000
    os.utime(directory.lease.path, (3000, 3000))
    assert lease.heartbeat(directory) == 3000


def test_a_lease_that_cannot_be_read_just_now_is_neither_lost_nor_free(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path)
    lease = Lease.take(directory, RUN)
    for decide in (lease.check, lambda: Lease.take(directory, RUN)):
        with pytest.MonkeyPatch.context() as patch:
            FailingDisk({"read"}, 1, fails_with(errno.EIO), lasting=True).install(patch)
            with pytest.raises(OSError, match="Input/output error"):
                decide()
    lease.check()
