"""A loop with accelerate: `prepare`, `accumulate`, clipping, mixed precision; alone, or under a launcher.

    python examples/accelerate_loop.py [RUN] [--steps N]
    torchrun --nproc-per-node 2 examples/accelerate_loop.py

The lines that make it a run that can be saved and resumed at any moment end in `# holdfast`.
"""

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from holdfast import Checkpointer  # holdfast

parser = argparse.ArgumentParser()
parser.add_argument("run", nargs="?", default="outputs/accelerate")
parser.add_argument("--steps", type=int, default=500)
parser.add_argument("--mixed-precision", default="bf16")
asked = parser.parse_args()

accelerator = Accelerator(cpu=True, mixed_precision=asked.mixed_precision, gradient_accumulation_steps=4)
set_seed(7)
rows = torch.randn(250, 16)
data = TensorDataset(rows, rows.square().sum(1, keepdim=True))
model: nn.Module = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, asked.steps * accelerator.num_processes)
loader = DataLoader(data, batch_size=4, shuffle=True)
model, optimizer, scheduler, loader = accelerator.prepare(model, optimizer, scheduler, loader)

with Checkpointer(asked.run, model=model, optimizer=optimizer, scheduler=scheduler, data=loader) as ckpt:  # holdfast
    for inputs, wanted in ckpt.batches(until=asked.steps):  # holdfast
        with accelerator.accumulate(model):
            loss = nn.functional.mse_loss(model(inputs), wanted)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:  # holdfast
            ckpt.step(loss=loss)  # holdfast
            if ckpt.step_count % 50 == 0:
                accelerator.print(f"step {ckpt.step_count}: loss {loss.item():.3f}")
