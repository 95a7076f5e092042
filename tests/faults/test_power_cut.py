"""The power fails in the middle of a real save, on real file systems: what was answered is there."""

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from faults.disks import KINDS, Disk, disk
from faults.harness import THOROUGH, acknowledged, needs, require_nothing_lost, traced

Record = Callable[[str, object], None]
CHANGES = ("pwrite64", "fchmod", "fsync", "mkdir", "mkdirat", "rename", "renameat", "renameat2", "unlink", "unlinkat")


def is_cut(place: Disk, folder: Path, name: str, call: str, count: int) -> bool:
    """Cuts the power before the count-th `call` of a save, or after the last; whether there were so many."""
    run = place.with_base(name)
    code = traced(run, folder / f"{name}.txt", f"{call}:signal=KILL:when={count}")
    answered = acknowledged(run)
    place.cut_the_power()
    require_nothing_lost(run, answered, f"{call} {count}")
    return code == -9


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("kind", KINDS)
def test_fault_03_04_05_what_was_answered_is_there_after_a_power_cut_anywhere(
    tmp_path: Path, kind: str, record_property: Record
) -> None:
    """The file system is shut down without its journal before each changing system call, and after the last."""
    if not THOROUGH:
        pytest.skip("every call takes minutes: HOLDFAST_FAULTS=1, make test-faults")
    needs("strace", root=True)
    cuts = 0
    with disk(tmp_path, kind) as place:
        for call in CHANGES:
            for count in itertools.count(1):
                cuts += 1
                if not is_cut(place, tmp_path, f"{call}-{count}", call, count):
                    break
    record_property("injected", cuts)


@pytest.mark.parametrize("kind", KINDS)
def test_fault_03_04_what_was_answered_is_there_after_a_power_cut_somewhere(
    tmp_path: Path, kind: str, record_property: Record
) -> None:
    """The file system is shut down without its journal before a seeded sample of calls, and after the last."""
    needs("strace", root=True)
    chance = random.Random(kind)
    cases = [("renameat2", 1), ("fsync", chance.randint(8, 30)), ("fsync", 1000)]
    with disk(tmp_path, kind) as place:
        found = [is_cut(place, tmp_path, f"{call}-{count}", call, count) for call, count in cases]
    assert found[0] and not found[-1], "before the first rename, and after the last answer"
    record_property("injected", len(cases))
