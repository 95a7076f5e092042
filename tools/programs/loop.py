"""A plain loop, as somebody writes one who has installed nothing but Holdfast: `python loop.py RUN STEPS`."""

import hashlib
import sys
import time

import torch
from torch.utils.data import DataLoader, TensorDataset

from holdfast import Checkpointer

torch.set_num_threads(1)
torch.manual_seed(3)
model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Dropout(0.1), torch.nn.Linear(32, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 40, 0.9)
loader = DataLoader(TensorDataset(torch.randn(64, 8), torch.randn(64, 1)), batch_size=8, shuffle=True)
mine = {"best": float("inf"), "at": 0}

with Checkpointer(sys.argv[1], model=model, optimizer=optimizer, scheduler=scheduler, mine=mine, data=loader) as ckpt:
    for inputs, wanted in ckpt.batches(until=int(sys.argv[2])):
        loss = ((model(inputs) - wanted) ** 2).mean()
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if loss.item() < mine["best"]:
            mine.update(best=loss.item(), at=ckpt.step_count + 1)
        ckpt.step(loss=loss)
        time.sleep(0.002)

state = b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())
print("digest", hashlib.sha256(state + repr(mine).encode() + torch.get_rng_state().numpy().tobytes()).hexdigest())
