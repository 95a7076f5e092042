"""A real save, cut off or failed at one system call after another by strace."""

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from faults.harness import THOROUGH, UNTIL, acknowledged, copy_of_base, needs, require_nothing_lost, traced

Record = Callable[[str, object], None]

# What changes the disk. A kill before any other call leaves what a kill before the next of these leaves.
CHANGES = (
    *("openat", "mkdir", "mkdirat", "write", "pwrite64", "ftruncate", "fallocate", "fsync", "fdatasync"),
    *("rename", "renameat", "renameat2", "unlink", "unlinkat", "fchmod", "chmod"),
)
ERRORS = {
    "fsync": ("EIO", "EDQUOT"),
    "pwrite64": ("ENOSPC", "EIO"),
    "write": ("ENOSPC",),
    "mkdirat": ("ENOSPC",),
    "renameat": ("EIO",),
    "renameat2": ("EIO", "EXDEV", "EEXIST", "EINVAL"),
    "unlinkat": ("EACCES", "EBUSY"),
    "unlink": ("EROFS",),
    "fchmod": ("EPERM",),
    "openat": ("EMFILE",),
    "fstatfs": ("EIO",),
}


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("phase", ["start", "saves"])
@pytest.mark.parametrize("call", CHANGES)
def test_fault_01_02_a_kill_at_any_system_call_leaves_the_older_checkpoint_or_the_new_one(
    tmp_path: Path, call: str, phase: str, record_property: Record
) -> None:
    """SIGKILL by strace before the k-th call of a kind in a resume, or in saves that delete, for every k."""
    if not THOROUGH:
        pytest.skip("every call takes minutes: HOLDFAST_FAULTS=1, make test-faults")
    needs("strace")
    for count in itertools.count(1):
        run, output = copy_of_base(tmp_path / f"run-{count}"), tmp_path / f"said-{count}.txt"
        code = traced(run, output, f"{call}:signal=KILL:when={count}", phase)
        assert code in (0, -9), output.read_text()
        require_nothing_lost(run, acknowledged(run), f"{call} {count}")
        if code == 0:
            break
    record_property("injected", count - 1)


def test_fault_01_02_a_kill_at_some_system_calls_leaves_the_older_checkpoint_or_the_new_one(
    tmp_path: Path, record_property: Record
) -> None:
    """SIGKILL by strace before a seeded sample of system calls."""
    needs("strace")
    chance = random.Random(6)
    cases = [("fsync", 25), ("renameat2", 1), ("unlinkat", 6), ("pwrite64", chance.randint(1, 6))]
    cases += [(call, chance.randint(1, 30)) for call in ("fsync", "openat")]
    killed = 0
    for number, (call, count) in enumerate(cases):
        run = copy_of_base(tmp_path / f"run-{number}")
        code = traced(run, tmp_path / f"said-{number}.txt", f"{call}:signal=KILL:when={count}")
        killed += code == -9
        require_nothing_lost(run, acknowledged(run), f"{call} {count}")
    assert killed >= 4
    record_property("injected", killed)


def meets(folder: Path, call: str, what: str, phase: str, name: str, record: list[int]) -> None:
    """Training outlives an error of its saves; at its start it may end. Nothing is lost, and the next start goes on."""
    run, output = copy_of_base(folder / name), folder / f"{name}.txt"
    code = traced(run, output, f"{call}:{what}", phase)
    record.append(output.with_suffix(".strace").read_text(errors="replace").count("(INJECTED)"))
    assert code == 0 or (phase == "start" and code > 0), f"{name}: {code}\n{output.read_text()}"
    require_nothing_lost(run, acknowledged(run), name)


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("phase", ["start", "saves"])
@pytest.mark.parametrize(("call", "error"), [(call, error) for call, errors in ERRORS.items() for error in errors])
def test_fault_06_10_11_12_an_error_of_any_system_call_costs_a_save_at_most(
    tmp_path: Path, call: str, error: str, phase: str, record_property: Record
) -> None:
    """strace lets the k-th call of a kind fail, and then again it and all after it, for every k."""
    if not THOROUGH:
        pytest.skip("every call takes minutes: HOLDFAST_FAULTS=1, make test-faults")
    needs("strace")
    counts: list[int] = []
    for when in ("{}", "{}+"):
        for count in itertools.count(1):
            name = f"{count}-{len(when)}"
            meets(tmp_path, call, f"error={error}:when={when.format(count)}", phase, name, counts)
            if not counts[-1]:
                break
    record_property("injected", sum(counts))


def test_fault_06_10_12_an_error_of_some_system_calls_costs_a_save_at_most(
    tmp_path: Path, record_property: Record
) -> None:
    """strace lets a seeded sample of system calls fail, once and from there on."""
    needs("strace")
    cases = [
        ("fsync", "EIO", "9"),
        ("pwrite64", "ENOSPC", "1+"),
        ("renameat2", "EIO", "1"),
        ("mkdirat", "ENOSPC", "1+"),
    ]
    counts: list[int] = []
    for number, (call, error, when) in enumerate(cases):
        meets(tmp_path, call, f"error={error}:when={when}", "saves", str(number), counts)
    assert all(counts)
    record_property("injected", sum(counts))


def test_fault_14_a_slow_disk_is_waited_for(tmp_path: Path, record_property: Record) -> None:
    """strace delays each fsync by a tenth of a second."""
    needs("strace")
    run, output = copy_of_base(tmp_path / "run"), tmp_path / "said.txt"
    assert traced(run, output, "fsync:delay_enter=100000") == 0, output.read_text()
    record_property("injected", output.with_suffix(".strace").read_text(errors="replace").count("(DELAYED)"))
    assert acknowledged(run)[-1] == UNTIL
    require_nothing_lost(run, acknowledged(run))
