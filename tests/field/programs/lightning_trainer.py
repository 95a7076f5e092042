"""A Lightning Trainer, of either package: the first argument after the run directory names it."""

import importlib
import sys
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

import holdfast
from field.program import OUT, PLAIN, SAVE_STEPS, STEPS, finish, hold

lightning = importlib.import_module(sys.argv[2])
processes = int(sys.argv[3]) if len(sys.argv) > 3 else 1


class Net(lightning.LightningModule):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.1), torch.nn.Linear(16, 1))
        self.history: list[float] = []

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        hold(self.trainer.global_step)
        loss: torch.Tensor = ((self.net(batch[0]).squeeze(-1) - batch[1]) ** 2).mean()
        self.log("loss", loss, on_step=True, on_epoch=True, sync_dist=processes > 1)
        return loss

    def validation_step(self, batch: Any, number: int) -> None:
        self.log("val", self.net(batch[0]).mean() + torch.rand(1).item(), sync_dist=processes > 1)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), 1e-2)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


torch.manual_seed(3)
points = torch.randn(20 * processes, 8, generator=torch.Generator().manual_seed(1))
data = TensorDataset(points, points.sum(1))
trainer = lightning.Trainer(
    default_root_dir=OUT,
    max_steps=STEPS,
    max_epochs=-1,
    accelerator="cpu",
    devices=processes,
    strategy="ddp" if processes > 1 else "auto",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
module = Net()
if not PLAIN:
    holdfast.attach(trainer, save_steps=SAVE_STEPS, save_total_limit=1)
trainer.fit(
    module,
    DataLoader(data, batch_size=4, shuffle=True),
    DataLoader(data, batch_size=8),
    ckpt_path=None if PLAIN else "auto",
)
finish(module, {name: float(value) for name, value in trainer.callback_metrics.items()})
