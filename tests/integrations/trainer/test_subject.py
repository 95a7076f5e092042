"""Trainers with optimizers of others: what their own loading takes back goes on exactly, and the rest is refused."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_optimizer
import torch
from torch import nn, optim
from transformers import Trainer, TrainerCallback, TrainingArguments

from helpers.full import in_full
from helpers.parts import same
from holdfast.errors import UnsupportedError
from holdfast.integrations.attach import attach


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(64, 8)

    def forward(self, x: torch.Tensor, labels: Any = None) -> dict[str, torch.Tensor]:
        return {"loss": self.layer(x).square().mean()}


class Cut(TrainerCallback):  # type: ignore[misc]
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop |= state.global_step == self.step


class Around(optim.Optimizer):
    """An optimizer inside of it has a state that its `state_dict` knows nothing of."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.01})
        self.inside = optim.AdamW(self.param_groups)

    def step(self, closure: Any = None) -> Any:
        self.inside.step()


class Slow(optim.SGD):
    """Keeps an average in an attribute that its `state_dict` leaves out."""

    def step(self, closure: Any = None) -> Any:
        super().step()
        self.average = [parameter.detach().clone() for parameter in self.param_groups[0]["params"]]


def trained(run: Path, make: Callable[[Model], Any], until: int) -> Model:
    model = Model()
    optimizer = make(model)
    data = [{"x": torch.randn(64, generator=torch.Generator().manual_seed(number))} for number in range(32)]
    arguments = TrainingArguments(
        str(run), max_steps=8, per_device_train_batch_size=4, save_steps=4, report_to=[], use_cpu=True
    )
    schedule = optim.lr_scheduler.LinearLR(getattr(optimizer, "optimizer", optimizer))
    trainer = Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, schedule), callbacks=[Cut(until)])
    attach(trainer).train(resume_from_checkpoint="auto")
    return model


def adamw(model: Model) -> optim.Optimizer:
    return optim.AdamW(model.parameters(), lr=0.01)


MAKERS: dict[str, Callable[[Model], Any]] = {
    "lookahead": lambda model: pytorch_optimizer.Lookahead(adamw(model), k=3),
    "schedule free": lambda model: pytorch_optimizer.ScheduleFreeWrapper(adamw(model)),
    "added to torch's": lambda model: pytorch_optimizer.SPAM(model.parameters(), lr=0.01),
}


@pytest.mark.parametrize(
    "kind", [pytest.param("lookahead", marks=in_full("two others")), "schedule free", "added to torch's"]
)
def test_a_state_dict_of_its_own_goes_on_exactly(tmp_path: Path, kind: str) -> None:
    whole = trained(tmp_path / "whole", MAKERS[kind], 8)
    trained(tmp_path / "cut", MAKERS[kind], 4)
    assert (tmp_path / "cut" / "checkpoint-4" / "optimizer.pt").exists()
    assert same(trained(tmp_path / "cut", MAKERS[kind], 8).state_dict(), whole.state_dict())


def test_a_checkpoint_that_no_trainer_could_load_is_not_called_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def make(model: Model) -> Any:
        projected = {"params": [model.layer.weight], "rank": 4, "update_proj_gap": 2, "scale": 0.25}
        return pytorch_optimizer.GaLore([{**projected, "projection_type": "std"}, {"params": [model.layer.bias]}])

    with caplog.at_level(logging.ERROR, "holdfast"):
        trained(tmp_path, make, 4)
    assert not list(tmp_path.glob("checkpoint-*"))
    (line,) = {record.getMessage() for record in caplog.records if "GaLoreProjector" in record.getMessage()}
    assert "optimizer.pt would hold" in line and "add_safe_globals" in line


def test_a_state_that_its_state_dict_leaves_out_is_refused_or_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UnsupportedError, match="optimizer: the state_dict of Around leaves out what its inside keeps"):
        trained(tmp_path / "inside", lambda model: Around(model.parameters()), 4)
    with caplog.at_level(logging.INFO, "holdfast"):
        trained(tmp_path / "slow", lambda model: Slow(model.parameters(), 0.01), 4)
    assert any("optimizer: average (its state_dict leaves them out" in record.getMessage() for record in caplog.records)
