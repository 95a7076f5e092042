"""The position in the data of processes that train together: accelerate's loaders, and Trainers of other numbers."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from helpers.trainings import Launcher
from ranks.conftest import Job, free_port

PREPARED = """
import json, os
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader, Dataset, IterableDataset
from holdfast import Checkpointer

class Rows(Dataset):
    def __len__(self):
        return 22
    def __getitem__(self, index):
        return torch.tensor([float(index), torch.rand(()).item()])

class Stream(IterableDataset):
    def __iter__(self):
        yield from (Rows()[index] for index in range(22))

KINDS = {
    "shuffled": (Rows, {"shuffle": True}, {}),
    "seedable": (Rows, {"shuffle": True}, {"use_seedable_sampler": True}),
    "uneven": (Rows, {"shuffle": True, "drop_last": True}, {"even_batches": False}),
    "dispatched": (Rows, {"shuffle": True}, {"dispatch_batches": True}),
    "stream": (Stream, {}, {}),
}

def train(run, kind, until):
    dataset, options, preparing = KINDS[kind]
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**preparing))
    torch.manual_seed(accelerator.process_index)
    model, optimizer = torch.nn.Linear(2, 1), None
    torch.nn.init.constant_(model.weight, 0.5)
    torch.nn.init.zeros_(model.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    data = accelerator.prepare(DataLoader(dataset(), batch_size=3, **options))
    model = accelerator.prepare(model)
    seen = []
    with Checkpointer(run, model=model, optimizer=optimizer, data=data, say=lambda line: None) as checkpointer:
        for batch in checkpointer.batches(until=until):
            torch.nn.functional.dropout(model(batch), 0.5).pow(2).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            checkpointer.step()
            seen.append(batch.tolist())
        checkpointer.save(wait=True)
    return seen, [parameter.tolist() for parameter in model.parameters()]

results = {}
for kind in KINDS:
    whole, weights = train(f"whole-{kind}", kind, 11)
    first, _ = train(f"cut-{kind}", kind, 6)
    rest, resumed = train(f"cut-{kind}", kind, 11)
    results[kind] = [first + rest == whole, resumed == weights]
print("RESULT", json.dumps(results), flush=True)
torch.distributed.destroy_process_group()
"""

TRAINER = """
import json, os, sys
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
import holdfast

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 22
    def __getitem__(self, index):
        return {"x": torch.tensor([float(index)])}

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)
        self.seen = []
    def forward(self, x):
        self.seen += x[:, 0].int().tolist()
        return {"loss": self.linear(x / 22).pow(2).mean()}

class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **others):
        control.should_save = control.should_training_stop = state.global_step == int(sys.argv[1])

torch.manual_seed(0)
model = Model()
args = TrainingArguments("out", num_train_epochs=2, per_device_train_batch_size=int(sys.argv[2]), report_to="none",
                         use_cpu=True, disable_tqdm=True, save_strategy="no",
                         ddp_backend="gloo" if "RANK" in os.environ else None)
trainer = Trainer(model, args, train_dataset=Rows(), callbacks=[Stop()])
holdfast.attach(trainer)
trainer.train(resume_from_checkpoint="auto")
print("SEEN", json.dumps([trainer.state.global_step, model.seen]), flush=True)
"""


def start(launcher: Launcher, folder: Path, size: int, program: str, *argv: str) -> Job:
    if size == 1:
        return Job([launcher.start(*argv, cwd=folder, program=program)])
    ranks = []
    common = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for rank in range(size):
        env = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        ranks.append(launcher.start(*argv, cwd=folder, program=program, **env))
    return Job(ranks)


def said(job: Job, word: str) -> list[Any]:
    assert job.wait() == [0] * len(job.processes), job.output
    lines = [line for process in job.processes for line in process.output.splitlines() if line.startswith(word)]
    return [json.loads(line.removeprefix(word)) for line in lines]


def test_prepared_loaders_go_on_exactly(launcher: Launcher, tmp_path: Path) -> None:
    results = said(start(launcher, tmp_path, 2, PREPARED), "RESULT")
    kinds = ("shuffled", "seedable", "uneven", "dispatched", "stream")
    assert results == [{kind: [True, True] for kind in kinds}] * 2


@pytest.mark.parametrize("sizes", [(2, 1), (1, 2)])
def test_a_trainer_of_another_number_of_processes_goes_on_in_the_order(
    launcher: Launcher, tmp_path: Path, sizes: tuple[int, int]
) -> None:
    """Two steps of one, then the rest of two epochs of another."""
    seen: list[int] = []
    job = start(launcher, tmp_path, sizes[0], TRAINER, "2", "3")
    for _, samples in said(job, "SEEN"):
        seen += samples
    taken = 2 * 3 * sizes[0]
    assert len(set(seen)) == len(seen) == taken
    job = start(launcher, tmp_path, sizes[1], TRAINER, "-1", "4")
    ranks = said(job, "SEEN")
    at_once = 4 * sizes[1]
    left, whole = -(-(22 - taken) // at_once), -(-22 // at_once)
    for step, samples in ranks:
        assert step == 2 + left + whole
        seen += samples[: left * 4 if sizes[1] > 1 else 22 - taken]
    assert set(seen) == set(range(22))
    twice = left * at_once - (22 - taken) if sizes[1] > 1 else 0
    assert Counter(seen).total() == 22 + twice
    assert f"the {22 - taken} of 22 samples that are left of epoch 0 go on in their order" in job.output
    assert ("come twice" in job.output) == bool(twice)
