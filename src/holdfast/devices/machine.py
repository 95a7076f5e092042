"""The machine as this process has it: memory, with the limits of its containers, and the processors next to a card."""

import re
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

_ROOT = Path("/")
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


class _Version(NamedTuple):
    """The files of a control group's memory, by the version of control groups."""

    limits: tuple[str, ...]
    used: str
    prefix: str
    """The beginning of those fields of `memory.stat` that count the groups below as well."""


_VERSION_1 = _Version(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_")
_VERSION_2 = _Version(("memory.max", "memory.high"), "memory.current", "")


def available_memory() -> int:
    """Returns the bytes that this process may still use: of the machine, its containers, and its own limits.

    Cache that can be dropped counts as free; 0 where nobody tells.
    """
    try:
        available = [psutil.virtual_memory().available, *_left_by_control_groups(_ROOT)]
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            available.append(limit - psutil.Process().memory_info().vms)
    except OSError:  # no /proc
        return 0
    return max(0, min(available))


def _left_by_control_groups(root: Path) -> Iterator[int]:
    """Gives what is left of each limit that this process is under: its own control group's, and its parents'.

    Args:
        root: The place of `/proc` and of the mount points, for a test.
    """
    groups = dict(_groups(root))
    for version, mount_root, mount_point in _mounts(root):
        group = Path(groups.get(version, "/"))
        place = root / mount_point.relative_to("/")
        below = group.relative_to(mount_root) if group.is_relative_to(mount_root) else Path()
        for directory in (place / below, *(place / below).parents):
            with suppress(OSError, ValueError):
                yield _left(directory, version)
            if directory == place:
                break


def _groups(root: Path) -> Iterator[tuple[_Version, str]]:
    """Gives the name of this process's control group, for each version."""
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if not controllers:
                yield _VERSION_2, group
            elif "memory" in controllers.split(","):
                yield _VERSION_1, group


def _mounts(root: Path) -> Iterator[tuple[_Version, Path, Path]]:
    """Gives the mounts of control groups that may limit memory: which group is at which place."""
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/mountinfo").read_text().splitlines():
            mount, _, of = line.partition(" - ")
            group, place = (Path(_unescaped(field)) for field in mount.split(" ")[3:5])
            kind, _, options = of.split(" ", 2)
            if kind == "cgroup2":
                yield _VERSION_2, group, place
            elif kind == "cgroup" and "memory" in options.split(","):
                yield _VERSION_1, group, place


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)


def _left(directory: Path, version: _Version) -> int:
    """Returns what is left of a control group's limit.

    Raises:
        OSError: It has none, or is none.
        ValueError: It has none.
    """
    texts = [(directory / name).read_text().strip() for name in version.limits if (directory / name).exists()]
    limit = min(int(text) for text in texts if text != "max")
    counted = dict(line.split(" ", 1) for line in (directory / "memory.stat").read_text().splitlines())

    def bytes_of(*names: str) -> int:
        return sum(int(counted.get(version.prefix + name, 0)) for name in names)

    dirty = ("dirty", "writeback") if version is _VERSION_1 else ("file_dirty", "file_writeback")
    clean = max(0, bytes_of("inactive_file", "active_file") - bytes_of(*dirty))
    return max(0, limit - max(0, int((directory / version.used).read_text()) - clean))


def processors_next_to(address: str, root: Path = _ROOT) -> frozenset[int]:
    """Returns the processors whose memory is the nearest to a device.

    Args:
        address: Its address on the PCI bus, as in `0000:3b:00.0`; may be empty.
        root: The place of `/sys`, for a test.

    Returns:
        Their numbers; none where nobody tells.
    """
    if not _ADDRESS.fullmatch(address):
        return frozenset()
    try:
        text = (root / "sys/bus/pci/devices" / address / "local_cpulist").read_text()
        ranges = [part.partition("-") for part in text.strip().split(",") if part]
        return frozenset(n for first, _, last in ranges for n in range(int(first), int(last or first) + 1))
    except (OSError, ValueError):
        return frozenset()
