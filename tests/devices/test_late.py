"""Numbers of a card are read when they are there, and nobody waits for them."""

import threading

import pytest
import torch

from helpers.paper import POLICIES, Paper
from holdfast.devices.late import LateNumber, LateNumbers, number_of


def taken(late: LateNumbers, number: torch.Tensor) -> LateNumber:
    coming = late.take(number)
    assert isinstance(coming, LateNumber)
    return coming


@pytest.mark.parametrize("policy", POLICIES)
def test_a_number_is_that_of_its_moment_whatever_runs_first(policy: str) -> None:
    paper = Paper(policy, seed=3, in_step=True)
    late = LateNumbers(paper)
    loss = torch.tensor(1.5, dtype=torch.bfloat16, requires_grad=True)
    first = taken(late, loss)
    with torch.no_grad():
        loss.fill_(2.5)
    second = taken(late, loss)
    paper.finish()
    assert (first.value, second.value) == (1.5, 2.5)
    assert paper.waits == 0


def test_it_is_there_when_the_card_has_come_to_it_and_not_before() -> None:
    paper = Paper("lazy", in_step=True)
    coming = taken(LateNumbers(paper), torch.tensor([7]))
    assert not coming.is_there and coming.value is None
    paper.finish()
    assert coming.is_there and coming.value == 7.0 and paper.waits == 0


def test_what_nobody_asks_for_any_more_keeps_its_memory_until_it_is_over() -> None:
    paper = Paper("lazy", in_step=True)
    late = LateNumbers(paper)
    for _ in range(600):  # more than there are places
        last = late.take(torch.ones(()))
    assert last is None, "two numbers in one place"
    paper.finish()
    assert taken(late, torch.full((), 3.0)).value is None
    paper.finish()
    assert [late.take(torch.ones(())) is None for _ in range(600)].count(False) == 512


def test_a_thread_of_ours_is_prepared_before_it_asks() -> None:
    paper = Paper("eager", in_step=True)
    coming, prepared = taken(LateNumbers(paper), torch.ones(())), []

    def ask() -> None:
        prepared.append((coming.value, paper._thread.__dict__.get("entered")))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert prepared == [(1.0, True)] and "entered" not in paper._thread.__dict__


def test_while_a_graph_is_captured_nothing_is_asked() -> None:
    paper = Paper("eager", in_step=True)
    late = LateNumbers(paper)
    coming = taken(late, torch.ones(()))
    with paper.capture():
        assert late.take(torch.ones(())) is None and not coming.is_there
    assert coming.value == 1.0


def test_a_card_that_is_lost_never_answers() -> None:
    paper = Paper("lazy", in_step=True)
    coming = taken(LateNumbers(paper), torch.ones(()))
    paper.lost = True
    assert coming.is_there and coming.value is None


@pytest.mark.parametrize("asked", ["is_over", "is_capturing"])
def test_whoever_asks_while_a_driver_has_an_error_is_not_ended_by_it(
    monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    paper = Paper("eager", in_step=True)
    coming = taken(LateNumbers(paper), torch.full((), 5.0))

    def refuse(*event: object) -> bool:
        raise RuntimeError("operation not permitted when stream is capturing")

    with monkeypatch.context() as patch:
        patch.setattr(paper, asked, refuse)
        assert not coming.is_there
    assert coming.value == 5.0


def test_a_driver_that_locks_nothing_has_the_number_waited_for() -> None:
    paper = Paper("lazy", in_step=True)
    paper.refuses_to_register_after = 0
    assert LateNumbers(paper).take(torch.full((1, 1), 4.0)) == 4.0


def test_a_number_of_the_host_is_there_at_once() -> None:
    late = LateNumbers(Paper())
    host = late.device.place(torch.tensor(2.0), None)  # type: ignore[attr-defined]
    assert [number_of(value, late) for value in (3, 0.5, host)] == [3.0, 0.5, 2.0]
    assert number_of(torch.tensor(1.0), None) == 1.0
    with pytest.raises(ValueError, match="one element"):
        number_of(torch.ones(2), late)
