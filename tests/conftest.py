"""Fixtures for everybody."""

from collections.abc import Iterator

import pytest

from trainings import Launcher


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Starts real processes that have the trainers imported already."""
    started = Launcher(tmp_path_factory.mktemp("processes"))
    yield started
    started.close()
