"""A Trainer of Lightning: `python with_lightning.py RUN STEPS`."""

import hashlib
import sys
import time
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

import holdfast


class Fit(lightning.LightningModule):  # type: ignore[misc]
    """A line through points, slow enough to be asked for something."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.1), torch.nn.Linear(16, 1))

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        """Returns the loss of a batch."""
        time.sleep(0.002)
        inputs, wanted = batch
        loss: torch.Tensor = ((self.layers(inputs) - wanted) ** 2).mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


torch.set_num_threads(1)
torch.manual_seed(3)
module = Fit()
loader = DataLoader(TensorDataset(torch.randn(64, 8), torch.randn(64, 1)), batch_size=8, shuffle=True)
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
trainer = lightning.Trainer(
    default_root_dir=sys.argv[1], max_steps=int(sys.argv[2]), max_epochs=-1, accelerator="cpu", devices=1, **quiet
)
holdfast.attach(trainer)
trainer.fit(module, loader, ckpt_path="auto")
state = b"".join(tensor.numpy().tobytes() for tensor in module.state_dict().values())
print("digest", hashlib.sha256(state).hexdigest())
