"""The machine as this process has it: memory, with the limits of the container, and the processors next to a card."""

import re
from pathlib import Path

_SYSFS = Path("/sys")
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


def processors_next_to(address: str, sysfs: Path = _SYSFS) -> frozenset[int]:
    """Returns the processors whose memory is the nearest to a device.

    Args:
        address: Its address on the PCI bus, as in `0000:3b:00.0`; may be empty.
        sysfs: The place of the kernel's files.

    Returns:
        Their numbers; none where nobody tells.
    """
    if not _ADDRESS.fullmatch(address):
        return frozenset()
    try:
        text = (sysfs / "bus/pci/devices" / address / "local_cpulist").read_text()
        ranges = [part.partition("-") for part in text.strip().split(",") if part]
        return frozenset(n for first, _, last in ranges for n in range(int(first), int(last or first) + 1))
    except (OSError, ValueError):
        return frozenset()
