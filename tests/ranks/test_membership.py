"""What rank 0 knows of ranks that have told nothing yet, over a real store."""

import itertools
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest

from helpers.waiting import wait_until
from holdfast.errors import SaveError
from holdfast.ranks import channel
from holdfast.ranks.channel import Channel
from holdfast.ranks.coordinator import Coordinator, Record
from holdfast.ranks.heartbeat import Heartbeat
from holdfast.ranks.keys import record_key
from holdfast.ranks.membership import Membership
from holdfast.run.request import Request
from ranks.real_store import RealStore

SECONDS = 0.5


class Three:
    """Rank 0 of three, in which nobody trains, with the ends of the others."""

    def __init__(self, store: RealStore) -> None:
        self.store = store
        self.asked: list[Request] = []
        self.shown: list[dict[str, Any]] = []
        self.roll = Membership(self.channel(0), self.asked.append, self.show, lambda: None)

    def channel(self, rank: int) -> Channel:
        return Channel(self.store.client(), rank, 3, SECONDS)

    def beat(self, rank: int) -> Heartbeat:
        return Heartbeat(
            self.channel(rank), lambda: {"step": rank, "boundary": 1, "phase": "training", "held": False}, print
        )

    def show(self, ranks: list[dict[str, Any]]) -> None:
        self.shown = ranks


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> Iterator[Three]:
    monkeypatch.setattr(channel, "_trainings", itertools.repeat(0))  # these ranks are in one process
    with RealStore() as store:
        made = Three(store)
        made.roll.start()
        yield made
        made.roll.close()


def test_a_rank_that_dies_before_it_has_told_anything_is_silent_like_any_other(three: Three) -> None:
    wait_until(lambda: three.roll.silent() == ["1", "2"], 30)


def test_it_keeps_nobody_from_what_the_others_tell_and_ask(three: Three) -> None:
    second = three.beat(2)
    second.start()
    assert second.accept(Request("command", why="asked of rank 2"))
    wait_until(lambda: [request.why for request in three.asked] == ["asked of rank 2"], 30)
    wait_until(lambda: [(one["rank"], one["step"]) for one in three.shown] == [(2, 2)], 30)
    second.close()


def test_a_share_is_not_waited_for_when_its_rank_has_died_without_a_word(three: Three) -> None:
    coordinator = Coordinator(three.channel(0), three.roll.silent)
    three.channel(2).put(record_key(0, 2), asdict(Record()))
    with pytest.raises(SaveError, match=r"rank 1 has not been heard of for 0\.5 s, and has not written its share"):
        coordinator.gather()
