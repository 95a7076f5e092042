"""A small plain loop for tests: everything that draws, averages or schedules is in it."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from holdfast import Checkpointer


class Loop:
    """A model with dropout and BatchNorm, AdamW, a schedule, an average of the weights, and shuffled data.

    Args:
        run: The run directory.
        workers: Data-loading workers.
        device: Where the model is, and what it is given.
        **changes: Further keywords for the `Checkpointer`.
    """

    def __init__(self, run: Path, workers: int = 0, device: str = "cpu", **changes: Any) -> None:
        torch.manual_seed(7)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(8, 32), torch.nn.BatchNorm1d(32), torch.nn.Dropout(0.2), torch.nn.Linear(32, 1)
        ).to(device)
        self.device = device
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 500)
        self.ema = torch.optim.swa_utils.AveragedModel(
            self.model,
            multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9),  # type: ignore[no-untyped-call]
        )
        rows = TensorDataset(torch.randn(56, 8), torch.randn(56, 1))
        self.data = DataLoader(rows, batch_size=8, shuffle=True, num_workers=workers)
        self.said: list[str] = []
        self.ckpt = Checkpointer(
            run,
            **{
                "model": self.model,
                "optimizer": self.optimizer,
                "scheduler": self.scheduler,
                "ema": self.ema,
                "data": self.data,
                "say": self.said.append,
                "save_at_end": False,
                **changes,
            },
        )
        self.losses: list[str] = []
        self.in_the_middle: Callable[[], None] = lambda: None

    def update(self, batch: Any) -> None:
        """One step, up to its boundary."""
        rows, wanted = (one.to(self.device) for one in batch)
        loss = ((self.model(rows) - wanted) ** 2).mean()
        loss.backward()
        self.in_the_middle()
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.ema.update_parameters(self.model)
        self.losses.append(loss.item().hex())
        self.ckpt.step(loss=loss)

    def digest(self) -> str:
        """All that training leaves: weights, moments, the average, and the random state."""
        found = hashlib.sha256()
        for tensor in (*self.model.state_dict().values(), *self.ema.state_dict().values()):
            found.update(tensor.detach().cpu().numpy().tobytes())
        for state in self.optimizer.state_dict()["state"].values():
            for tensor in state.values():
                found.update(tensor.cpu().numpy().tobytes())
        found.update(torch.get_rng_state().numpy().tobytes())
        if self.device == "cuda":
            found.update(torch.cuda.get_rng_state().numpy().tobytes())
        return found.hexdigest()


def train(run: Path, until: int, **changes: Any) -> Loop:
    """Trains to the end, from wherever the run was left."""
    loop = Loop(run, **changes)
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=until):
            loop.update(batch)
    return loop
