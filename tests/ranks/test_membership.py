"""The knowledge that rank 0 has of ranks that have told nothing yet, over a real store."""

import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from helpers.waiting import wait_until
from holdfast.capture.gate import Gate
from holdfast.errors import SaveError
from holdfast.log import RunLog
from holdfast.ranks import channel
from holdfast.ranks.channel import Channel
from holdfast.ranks.coordinator import Coordinator, Record
from holdfast.ranks.heartbeat import Heartbeat
from holdfast.ranks.keys import record_key
from holdfast.ranks.membership import Membership
from holdfast.run.request import Request
from holdfast.run.status import Status, StatusFile
from ranks.real_store import RealStore

SECONDS = 0.5


class Three:
    """Rank 0 of three, in which nobody trains, with the ends of the others."""

    def __init__(self, store: RealStore, folder: Path) -> None:
        self.store = store
        self.folder = folder
        self.asked: list[Request] = []
        self.shown: Sequence[dict[str, Any]] = []
        self.membership = Membership(self.channel(0))
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def channel(self, rank: int) -> Channel:
        return Channel(self.store.client(), rank, 3, SECONDS)

    def heartbeat(self, rank: int) -> Heartbeat:
        status = StatusFile(self.folder / f"status-{rank}.json", Status("run", rank))
        status.beat(rank)
        return Heartbeat(self.channel(rank), status, Gate(threading.Event()), RunLog(print))

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._closing.wait(0.1):
            news = self.membership.look()
            self.asked += news.requests
            self.shown = news.ranks


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Three]:
    monkeypatch.setattr(channel, "_trainings", itertools.repeat(0))  # these ranks are in one process
    with RealStore() as store:
        made = Three(store, tmp_path)
        made.start()
        yield made
        made.close()


def test_a_rank_that_dies_before_it_has_told_anything_is_silent_like_any_other(three: Three) -> None:
    wait_until(lambda: three.membership.silent() == ["1", "2"], 30)


def test_it_keeps_nobody_from_what_the_others_tell_and_ask(three: Three) -> None:
    second = three.heartbeat(2)
    second.start()
    assert second.accept(Request("command", why="asked of rank 2"))
    wait_until(lambda: [request.why for request in three.asked] == ["asked of rank 2"], 30)
    wait_until(lambda: [(rank["rank"], rank["step"]) for rank in three.shown] == [(2, 2)], 30)
    second.close()


def test_a_share_is_not_waited_for_when_its_rank_has_died_without_a_word(three: Three) -> None:
    coordinator = Coordinator(three.channel(0), three.membership)
    three.channel(2).put(record_key(0, 2), asdict(Record()))
    with pytest.raises(SaveError, match=r"rank 1 has not been heard of for 0\.5 s, and has not written its share"):
        coordinator.gather()
