"""Directories in memory, and a machine that starts anew before each look at who is alive."""

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.run import lease


@pytest.fixture(autouse=True)
def reboots(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests are the process that died and the one that starts after it: its boot is always another one."""
    boots = itertools.count()
    monkeypatch.setattr(lease, "_boot", lambda: f"boot {next(boots)}")


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, where there is such: thousands of small directories are made in it."""
    place = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=place if place.is_dir() else tmp_path) as folder:
        yield Path(folder)
