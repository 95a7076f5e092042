"""A loop by epochs for tests: a schedule, an average and a validation follow the batches of each."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from holdfast import Checkpointer

EPOCHS, STEPS = 3, 5


class ByEpochs:
    """A model with dropout, AdamW, a schedule by epochs, an average of the weights, and a validation that draws.

    Args:
        run: The run directory; None for the loop as it would be without Holdfast.
        epochs: How many it is to do.
        at: Called with a place in the body (`top`, `step`, `rest`, `end`), and this loop.
        accumulate: Batches of one step.
        ended_by: Tells, at the top of each batch, whether the loop leaves the batches.
        data: Its batches; those of its own if there are none.
        **settings: Further keywords for the `Checkpointer`.
    """

    def __init__(
        self,
        run: Path | None,
        epochs: int = EPOCHS,
        *,
        at: Callable[[str, "ByEpochs"], object] = lambda place, loop: None,
        accumulate: int | None = None,
        ended_by: Callable[["ByEpochs"], bool] = lambda loop: False,
        data: Any = None,
        **settings: Any,
    ) -> None:
        torch.manual_seed(7)
        self.model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Dropout(0.2), torch.nn.Linear(32, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 1, 0.7)
        self.swa = torch.optim.swa_utils.AveragedModel(self.model)
        rows = TensorDataset(torch.randn(20, 8), torch.randn(20, 1))
        self.data = DataLoader(rows, batch_size=4, shuffle=True) if data is None else data(rows)
        self.epochs, self.at, self.accumulate, self.ended_by = epochs, at, accumulate, ended_by
        self.epoch = self.step = 0
        self.validated: list[str] = []
        self.said: list[str] = []
        self.ckpt: Any = None
        if run is not None:
            parts: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
            ours = {"data": self.data, "swa": self.swa, "say": self.said.append, "save_on_exception": False}
            self.ckpt = Checkpointer(run, **{**parts, **ours, **settings})

    def train(self) -> "ByEpochs":
        """Trains to the end, from wherever the run was left."""
        if self.ckpt is None:
            self._through(range(self.epochs), lambda: self._groups(self.data))
        else:
            with self.ckpt:
                self.through()
        return self

    def through(self) -> None:
        """Goes through the epochs, in whatever block."""
        self._through(self.ckpt.epochs(self.epochs), lambda: self.ckpt.batches(accumulate=self.accumulate))

    def _through(self, epochs: Iterable[int], batches: Callable[[], Iterator[Any]]) -> None:
        for self.epoch in epochs:
            self.at("top", self)
            for group in batches():
                if self.ended_by(self):
                    break
                for rows, wanted in [group] if self.accumulate is None else group:
                    ((self.model(rows) - wanted) ** 2).mean().backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
                if self.ckpt is not None:
                    self.ckpt.step()
                self.step = self.step + 1 if self.ckpt is None else self.ckpt.step_count
                self.at("step", self)
            self.scheduler.step()
            self.swa.update_parameters(self.model)
            self.at("rest", self)
            with torch.no_grad():
                result = self.swa(torch.randn(4, 8)).sum().item().hex()
            self.validated.append(f"epoch {self.epoch}: {result} at {float(self.scheduler.get_last_lr()[0]).hex()}")
            self.at("end", self)

    def _groups(self, data: Iterable[Any]) -> Iterator[Any]:
        if self.accumulate is None:
            yield from data
            return
        batches = list(data)
        for begin in range(0, len(batches), self.accumulate):
            yield batches[begin : begin + self.accumulate]

    def digest(self) -> str:
        """All that training leaves: weights, moments, the average, the schedule, and the random state."""
        found = hashlib.sha256(str(self.scheduler.state_dict()).encode())
        for tensor in (*self.model.state_dict().values(), *self.swa.state_dict().values()):
            found.update(tensor.numpy().tobytes())
        for state in self.optimizer.state_dict()["state"].values():
            for tensor in state.values():
                found.update(tensor.numpy().tobytes())
        found.update(torch.get_rng_state().numpy().tobytes())
        return found.hexdigest()
