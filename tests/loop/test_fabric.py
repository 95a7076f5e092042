"""A plain loop with Lightning's Fabric: what its `setup` returns is taken as what is inside of it."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning", reason="Lightning is not installed")

from lightning.fabric import Fabric
from torch.utils.data import DataLoader

from helpers.small_lightning import Points
from holdfast import Checkpointer
from holdfast.layouts.safetensors import header

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


class _Counted(Points):
    loaded = 0

    def __getitem__(self, number: int) -> Any:
        self.loaded += 1
        return super().__getitem__(number)


def _train(out: Path | None, until: int) -> tuple[list[float], _Counted]:
    torch.manual_seed(3)
    fabric = Fabric(accelerator="cpu", devices=1)
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))
    model, optimizer = fabric.setup(module, torch.optim.AdamW(module.parameters(), 1e-2))
    data = _Counted()
    loader = fabric.setup_dataloaders(DataLoader(data, batch_size=4, shuffle=True))
    losses: list[float] = []

    def step(batch: Any) -> None:
        loss = ((model(batch[0]).squeeze(-1) - batch[1]) ** 2).mean()
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    if out is None:
        for _ in range(3):
            for batch in loader:
                step(batch)
        return losses, data
    with Checkpointer(out, model=model, optimizer=optimizer, data=loader) as ckpt:
        for batch in ckpt.batches(until=until):
            step(batch)
            ckpt.step()
    return losses, data


def test_a_loop_goes_on_with_the_same_losses_and_loads_no_batch_twice(tmp_path: Path) -> None:
    alone, _ = _train(None, 21)
    first, _ = _train(tmp_path, 10)
    second, data = _train(tmp_path, 21)
    assert first + second == alone
    assert data.loaded == 26 - 3 * 4 + 26  # of the second epoch the rest, and the third
    with (tmp_path / "checkpoint-10" / "model.safetensors").open("rb") as file:
        assert {tensor.name for tensor in header.read(file.fileno())} == {"0.weight", "0.bias", "2.weight", "2.bias"}
