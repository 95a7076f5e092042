"""A plain loop with DeepSpeed's own engine, which is to be refused."""

import sys

import deepspeed
import torch

from holdfast import Checkpointer
from holdfast.errors import UnsupportedError

model = torch.nn.Linear(4, 1)
engine, optimizer, _, _ = deepspeed.initialize(
    model=model,
    optimizer=torch.optim.AdamW(model.parameters()),
    config={
        "train_batch_size": 1,
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    },
)
for parts in ({"model": engine}, {"model": model, "optimizer": optimizer}):
    try:
        Checkpointer(sys.argv[1], **parts)
    except UnsupportedError as error:
        print(f"refused: {error}")
torch.distributed.destroy_process_group()
