from dataclasses import replace

from holdfast.mirror.queue import Kind, Queued
from holdfast.mirror.turns import next_of, overtaken


def queued(step: int, kind: Kind = "scheduled", *protected: int) -> Queued:
    return Queued(attempt(step), step, step, 1, kind, tuple(map(attempt, protected)), 1.0)


def attempt(step: int) -> str:
    return f"{step:032x}"


def steps(waiting: list[Queued]) -> list[int]:
    return [each.step for each in waiting]


def test_a_scheduled_one_is_overtaken_by_whatever_comes_later_and_no_other_is() -> None:
    waiting = [queued(1), queued(2, "requested"), queued(3), queued(4, "stop"), queued(5)]
    assert steps(overtaken(waiting)) == [1, 3]
    assert overtaken(waiting[:1]) == [] and overtaken([]) == []


def test_what_the_newest_needs_beside_it_is_not_overtaken() -> None:
    assert steps(overtaken([queued(1), queued(2), queued(3, "scheduled", 1)])) == [2]
    assert steps(overtaken([queued(1), queued(2, "scheduled", 1), queued(3)])) == [1, 2], "the newest alone counts"


def test_where_nobody_knows_what_the_newest_needs_nothing_is_overtaken() -> None:
    assert overtaken([queued(1), queued(2), replace(queued(3), protected=None)]) == []


def test_the_newest_and_the_oldest_are_sent_in_turns() -> None:
    waiting = [queued(step, "requested") for step in range(1, 6)]
    sent, newest_was_last = [], False
    while waiting:
        turn = next_of(waiting, newest_was_last=newest_was_last)
        newest_was_last = turn is waiting[-1]
        sent.append(turn.step)
        waiting.remove(turn)
    assert sent == [5, 1, 4, 2, 3]


def test_a_stop_comes_first_whosever_turn_it_is() -> None:
    waiting = [queued(1, "requested"), queued(2, "stop"), queued(3, "requested")]
    assert {next_of(waiting, newest_was_last=turn).step for turn in (True, False)} == {2}
