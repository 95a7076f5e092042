"""The disks of two machines, written once."""

from typing import NamedTuple

import pytest

from beyond.machines import Disk, written
from holdfast.remote import download


class Disks(NamedTuple):
    """What two machines save, one after the other."""

    first: Disk
    second: Disk


@pytest.fixture(scope="session")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Disks:
    root = tmp_path_factory.mktemp("disks")
    return Disks(written(root / "first", 1, 4), written(root / "second", 10, 3))


@pytest.fixture(autouse=True)
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process makes one request after another, so that what two of them do can be done again."""
    monkeypatch.setattr(download, "BLOCKS_AT_ONCE", 1)
