"""The words on the staging memory of a training on cards: in its status, its journal, and its lines."""

import json
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.loops import Loop
from helpers.paper import Paper
from helpers.trainings import events
from helpers.waiting import wait_until
from holdfast.capture.arena_making import ArenaMaking
from holdfast.devices import arena

Cards = Callable[[], Paper]


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cards:
    def use() -> Paper:
        paper = Paper("lazy", 1, in_step=True)
        monkeypatch.setattr("holdfast.engine.capturing.device_in_use", lambda: paper)
        return paper

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return use


def shown(loop: Loop) -> tuple[str, int]:
    now = loop.ckpt._engine.run.status.now
    return now.staging, now.staging_bytes


def told(run: Path) -> list[dict[str, Any]]:
    return [event for event in events(run) if event["event"] == "staging"]


def train(loop: Loop, steps: int) -> None:
    for batch in loop.ckpt.batches(until=steps):
        loop.update(batch)


def test_it_is_told_once_when_all_is_there(tmp_path: Path, cards: Cards) -> None:
    paper = cards()
    loop = Loop(tmp_path / "run")
    with loop.ckpt:
        train(loop, 2)
        wait_until(lambda: shown(loop)[0] == "page-locked")
        train(loop, 4)
        assert loop.ckpt.save().wait(30).saved
        size = shown(loop)[1]
        status = json.loads((tmp_path / "run" / ".holdfast" / "status.json").read_text())
        assert (status["staging"], status["staging_bytes"]) == ("page-locked", size)
    (event,) = told(tmp_path / "run")
    assert (event["bytes"], event["locked"]) == (size, True) and event["seconds"] >= 0 and "reason" not in event
    assert not [line for line in loop.said if "staging" in line]
    again = Loop(tmp_path / "again")
    with again.ckpt:
        train(again, 2)
        wait_until(lambda: shown(again) == ("page-locked", size))
    slabs = [place for place in paper.registered if place[1] > 1 << 20]
    assert sum(registered for _, registered in slabs) == size, "what one training has locked the next one uses"


def test_a_save_before_it_is_there_takes_what_there_is(
    tmp_path: Path, cards: Cards, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards()
    goes_on, rings = threading.Event(), ArenaMaking._make

    def make(making: ArenaMaking) -> None:
        if making._pool.bytes >= making._pool.ring_bytes:
            goes_on.wait(30)
        rings(making)

    monkeypatch.setattr(ArenaMaking, "_make", make)
    loop = Loop(tmp_path / "run")
    with loop.ckpt:
        train(loop, 2)
        assert shown(loop)[0] == "being made"
        assert loop.ckpt.save().wait(30).saved and not told(tmp_path / "run")
        goes_on.set()
        wait_until(lambda: shown(loop)[0] == "page-locked")
    assert len(told(tmp_path / "run")) == 1


def test_a_driver_that_refuses_is_named(tmp_path: Path, cards: Cards) -> None:
    cards().refuses_to_register_after = 0
    loop = Loop(tmp_path / "run")
    with loop.ckpt:
        train(loop, 2)
        wait_until(lambda: shown(loop)[0].startswith("not page-locked (the paper takes no "))
        assert loop.ckpt.save().wait(30).saved
    (event,) = told(tmp_path / "run")
    assert event["locked"] is False and event["reason"].startswith("the paper takes no ")
    assert len([line for line in loop.said if "staging memory is not page-locked" in line]) == 1


def test_a_limit_that_does_not_hold_the_state_is_named(tmp_path: Path, cards: Cards) -> None:
    cards()
    loop = Loop(tmp_path / "run", staging_memory=0)
    with loop.ckpt:
        train(loop, 2)
        wait_until(lambda: "staging_memory" in shown(loop)[0])
        assert loop.ckpt.save().wait(30).saved
    assert "staging_memory" in told(tmp_path / "run")[0]["reason"] and "staging_memory" in "".join(loop.said)


def test_where_there_is_no_memory_at_all_a_save_fails_and_says_so(
    tmp_path: Path, cards: Cards, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(address: int, size: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    cards()
    loop = Loop(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(arena, "_populate", none)
        with loop.ckpt:
            train(loop, 2)
            wait_until(lambda: "Cannot allocate memory" in shown(loop)[0])
            answer = loop.ckpt._engine.last_answer
            with pytest.raises(Exception, match=r"no staging memory: .*Cannot allocate memory"):
                loop.ckpt.save().wait(30)
            train(loop, 4)
    assert answer is None and loop.ckpt.step_count == 4


def test_without_a_card_nothing_is_told(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "run")
    with loop.ckpt:
        train(loop, 2)
        assert loop.ckpt.save().wait(30).saved
        assert shown(loop)[0] == "" and shown(loop)[1] > 0
    assert not told(tmp_path / "run")


def test_a_state_that_the_staging_memory_holds_is_not_said_to_be_too_large_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many small files take all of its blocks for a moment while training waits for the save."""
    monkeypatch.setattr("holdfast.engine.cost._WORTH_SAYING_SECONDS", 0.0)
    small: dict[str, Any] = {f"m{n}": torch.nn.Linear(1, 1) for n in range(20)}
    loop = Loop(tmp_path / "run", **small)
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=10):
            loop.update(batch)
            loop.ckpt.save(str(loop.ckpt.step_count))
    assert any(event["streamed"] for event in events(tmp_path / "run") if event["event"] == "held")
    assert not [line for line in loop.said if "staging memory" in line]
