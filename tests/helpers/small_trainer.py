"""A Trainer that is as small as one can be, in this process, and what is known of its run afterwards."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

import holdfast
from helpers.trainings import events
from helpers.waiting import wait_until
from holdfast.settings import SettingsKwargs

STEPS_PER_EPOCH = 5


class Fit(torch.nn.Module):
    """A line through points."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.line = torch.nn.Linear(3, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        predicted = self.line(x).squeeze(-1)
        return {"loss": ((predicted - labels) ** 2).mean(), "logits": predicted}


class Points(Dataset[dict[str, torch.Tensor]]):
    def __init__(self, count: int = 4 * STEPS_PER_EPOCH) -> None:
        self._x = torch.randn(count, 3, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        return {"x": self._x[number], "labels": self._x[number].sum()}


class Stop(TrainerCallback):  # type: ignore[misc]
    """Asks for a save and the end, by a signal, at the end of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            asked = len(events(Path(args.output_dir), "request"))
            os.kill(os.getpid(), signal.SIGUSR2)
            wait_until(lambda: len(events(Path(args.output_dir), "request")) > asked)


def small_trainer(out: Path, callbacks: Sequence[Any] = (), kind: type[Trainer] = Trainer, **settings: Any) -> Trainer:
    """Returns a Trainer that is not attached yet."""
    usual = {
        "output_dir": str(out),
        "per_device_train_batch_size": 4,
        "num_train_epochs": 3,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "learning_rate": 1e-2,
        "save_steps": 100,
    }
    args = TrainingArguments(**{**usual, **settings})
    return kind(Fit(), args, train_dataset=Points(), eval_dataset=Points(4), callbacks=list(callbacks))


def attached(out: Path, callbacks: Sequence[Any] = (), **settings: Any) -> Trainer:
    """Returns a Trainer under `attach`, of which a stop returns."""
    ours = {name: settings.pop(name) for name in SettingsKwargs.__annotations__ if name in settings}
    trainer = holdfast.attach(small_trainer(out, callbacks, **settings), on_stop="return", **ours)
    return trainer


def train(out: Path, callbacks: Sequence[Any] = (), *, resume: str | None = "auto", **settings: Any) -> Trainer:
    """Trains in this process, under `attach`; a stop returns."""
    trainer = attached(out, callbacks, **settings)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(trainer: Trainer) -> list[float]:
    return [value for tensor in trainer.model.state_dict().values() for value in tensor.flatten().tolist()]


def checkpoints(out: Path) -> list[str]:
    return sorted((path.name for path in out.glob("checkpoint-*")), key=lambda name: int(name.partition("-")[2]))
