"""What each rank of a test runs that goes through epochs: a validation with a collective follows the batches."""

import hashlib
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from holdfast import Checkpointer
from holdfast.errors import HoldfastError

STEPS = 4
_EACH = 8 * STEPS


@dataclass(frozen=True)
class Orders:
    """What is special in one training.

    Args:
        run: The run directory.
        epochs: How many it has.
        plain: Whether it does without Holdfast.
        stand: By rank, the place in the body and the epoch where it stands until there is a file `go`: `last`, after
            the step that the epoch ends with; `moved`, when the average has moved.
        settings: Further keywords for the `Checkpointer`.
        slot: By epoch, the ranks that ask for a slot in the rest of its body.
    """

    run: str
    epochs: int = 5
    plain: bool = False
    stand: dict[str, list[Any]] | None = None
    settings: dict[str, Any] | None = None
    slot: dict[str, list[int]] | None = None


def main() -> None:
    """Trains as one rank."""
    orders = Orders(**json.loads(os.environ["LOOP"]))
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(7)
    net = torch.nn.Sequential(torch.nn.Linear(8, 33), torch.nn.Dropout(0.2), torch.nn.Linear(33, 1))
    model = DistributedDataParallel(net)
    torch.manual_seed(100 + rank)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.7)
    swa = torch.optim.swa_utils.AveragedModel(net)
    fixed = torch.Generator().manual_seed(3)
    rows = TensorDataset(torch.randn(_EACH, 8, generator=fixed), torch.randn(_EACH, 1, generator=fixed))
    sampler: Any = DistributedSampler(rows, shuffle=True, seed=1)
    data = DataLoader(rows, batch_size=4, sampler=sampler)
    ckpt: Any = None
    pending: list[Any] = []

    def stand(place: str, epoch: int) -> None:
        if (orders.stand or {}).get(str(rank)) == [place, epoch]:
            print(f"rank {rank} stands at {place}", flush=True)
            while not Path("go").exists():
                time.sleep(0.01)

    def body(epoch: int, batches: Any) -> None:
        print(f"rank {rank} begins epoch {epoch}", flush=True)
        steps = 0
        for inputs, wanted in batches:
            ((model(inputs) - wanted) ** 2).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if ckpt is not None:
                ckpt.step()
            steps = steps + 1 if ckpt is None else ckpt.step_count - epoch * STEPS
            if steps == STEPS:
                stand("last", epoch)
        scheduler.step()
        swa.update_parameters(net)
        stand("moved", epoch)
        with torch.no_grad():
            result = swa(torch.randn(4, 8)).sum()
        dist.all_reduce(result)
        if rank in (orders.slot or {}).get(str(epoch), []):
            pending.append(ckpt.save(slot="best"))
        print(f"rank {rank} validated epoch {epoch}: {result.item().hex()} {scheduler.get_last_lr()}", flush=True)

    if orders.plain:
        for epoch in range(orders.epochs):
            sampler.set_epoch(epoch)
            body(epoch, data)
    else:
        parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "swa": swa}
        with Checkpointer(orders.run, data=data, **parts, **(orders.settings or {})) as ckpt:
            for epoch in ckpt.epochs(orders.epochs):
                body(epoch, ckpt.batches())
            print(f"rank {rank} is through", flush=True)
        for each in pending:
            print(f"rank {rank} hears {each.answer.saved} {each.answer.step} {each.answer.path}", flush=True)
    found = hashlib.sha256(str(scheduler.state_dict()).encode())
    for tensor in (*net.state_dict().values(), *swa.state_dict().values(), torch.get_rng_state()):
        found.update(tensor.numpy().tobytes())
    print(f"rank {rank} ends {0 if ckpt is None else ckpt.step_count} {found.hexdigest()}", flush=True)
    dist.barrier()  # rank 0 serves the store


def run() -> None:
    """Runs `main`, and ends as a user's script does."""
    try:
        main()
    except HoldfastError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    sys.exit()
