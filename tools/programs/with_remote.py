"""A plain loop whose run has a mirror in a bucket: `python with_remote.py RUN STEPS`, with AWS's variables for it."""

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
loader = DataLoader(TensorDataset(torch.randn(64, 8), torch.randn(64, 1)), batch_size=8, shuffle=True)
mirror = f"s3://bucket/{sys.argv[1]}"

with Checkpointer(sys.argv[1], model=model, optimizer=optimizer, data=loader, mirror=mirror) as ckpt:
    for inputs, wanted in ckpt.batches(until=int(sys.argv[2])):
        loss = ((model(inputs) - wanted) ** 2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        ckpt.step(loss=loss)
        time.sleep(0.002)

state = b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())
print("digest", hashlib.sha256(state + torch.get_rng_state().numpy().tobytes()).hexdigest())
