from pathlib import Path

import pytest

from holdfast.devices.machine import processors_next_to


@pytest.mark.parametrize(
    ("content", "processors"),
    [("0-2,8,10-11\n", {0, 1, 2, 8, 10, 11}), ("3", {3}), ("\n", set()), ("nonsense", set()), (None, set())],
)
def test_the_processors_next_to_a_card_are_those_that_the_kernel_names(
    tmp_path: Path, content: str | None, processors: set[int]
) -> None:
    place = tmp_path / "bus/pci/devices/0000:3b:00.0"
    place.mkdir(parents=True)
    if content is not None:
        (place / "local_cpulist").write_text(content)
    assert processors_next_to("0000:3b:00.0", tmp_path) == processors


@pytest.mark.parametrize("address", ["", "../../../etc", "0000:3b:00.0/../x", "0000:3B:00.0"])
def test_what_is_no_address_is_looked_for_nowhere(tmp_path: Path, address: str) -> None:
    (tmp_path / "bus/pci/devices/x").mkdir(parents=True)
    (tmp_path / "bus/pci/devices/x/local_cpulist").write_text("0")
    assert processors_next_to(address, tmp_path) == frozenset()
