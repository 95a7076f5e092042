"""When a save that failed is tried again."""

import time

import pytest

from holdfast.engine.retry import Retry
from holdfast.run.request import Request

SCHEDULED = [Request("schedule", why="save_steps 5")]
STOPS = [Request("signal", stop=True, why="SIGTERM")]


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_the_pauses_of_a_schedule_double_up_to_the_longest_and_begin_anew_after_a_success(clock: Clock) -> None:
    again = Retry(lambda: None)
    pauses = []
    for _ in range(11):
        pauses.append(again.schedule(SCHEDULED, 0.0))
        assert again.seconds == pauses[-1]
        clock.now += pauses[-1] or 0.0
        assert again.seconds == 0
        (request,) = again.take()
        assert (request.door, request.why, request.stop) == ("schedule", "save_steps 5, tried again", False)
        assert again.seconds is None and again.take() == []
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    again.saved()
    assert again.schedule(SCHEDULED, 0.0) == 1


def test_a_try_is_not_taken_before_its_time_unless_it_is_hurried(clock: Clock) -> None:
    again = Retry(lambda: None)
    again.schedule(SCHEDULED, 0.0)
    clock.now += 0.5
    assert again.seconds == 0.5 and again.take() == []
    again.hurry()
    assert again.seconds == 0 and len(again.take()) == 1
    again.hurry()
    assert again.seconds is None, "nothing had failed"


def test_a_try_that_takes_long_is_not_made_more_often_than_that(clock: Clock) -> None:
    assert Retry(lambda: None).schedule(SCHEDULED, 40.0) == 40


def test_a_success_of_any_save_makes_good_for_what_was_missed(clock: Clock) -> None:
    again = Retry(lambda: None)
    again.schedule(SCHEDULED, 0.0)
    again.saved()
    clock.now += 10
    assert again.seconds is None and again.take() == []


def test_who_asked_and_was_answered_is_not_asked_for_again(clock: Clock) -> None:
    again = Retry(lambda: 25.0)
    assert again.schedule([Request("command"), Request("trigger_file")], 0.0) is None and again.seconds is None


def test_a_stop_is_tried_as_long_as_its_grace_lasts(clock: Clock) -> None:
    end = clock.now + 10.0
    again = Retry(lambda: end - clock.now)
    pauses = []
    while (pause := again.stop(STOPS, 0.0)) is not None:
        pauses.append(pause)
        assert again.stop_waits
        clock.now += pause
        assert again.seconds == 0 and again.take() == STOPS and not again.stop_waits
    assert pauses == [0.5, 1, 2, 4] and again.seconds is None and again.take() == []


def test_a_stop_goes_with_the_next_save_whoever_asks_for_that(clock: Clock) -> None:
    again = Retry(lambda: 10.0)
    again.stop(STOPS, 0.0)
    assert again.take() == STOPS and again.seconds is None


def test_without_a_grace_a_stop_is_not_tried_again(clock: Clock) -> None:
    again = Retry(lambda: None)
    assert again.stop(STOPS, 0.0) is None and not again.stop_waits and again.seconds is None
