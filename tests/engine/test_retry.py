"""When a save that failed is tried retry."""

import time
from pathlib import Path

import pytest

from holdfast.engine.retry import Retry
from holdfast.engine.stop import Stop
from holdfast.run.request import Request
from holdfast.run.status import Status, StatusFile

SCHEDULED = [Request("schedule", why="save_steps 5")]
STOPS = [Request("signal", stop=True, why="SIGTERM")]


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def stopped(tmp_path: Path, left: float | None) -> Stop:
    """A stop with so many seconds of its grace left for saving; None: there is no stop."""
    stop = Stop(100.0, StatusFile(tmp_path / "status.json", Status("run", 1)))
    if left is not None:
        stop.begin()
        stop._ends_at = time.monotonic() + left
    return stop


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_the_pauses_of_a_schedule_double_up_to_the_longest_and_begin_anew_after_a_success(
    clock: Clock, tmp_path: Path
) -> None:
    retry = Retry(stopped(tmp_path, None))
    pauses = []
    for _ in range(11):
        pauses.append(retry.schedule(SCHEDULED, 0.0))
        assert retry.seconds == pauses[-1]
        clock.now += pauses[-1] or 0.0
        assert retry.seconds == 0
        (request,) = retry.take()
        assert (request.door, request.why, request.stop) == ("schedule", "save_steps 5, tried again", False)
        assert retry.seconds is None and retry.take() == []
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    retry.saved()
    assert retry.schedule(SCHEDULED, 0.0) == 1


def test_a_try_is_not_taken_before_its_time_unless_it_is_hurried(clock: Clock, tmp_path: Path) -> None:
    retry = Retry(stopped(tmp_path, None))
    retry.schedule(SCHEDULED, 0.0)
    clock.now += 0.5
    assert retry.seconds == 0.5 and retry.take() == []
    retry.hurry()
    assert retry.seconds == 0 and len(retry.take()) == 1
    retry.hurry()
    assert retry.seconds is None, "nothing had failed"


def test_a_try_that_takes_long_is_not_made_more_often_than_that(clock: Clock, tmp_path: Path) -> None:
    assert Retry(stopped(tmp_path, None)).schedule(SCHEDULED, 40.0) == 40


def test_a_success_of_any_save_makes_good_for_what_was_missed(clock: Clock, tmp_path: Path) -> None:
    retry = Retry(stopped(tmp_path, None))
    retry.schedule(SCHEDULED, 0.0)
    retry.saved()
    clock.now += 10
    assert retry.seconds is None and retry.take() == []


def test_who_asked_and_was_answered_is_not_asked_for_again(clock: Clock, tmp_path: Path) -> None:
    retry = Retry(stopped(tmp_path, 25.0))
    assert retry.schedule([Request("command"), Request("trigger_file")], 0.0) is None and retry.seconds is None


def test_a_stop_is_tried_as_long_as_its_grace_lasts(clock: Clock, tmp_path: Path) -> None:
    retry = Retry(stopped(tmp_path, 10.0))
    pauses = []
    while (pause := retry.stop(STOPS, 0.0)) is not None:
        pauses.append(pause)
        assert retry.stop_waits
        clock.now += pause
        assert retry.seconds == 0 and retry.take() == STOPS and not retry.stop_waits
    assert pauses == [0.5, 1, 2, 4, 2] and retry.seconds is None and retry.take() == []


def test_the_last_try_of_a_stop_has_twice_the_time_that_the_one_before_took(clock: Clock, tmp_path: Path) -> None:
    retry = Retry(stopped(tmp_path, 10.0))
    pauses = []
    while (pause := retry.stop(STOPS, 2.0)) is not None:
        pauses.append(pause)
        clock.now += pause + 2.0
    assert pauses == [2, 2], "two seconds are left, which the next would need"


def test_a_stop_goes_with_the_next_save_whoever_asks_for_that(clock: Clock, tmp_path: Path) -> None:
    retry = Retry(stopped(tmp_path, 10.0))
    retry.stop(STOPS, 0.0)
    assert retry.take() == STOPS and retry.seconds is None


def test_without_a_grace_a_stop_is_not_tried_again(clock: Clock, tmp_path: Path) -> None:
    retry = Retry(stopped(tmp_path, None))
    assert retry.stop(STOPS, 0.0) is None and not retry.stop_waits and retry.seconds is None
