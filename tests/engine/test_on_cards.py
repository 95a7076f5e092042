"""Saves of a training whose state is on cards: those of a device of paper, with everything else as it is."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.loops import Loop
from helpers.paper import POLICIES, Paper
from helpers.trainings import events
from holdfast.errors import SaveError
from holdfast.run.request import Answer

Cards = Callable[..., Paper]


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Cards:
    """Has the next training take the memory of the host for that of cards."""

    def use(policy: str = "lazy", seed: int = 1, number: int = 2) -> Paper:
        paper = Paper(policy, seed, cards=number, in_step=True)
        monkeypatch.setattr("holdfast.engine.capturing.device_in_use", lambda: paper)
        return paper

    return use


State = dict[str, torch.Tensor]


def state_of(loop: Loop) -> State:
    """The state as of now, by the names that it has in files."""
    names = {id(parameter): f"optimizer.model.{name}" for name, parameter in loop.model.named_parameters()}
    parts = {"model": loop.model.state_dict(), "ema": loop.ema.state_dict()}
    state = {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}
    for parameter, moments in loop.optimizer.state.items():
        state |= {f"{names[id(parameter)]}/{kind}": tensor for kind, tensor in moments.items()}
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def is_saved(path: str, then: State) -> bool:
    """Tells whether a checkpoint has the state of a moment, and nothing else."""
    saved = {
        f"{part}.{name}": tensor
        for part in ("model", "ema", "optimizer")
        for name, tensor in load_file(Path(path) / f"{part}.safetensors").items()
    }
    return saved.keys() == then.keys() and all(torch.equal(saved[name], then[name]) for name in then)


@pytest.mark.parametrize("policy", POLICIES)
def test_each_of_many_saves_is_of_its_boundary_and_training_notices_nothing(
    tmp_path: Path, cards: Cards, policy: str
) -> None:
    """A save is asked for in the middle of each step, and training goes on into the next updates at once."""
    cards(policy)
    loop, pending, then = Loop(tmp_path / "run"), [], {}
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=12):
            if loop.ckpt.step_count:
                then[loop.ckpt.step_count] = state_of(loop)
                pending.append(loop.ckpt.save(f"at {loop.ckpt.step_count}"))
            loop.update(batch)
        answers: list[Answer] = [each.wait(30) for each in pending]
    assert all(answer.saved for answer in answers)
    assert [answer.step for answer in answers if not is_saved(answer.path, then[answer.step])] == []
    assert len({answer.step for answer in answers}) > 3 and not loop.ckpt._engine.gate.only_when_blocked


def test_a_torch_that_is_too_old_to_be_read_live_is_saved_at_boundaries_and_named(tmp_path: Path, cards: Cards) -> None:
    cards().older_than_live = "this torch is too old"
    loop = Loop(tmp_path / "run")
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=4):
            loop.update(batch)
            then, answer = state_of(loop), loop.ckpt.save().wait(30)
            assert is_saved(answer.path, then)
        status = json.loads((tmp_path / "run" / ".holdfast" / "status.json").read_text())
        assert status["capture"] == "this torch is too old"
    assert [event["reason"] for event in events(tmp_path / "run") if event["event"] == "capture"]


@pytest.mark.parametrize("way", ["other memory", "in place"])
def test_weights_that_are_swapped_for_an_evaluation_are_never_saved(tmp_path: Path, cards: Cards, way: str) -> None:
    cards(number=1)
    loop = Loop(tmp_path / "run")

    def swap(weights: list[torch.Tensor]) -> None:
        for parameter, tensor in zip(loop.model.parameters(), weights, strict=True):
            if way == "in place":
                parameter.data.copy_(tensor)
            else:
                parameter.data = tensor

    with loop.ckpt:
        for batch in loop.ckpt.batches(until=6):
            loop.update(batch)
            if loop.ckpt.step_count == 3:
                own = [parameter.detach().clone() for parameter in loop.model.parameters()]
                swap([tensor + 1 for tensor in own])
                with pytest.raises(SaveError, match=r"model\.0\.weight.*written outside the optimizer's step"):
                    loop.ckpt.save("while swapped").wait(30)
                swap(own)
        then = state_of(loop)
        assert is_saved(loop.ckpt.save().wait(30).path, then)
    assert any("Saves are taken at boundaries from now on" in line for line in loop.said)


def test_a_card_that_is_lost_fails_its_save_and_nothing_is_asked_of_it_again(tmp_path: Path, cards: Cards) -> None:
    paper = cards("lazy", number=1)
    loop = Loop(tmp_path / "run")
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=6):
            loop.update(batch)
            if loop.ckpt.step_count == 2:
                good = loop.ckpt.save().wait(30)
            if loop.ckpt.step_count == 4:
                paper.lose_after(2)
                with pytest.raises(SaveError, match=r"the device is lost.*the paper has burnt"):
                    loop.ckpt.save("lost").wait(30)
                waits = paper.waits
                with pytest.raises(SaveError, match="the device is lost"):
                    loop.ckpt.save("again").wait(30)
                assert paper.waits == waits
                break
    assert good.saved and Path(good.path).is_dir()


def test_what_a_user_has_changed_since_the_boundary_is_saved_as_of_the_call(tmp_path: Path, cards: Cards) -> None:
    """A tensor of no part, too large to be copied at each boundary: on a card nobody may look at it in a step."""
    cards(number=1)
    loop = Loop(tmp_path / "run")
    loop.model.table = torch.zeros(600_000)
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=5):
            loop.update(batch)
            loop.model.table.add_(1)
            answer = loop.ckpt.save().wait(30)
            again = loop.ckpt.save().wait(30)
            assert again.path == answer.path
            carried = load_file(Path(answer.path) / "carried.safetensors")
            assert [tensor[0].item() for tensor in carried.values()] == [loop.ckpt.step_count]
    assert not loop.ckpt._engine.gate.only_when_blocked
