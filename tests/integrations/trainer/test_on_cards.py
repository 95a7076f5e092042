"""A Trainer whose state is on the cards of a device of paper is saved and goes on as one on the host."""

from pathlib import Path

import pytest
import torch
from transformers import Trainer

from helpers.paper import Paper
from helpers.small_trainer import Stop, train


def state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    moments = trainer.optimizer.state_dict()["state"]
    state = {f"{number}/{kind}": value for number, kinds in moments.items() for kind, value in kinds.items()}
    return {**trainer.model.state_dict(), **state}


@pytest.mark.parametrize("policy", ["lazy", "random"])
def test_what_is_stopped_in_the_middle_ends_as_if_it_never_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """It is saved every third step as well, and each time training goes on while the cards still copy."""
    whole = train(tmp_path / "whole", save_steps=3)
    paper = Paper(policy, 3, cards=2, in_step=True)
    monkeypatch.setattr("holdfast.engine.capturing.device_in_use", lambda: paper)
    train(tmp_path / "cut", callbacks=[Stop(7)], save_steps=3)
    assert paper.waits
    resumed = train(tmp_path / "cut", resume="auto", save_steps=3)
    here, there = state_of(whole), state_of(resumed)
    assert here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)
    assert [x.get("loss") for x in resumed.state.log_history] == [x.get("loss") for x in whole.state.log_history]
