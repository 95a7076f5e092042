"""A data worker's death is an error of the fetch, whatever training was doing when it died."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from helpers.waiting import wait_until
from holdfast.engine.worker_deaths import WorkerDeaths, is_death_of_one


@pytest.fixture
def deaths() -> Iterator[WorkerDeaths]:
    made = WorkerDeaths()
    yield made
    made.stop()


def test_a_worker_that_dies_between_two_fetches_is_told_of_at_the_next(deaths: WorkerDeaths) -> None:
    rows = torch.utils.data.TensorDataset(torch.zeros(1000, 2))
    batches: Any = iter(DataLoader(rows, num_workers=1, prefetch_factor=1))
    next(batches)
    before = signal.getsignal(signal.SIGCHLD)
    deaths.look()
    deaths.look()
    worker = batches._workers[0]
    os.kill(worker.pid, signal.SIGTERM)
    wait_until(lambda: not worker.is_alive())
    for _ in range(20):
        time.sleep(0)  # where a handler's error would come out
    with pytest.raises((RuntimeError, OSError, EOFError)) as died:
        list(batches)
    assert is_death_of_one(died.value)
    batches._shutdown_workers()
    deaths.stop()
    assert signal.getsignal(signal.SIGCHLD) is before


@pytest.mark.parametrize("error", [RuntimeError("CUDA error"), ConnectionResetError("the user's own"), ValueError()])
def test_other_errors_are_not_taken_for_a_workers_death(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        raise error
    assert not is_death_of_one(raised.value)


def test_an_error_that_a_worker_passes_on_is_the_users(deaths: WorkerDeaths) -> None:
    class Rows(torch.utils.data.Dataset[int]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> int:
            raise FileNotFoundError("row 0 is gone")

    batches: Any = iter(DataLoader(Rows(), num_workers=1))
    with pytest.raises(FileNotFoundError) as raised:
        next(batches)
    assert not is_death_of_one(raised.value)
    batches._shutdown_workers()


FETCHES = """
class One:
    def __del__(self):
        handle(17, frame())

def with_a_finalizer():
    One()

def direct():
    handle(17, frame())
"""


def test_a_finalizer_that_runs_in_a_fetch_does_not_swallow_a_workers_death(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[int] = []
    deaths = WorkerDeaths()
    monkeypatch.setattr(deaths, "_torchs", lambda number, _: raised.append(number))
    found: dict[str, Any] = {"handle": deaths._handle, "frame": sys._getframe}
    exec(compile(FETCHES, "/x/torch/utils/data/dataloader.py", "exec"), found)
    found["with_a_finalizer"]()
    assert raised == []
    found["direct"]()
    assert raised == [17]
