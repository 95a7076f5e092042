"""The disks of two machines, written once."""

from typing import NamedTuple

import pytest

from beyond.machines import Disk, written


class Disks(NamedTuple):
    """What two machines save, one after the other."""

    first: Disk
    second: Disk


@pytest.fixture(scope="session")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Disks:
    root = tmp_path_factory.mktemp("disks")
    return Disks(written(root / "first", 1, 4), written(root / "second", 10, 3))
