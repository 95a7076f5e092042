from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import Trainer

import holdfast
from helpers.small_trainer import small_trainer
from holdfast.errors import UnsupportedError


def refusal(thing: Any) -> tuple[str, str]:
    with pytest.raises(UnsupportedError) as caught:
        holdfast.attach(thing)
    return str(caught.value), str(caught.value.hint)


def test_what_is_no_trainer_is_refused_by_name_with_what_to_use() -> None:
    of_lightning = type("Trainer", (), {"__module__": "lightning.pytorch.trainer.trainer"})()
    for thing, name, instead in (
        (None, "None", "trainer = Trainer(...)"),
        (torch.nn.Linear(1, 1), "a model, Linear", "attach the Trainer that trains it"),
        (of_lightning, "lightning's Trainer", "trainers of Lightning are not supported"),
        (Accelerator(cpu=True), "accelerate's Accelerator", "give it what prepare() returned"),
        (Trainer, "the class Trainer", "attach(Trainer(...))"),
        ({"model": 1}, "builtins's dict", "holdfast.Checkpointer("),
    ):
        message, hint = refusal(thing)
        assert message == f"attach takes a transformers.Trainer, and this is {name}"
        assert instead in hint


def test_a_trainer_that_is_attached_already_is_refused(tmp_path: Path) -> None:
    trainer = holdfast.attach(small_trainer(tmp_path / "out"))
    message, hint = refusal(trainer)
    assert message == "this Trainer is attached already" and "every train()" in hint
    assert not (tmp_path / "out" / ".holdfast").exists()
