"""A Lightning training that is as small as one can be, in this process, and what is known of it afterwards."""

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch import callbacks
from torch.utils.data import DataLoader, Dataset, IterableDataset

import holdfast
from helpers.trainings import events
from helpers.waiting import wait_until

__all__ = [
    "Ask", "Fit", "OfAnEpoch", "Points", "Stream", "TwoOptimizers", "callbacks", "fit", "lightning", "loader",
    "trainer", "weights",
]  # fmt: skip


class Points(Dataset[Any]):
    """Samples that draw from the process's generator where no worker loads them."""

    def __init__(self, count: int = 26, seed: int = 1) -> None:
        self._x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, number: int) -> Any:
        noise = 0.01 * torch.rand(4) if torch.utils.data.get_worker_info() is None else 0
        return self._x[number] + noise, self._x[number].sum()


class Stream(IterableDataset[Any]):
    """The same without a length, in an order that is drawn as it begins: Lightning fetches one batch ahead."""

    def __iter__(self) -> Iterator[Any]:
        points = Points()
        return (points[number] for number in torch.randperm(len(points)).tolist())


class Ask:
    """Asks for a save and the end, by a signal, once so many steps are done: in a training step, or in a validation."""

    def __init__(self, step: int, within: str = "training", number: int = signal.SIGUSR2) -> None:
        self.step, self.within, self.number = step, within, number

    def at(self, within: str, trainer: Any) -> None:
        if within != self.within or trainer.global_step < self.step or trainer.sanity_checking:
            return
        self.within = ""
        run = Path(trainer.default_root_dir)
        asked = len(events(run, "request"))
        os.kill(os.getpid(), self.number)
        wait_until(lambda: len(events(run, "request")) > asked)


class Fit(lightning.LightningModule):  # type: ignore[misc]
    """A line through points. It notes what it has computed, and draws random numbers in its hooks."""

    def __init__(self, width: int = 8, norm: bool = False, rate: float = 1e-2, ask: Ask | None = None) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="ask")
        torch.manual_seed(5)
        inside = [torch.nn.BatchNorm1d(width)] if norm else []
        self.net = torch.nn.Sequential(
            torch.nn.Linear(4, width), *inside, torch.nn.Dropout(0.2), torch.nn.ReLU(), torch.nn.Linear(width, 1)
        )
        self.rate, self.ask = rate, ask
        self.noted: list[Any] = []

    def loss(self, batch: Any) -> torch.Tensor:
        if isinstance(batch, dict):
            return sum((self.loss(each) for each in batch.values()), torch.zeros(()))
        squared: torch.Tensor = (self.net(batch[0]).squeeze(-1) - batch[1]) ** 2
        return squared.mean()

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        loss = self.loss(batch)
        self.log("train", loss, on_step=True, on_epoch=True, batch_size=4)
        self.note("train", loss)
        if self.ask is not None:
            self.ask.at("training", self.trainer)
        return loss

    def validation_step(self, batch: Any, number: int) -> None:
        loss = self.loss(batch) + torch.rand(1).item()
        self.log("val", loss, batch_size=4)
        self.note("val", loss)
        if self.ask is not None and number == 1:
            self.ask.at("validation", self.trainer)

    def on_train_epoch_start(self) -> None:
        self.note("epoch", torch.rand(1))

    def on_train_epoch_end(self) -> None:
        self.note("mean", self.trainer.callback_metrics.get("train_epoch", torch.zeros(1)))

    def note(self, kind: str, value: torch.Tensor) -> None:
        if not self.trainer.sanity_checking:
            self.noted.append((kind, self.trainer.current_epoch, self.trainer.global_step, float(value.detach()).hex()))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), self.rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step / 10))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class TwoOptimizers(Fit):
    """Optimizes by hand: two updates in each batch."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.automatic_optimization = False

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        loss = super().training_step(batch, number)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()
        return loss

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD(self.net[0].parameters(), 0.02, momentum=0.9),
            torch.optim.Adam(self.net[-1].parameters(), 0.01),
        ]


class OfAnEpoch(lightning.LightningDataModule):  # type: ignore[misc]
    """Other samples for each epoch that its loaders are made in."""

    def train_dataloader(self) -> DataLoader[Any]:
        return loader(seed=self.trainer.current_epoch)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Points(10, self.trainer.current_epoch), batch_size=4)


def loader(workers: int = 0, **settings: Any) -> DataLoader[Any]:
    return DataLoader(Points(**settings), batch_size=4, shuffle=True, num_workers=workers)


def trainer(out: Path, package: Any = lightning, **settings: Any) -> Any:
    """Returns a trainer that is not attached yet."""
    usual = {
        "default_root_dir": str(out),
        "max_epochs": 3,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return package.Trainer(**{**usual, **settings})


def fit(
    out: Path,
    module: Fit,
    data: Any = None,
    *,
    resume: str | None = None,
    plain: bool = False,
    val: Any = None,
    ours: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """Trains, under `attach` unless `plain`, and returns the trainer. A stop returns."""
    torch.manual_seed(3)
    training = trainer(out, **settings)
    if not plain:
        holdfast.attach(training, **{"on_stop": "return", **(ours or {})})
    if isinstance(data, lightning.LightningDataModule):
        training.fit(module, datamodule=data, ckpt_path=resume)
    else:
        training.fit(
            module, loader() if data is None else data, val or DataLoader(Points(10, 2), batch_size=4), ckpt_path=resume
        )
    return training


def weights(module: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
