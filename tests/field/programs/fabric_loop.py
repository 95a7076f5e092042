"""A plain loop with Lightning's Fabric."""

import torch
from lightning.fabric import Fabric
from torch.utils.data import DataLoader, TensorDataset

from field.program import OUT, PLAIN, SAVE_STEPS, STEPS, finish, hold
from holdfast import Checkpointer

torch.manual_seed(3)
fabric = Fabric(accelerator="cpu", devices=1)
net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.1), torch.nn.Linear(16, 1))
model, optimizer = fabric.setup(net, torch.optim.AdamW(net.parameters(), 1e-2))
points = torch.randn(20, 8, generator=torch.Generator().manual_seed(1))
loader = fabric.setup_dataloaders(DataLoader(TensorDataset(points, points.sum(1)), batch_size=4, shuffle=True))


def train(batch: list[torch.Tensor], step: int) -> None:
    hold(step)
    loss = ((model(batch[0]).squeeze(-1) - batch[1]) ** 2).mean()
    fabric.backward(loss)
    optimizer.step()
    optimizer.zero_grad()


if PLAIN:
    step = 0
    while step < STEPS:
        for batch in loader:
            if step < STEPS:
                train(batch, step)
                step += 1
else:
    with Checkpointer(
        OUT, model=model, optimizer=optimizer, data=loader, save_steps=SAVE_STEPS, save_total_limit=1
    ) as ckpt:
        for batch in ckpt.batches(until=STEPS):
            train(batch, ckpt.step_count)
            ckpt.step()
finish(net)
