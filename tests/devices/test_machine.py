"""The machine as a process has it: fake trees of the kernel's files, and a real control group where one may be made."""

import os
import resource
from collections.abc import Mapping
from pathlib import Path

import pytest

from holdfast.devices import machine
from holdfast.devices.machine import available_memory, processors_next_to

GiB = 1 << 30
V1_MOUNT = "35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n"
V2_MOUNT = "41 31 0:38 {root} /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n"


def proc(root: Path, groups: str, mounts: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    (root / "proc/self/mountinfo").write_text("22 27 0:21 / /sys rw - sysfs sysfs rw\n" + mounts)


def files(place: Path, contents: Mapping[str, int | str]) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (place / name).write_text(f"{content}\n")


def v2(
    root: Path, group: str, limit: int | str, used: int, cached: int = 0, high: int | str = "max", dirty: int = 0
) -> None:
    cache = f"inactive_file {cached // 2}\nactive_file {cached - cached // 2}\n"
    contents: dict[str, int | str] = {"memory.max": limit, "memory.current": used, "memory.high": high}
    contents["memory.stat"] = f"{cache}file_dirty {dirty}\nfile_writeback {dirty}"
    files(root / "sys/fs/cgroup" / group, contents)


def v1(root: Path, group: str, limit: int, used: int, cached: int = 0) -> None:
    stat = f"inactive_file 0\nactive_file 0\ntotal_inactive_file {cached}\ntotal_active_file 0\ntotal_dirty 0"
    contents: dict[str, int | str] = {
        "memory.limit_in_bytes": limit,
        "memory.usage_in_bytes": used,
        "memory.stat": stat,
    }
    files(root / "sys/fs/cgroup/memory" / group, contents)


def left(root: Path) -> int | None:
    return min(machine._left_by_control_groups(root), default=None)


def test_clean_cache_is_not_used(tmp_path: Path) -> None:
    """A container of 64 GiB that has read 55 GiB of a data set."""
    proc(tmp_path, "0::/\n", V2_MOUNT.format(root="/"))
    v2(tmp_path, "", 64 * GiB, 63 * GiB, cached=55 * GiB)
    assert left(tmp_path) == 56 * GiB


def test_cache_that_is_yet_to_be_written_is_used(tmp_path: Path) -> None:
    proc(tmp_path, "0::/\n", V2_MOUNT.format(root="/"))
    v2(tmp_path, "", 8 * GiB, 6 * GiB, cached=3 * GiB, dirty=GiB)
    assert left(tmp_path) == 3 * GiB


def test_the_tightest_of_the_own_group_and_its_parents_counts(tmp_path: Path) -> None:
    proc(tmp_path, "0::/kubepods/pod7/container\n", V2_MOUNT.format(root="/"))
    v2(tmp_path, "kubepods/pod7/container", "max", GiB)
    v2(tmp_path, "kubepods/pod7", 20 * GiB, 17 * GiB)
    v2(tmp_path, "kubepods", 100 * GiB, 20 * GiB)
    v2(tmp_path, "kubepods/pod8", 2 * GiB, 2 * GiB)
    files(tmp_path / "sys/fs/cgroup", {"memory.stat": "anon 0"})  # the root of all has no limit
    assert left(tmp_path) == 3 * GiB
    v2(tmp_path, "kubepods/pod7/container", 2 * GiB, GiB)
    assert left(tmp_path) == GiB


def test_a_limit_from_which_on_the_kernel_slows_a_process_down_is_one(tmp_path: Path) -> None:
    proc(tmp_path, "0::/x\n", V2_MOUNT.format(root="/"))
    v2(tmp_path, "x", 8 * GiB, GiB, high=4 * GiB)
    assert left(tmp_path) == 3 * GiB


def test_version_1_and_a_mount_that_shows_a_part_of_the_tree(tmp_path: Path) -> None:
    """A container that sees the host's names of its groups, and mounts its own alone."""
    groups = "9:name=systemd:/docker/abc\n4:cpu,memory:/docker/abc/inner\n0::/\n"
    proc(
        tmp_path,
        groups,
        V1_MOUNT.format(root="/docker/abc") + V2_MOUNT.format(root="/").replace("cgroup rw,", "unified rw,"),
    )
    v1(tmp_path, "", 10 * GiB, 9 * GiB, cached=2 * GiB)
    v1(tmp_path, "inner", 9223372036854771712, GiB)
    v1(tmp_path, "docker/abc", 1, 1)  # of a container inside of this one
    assert left(tmp_path) == 3 * GiB


def test_a_group_that_the_mount_does_not_show_is_looked_for_at_its_root(tmp_path: Path) -> None:
    proc(tmp_path, "0::/../elsewhere\n", V2_MOUNT.format(root="/mine"))
    v2(tmp_path, "", 4 * GiB, GiB)
    assert left(tmp_path) == 3 * GiB


def test_what_is_used_beyond_the_limit_leaves_nothing(tmp_path: Path) -> None:
    proc(tmp_path, "0::/\n", V2_MOUNT.format(root="/"))
    v2(tmp_path, "", GiB, 2 * GiB)
    assert left(tmp_path) == 0


@pytest.mark.parametrize("groups", ["", "nonsense\n", "4:memory:/x\n"])
def test_where_nobody_tells_there_is_no_limit(tmp_path: Path, groups: str) -> None:
    assert left(tmp_path) is None
    proc(tmp_path, groups, V1_MOUNT.format(root="/"))
    assert left(tmp_path) is None


def test_a_limit_of_the_process_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_memory() > 0
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1 << 20, 1 << 20))
    assert available_memory() == 0


