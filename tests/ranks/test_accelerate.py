"""Loops with accelerate, of one process and of two: prepared, accumulating, clipped, in bf16, over all its loaders.

They end as the same loop without Holdfast, wherever they were cut: at the end of an epoch, whose last accumulation is
shorter, and in the middle of one.
"""

import json
from pathlib import Path

import pytest

from helpers.trainings import Launcher
from ranks.conftest import Job, free_port

PROGRAM = """
import itertools, json, os
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch.utils.data import DataLoader, TensorDataset
from holdfast import Checkpointer

KINDS = {"shard": {}, "seedable": {"use_seedable_sampler": True}, "dispatched": {"dispatch_batches": True}}
UPDATES = 7

def train(kind, run=None, until=UPDATES):
    AcceleratorState._reset_state()
    GradientState._reset_state()
    accelerator = Accelerator(
        cpu=True, mixed_precision="bf16", gradient_accumulation_steps=3,
        dataloader_config=DataLoaderConfiguration(**KINDS[kind]),
    )
    set_seed(5)
    model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.BatchNorm1d(16), torch.nn.Dropout(0.2),
                                torch.nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
    batches = 5 * accelerator.num_processes  # an epoch is an update of three batches, and one of two
    loader = DataLoader(TensorDataset(torch.randn(4 * batches, 4)), batch_size=4, shuffle=True)
    set_seed(accelerator.process_index)
    model, optimizer, scheduler, loader = accelerator.prepare(model, optimizer, scheduler, loader)
    losses = []

    def take(rows):
        with accelerator.accumulate(model):
            loss = model(rows).pow(2).mean()
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        return accelerator.sync_gradients

    if run is None:
        taken = 0
        for rows, in itertools.chain.from_iterable(itertools.repeat(loader)):
            taken += take(rows)
            if taken == until:
                break
    else:
        parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "data": loader}
        with Checkpointer(run, **parts, say=lambda line: None) as ckpt:
            for rows, in ckpt.batches(until=until):
                if take(rows):
                    ckpt.step()
    ends = [*model.state_dict().values(), torch.get_rng_state()]
    ends += [value for state in optimizer.state_dict()["state"].values() for value in state.values()]
    return losses, [tensor.tolist() for tensor in ends] + scheduler.get_last_lr()

results = {}
for kind in KINDS:
    losses, ends = train(kind)
    results[kind] = []
    for cut in (2, 3):
        first, _ = train(kind, f"{kind}-{cut}", cut)
        rest, resumed = train(kind, f"{kind}-{cut}")
        results[kind].append([first + rest == losses, resumed == ends])
print("RESULT", json.dumps(results), flush=True)
if "RANK" in os.environ:
    torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("size", [1, 2])
def test_it_ends_as_the_same_loop_without_holdfast(torch_launcher: Launcher, tmp_path: Path, size: int) -> None:
    common = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    places = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)] if size > 1 else [{}]
    job = Job([torch_launcher.start(cwd=tmp_path, program=PROGRAM, **place) for place in places])
    assert job.wait() == [0] * size, job.output
    for process in job.processes:
        (line,) = (line for line in process.output.splitlines() if line.startswith("RESULT"))
        results = json.loads(line.removeprefix("RESULT"))
        assert results == {kind: [[True, True], [True, True]] for kind in ("shard", "seedable", "dispatched")}
