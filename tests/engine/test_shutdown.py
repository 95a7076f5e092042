"""What a stop explains, and when it is known."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from helpers.waiting import wait_until
from holdfast.engine.shutdown import Shutdown
from holdfast.run.request import Request


class SlowTraining:
    """A training whose disk takes its time to take a request in."""

    nothing_new = None
    stop_saved = None
    may_be_alone = False
    unsaved = ""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.disk = threading.Event()
        self.accepted: list[Request] = []

    def accept(self, request: Request) -> bool:
        self.asked.set()
        self.disk.wait(30)
        self.accepted.append(request)
        return True

    def say(self, text: str) -> None:
        pass

    def abandon(self, why: str, code: int) -> None:
        pass


@pytest.fixture
def training() -> SlowTraining:
    return SlowTraining()


@pytest.fixture
def stopping(training: SlowTraining) -> Iterator[Shutdown]:
    made = Shutdown(training, 60.0)
    assert made.start()
    yield made
    training.disk.set()
    made.stop()
    made.over()


def test_a_workers_death_is_the_stop_only_when_its_request_waits(training: SlowTraining, stopping: Shutdown) -> None:
    """Training that left earlier would find nothing to save, and end as if it were finished."""
    os.kill(os.getpid(), signal.SIGTERM)
    assert training.asked.wait(30)
    found: list[bool] = []
    died = RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")
    leaving = threading.Thread(target=lambda: found.append(stopping.explains(died)))
    leaving.start()
    leaving.join(1.5)
    assert not found
    training.disk.set()
    wait_until(lambda: found)
    assert found == [True] and training.accepted[0].stop
    leaving.join()


def test_a_workers_death_without_a_stop_is_an_error(stopping: Shutdown) -> None:
    assert not stopping.explains(RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed."))


@pytest.mark.parametrize(("grace", "left"), [(60.0, 10.0), (5.0, 4.5)])
def test_a_rank_that_others_have_left_gets_a_moment_of_its_grace(
    training: SlowTraining, grace: float, left: float
) -> None:
    """The other's process has to end before what this one waits for fails, which took 4 s on a busy machine."""
    stopping = Shutdown(training, grace)
    try:
        stopping.hurry()
        assert stopping.seconds_left is None
        stopping.begin()
        for _ in range(2):
            stopping.hurry()
            assert stopping.seconds_left == pytest.approx(left, abs=0.4)
    finally:
        stopping.over()