def test_in_a_real_control_group_its_limit_counts() -> None:
    version, mount_root, mount_point = next(iter(machine._mounts(Path("/"))), (None, Path(), Path()))
    own = dict(machine._groups(Path("/"))).get(version, "/") if version is not None else "/"
    shown = Path(own).is_relative_to(mount_root)
    group = mount_point / (Path(own).relative_to(mount_root) if shown else "") / f"holdfast-{os.getpid()}"
    try:
        group.mkdir()
        limits = [group / name for name in version.limits[:1]] if version is not None else []
        for limit in limits:
            limit.write_text(str(64 << 20))
    except OSError as error:
        if group.exists():
            group.rmdir()
        pytest.skip(f"SKIPPED, NOT PASSED: no control group of one's own may be made here ({error})")
    try:
        before = available_memory()
        if not (pid := os.fork()):
            (group / "cgroup.procs").write_text(str(os.getpid()))
            inside = available_memory()
            os._exit(0 if 0 < inside <= 64 << 20 < before else 1)
        assert os.waitpid(pid, 0)[1] == 0
    finally:
        group.rmdir()


@pytest.mark.parametrize(
    ("content", "processors"),
    [("0-2,8,10-11\n", {0, 1, 2, 8, 10, 11}), ("3", {3}), ("\n", set()), ("nonsense", set()), (None, set())],
)
def test_the_processors_next_to_a_card_are_those_that_the_kernel_names(
    tmp_path: Path, content: str | None, processors: set[int]
) -> None:
    place = tmp_path / "sys/bus/pci/devices/0000:3b:00.0"
    place.mkdir(parents=True)
    if content is not None:
        (place / "local_cpulist").write_text(content)
    assert processors_next_to("0000:3b:00.0", tmp_path) == processors


@pytest.mark.parametrize("address", ["", "../../../etc", "0000:3b:00.0/../x", "0000:3B:00.0"])
def test_what_is_no_address_is_looked_for_nowhere(tmp_path: Path, address: str) -> None:
    (tmp_path / "sys/bus/pci/devices/x").mkdir(parents=True)
    (tmp_path / "sys/bus/pci/devices/x/local_cpulist").write_text("0")
    assert processors_next_to(address, tmp_path) == frozenset()
