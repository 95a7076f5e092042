"""What each rank of a test runs: a small training of several processes, told by JSON in `LOOP` what is special."""

import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from helpers.paper import Paper
from holdfast import Checkpointer
from holdfast.engine import capturing
from holdfast.errors import HoldfastError
from holdfast.state.rng import codec
from ranks.own_state import OPTIMIZERS, Queue

SAMPLES = 48


@dataclass(frozen=True)
class Orders:
    """What is special in one training.

    Args:
        run: The run directory.
        until: How many steps it has.
        kind: `ddp`, `ddp_own` (buffers are not made alike), `fsdp`, `tp` (tensor-parallel), `fsdp_tp` (two ranks each
            way), `alone` for one process, or `apart` for several that share nothing.
        model: Which of `MODELS`.
        ask_every: Each rank asks for a save after a random step, about this often.
        stand: Rank and step: that rank stands in an evaluation after that step, until there is a file `go`.
        short: Rank and steps: that rank's data ends after so many.
        raises: Rank and step: an error of that rank's in the forward after it.
        diverges: Rank and step: the gradients that this rank has are NaN in the update after that step.
        pause: Seconds that each step takes at least.
        calls: Ranks in which training itself asks for a save after every fifth boundary, having changed its learning
            rate and drawn a random number.
        waits: Whether such a call waits for its answer.
        slot: The slot that such a call asks for.
        adds_up: Whether gradients are never zeroed.
        evaluates: Whether each step has an evaluation before its boundary.
        optimizer: Which of `own_state.OPTIMIZERS`.
        queues: The ranks that have a queue of their own.
        cards: The order of work, one of `paper.POLICIES`, of the cards that each rank's memory is taken for.
        settings: Further keywords for the `Checkpointer`.
    """

    run: str
    until: int = 20
    kind: str = "ddp"
    model: str = "plain"
    ask_every: int = 0
    stand: list[int] | None = None
    short: list[int] | None = None
    raises: list[int] | None = None
    diverges: list[int] | None = None
    pause: float = 0.0
    calls: list[int] | None = None
    waits: bool = False
    slot: str = ""
    adds_up: bool = False
    evaluates: bool = False
    optimizer: str = "adamw"
    queues: Sequence[int] = ()
    cards: str = ""
    settings: dict[str, Any] | None = None


def plain() -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Linear(8, 33), torch.nn.Dropout(0.2), torch.nn.Linear(33, 1))


def normed() -> torch.nn.Sequential:
    """Its norm stays a plain tensor beside distributed ones; 34 features are 17 a rank, which do not go in halves."""
    layers = (torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 34), torch.nn.Dropout(0.2), torch.nn.Linear(34, 1))
    return torch.nn.Sequential(*layers)


class Table(torch.nn.Module):
    """Has a buffer that is too large to be copied at each boundary, and stands still in rank 0 alone."""

    table: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(300_000))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if int(os.environ["RANK"]):
            self.table += 1
        return inputs


def batched() -> torch.nn.Sequential:
    """Its running statistics are those of each rank's own samples."""
    layers = (torch.nn.Linear(8, 33), torch.nn.BatchNorm1d(33), torch.nn.Linear(33, 1), Table())
    return torch.nn.Sequential(*layers)


MODELS = {"plain": plain, "normed": normed, "batched": batched}


def wrapped(model: torch.nn.Sequential, kind: str) -> torch.nn.Module:
    size = dist.get_world_size() if dist.is_initialized() else 1
    if kind in ("alone", "apart"):
        return model
    if kind == "ddp":
        return DistributedDataParallel(model)
    if kind == "ddp_own":
        return DistributedDataParallel(model, broadcast_buffers=False)
    if kind == "fsdp":
        mesh = init_device_mesh("cpu", (size,))
        fully_shard(model[0], mesh=mesh)
    else:
        square = init_device_mesh("cpu", (parts(kind), size // parts(kind)), mesh_dim_names=("dp", "tp"))
        mesh = square["dp"]
        parallelize_module(model, square["tp"], {"1": ColwiseParallel(), "3": RowwiseParallel()})
        if kind == "tp":
            return model
        fully_shard(model[1], mesh=mesh)
    fully_shard(model, mesh=mesh)  # the last layer is the root's own: it stays gathered after an evaluation
    return model


def parts(kind: str) -> int:
    """Into how many parts the data goes: all ranks that share the work on one batch are given the same."""
    return {"alone": 1, "tp": 1, "fsdp_tp": 2}.get(kind) or dist.get_world_size()


def local(tensor: torch.Tensor) -> torch.Tensor:
    return getattr(tensor, "_local_tensor", tensor).detach()


def inner(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer that has this rank's state."""
    here: torch.optim.Optimizer = getattr(optimizer, "optim", optimizer)
    return here


def digest(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """All that this rank has at the end: weights, moments, and the random state."""
    found = hashlib.sha256()
    for tensor in model.state_dict().values():
        found.update(local(tensor).numpy().tobytes())
    for state in inner(optimizer).state_dict()["state"].values():
        for tensor in state.values():
            found.update(local(tensor).numpy().tobytes())
    found.update(torch.get_rng_state().numpy().tobytes())
    return found.hexdigest()


def generator_state() -> str:
    """A digest of the random state of torch, as a checkpoint has it."""
    return hashlib.sha256(str(codec.encode_torch(torch.get_rng_state())).encode()).hexdigest()


def whole(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """The weights and moments of all ranks together, whoever has which part."""
    found = hashlib.sha256()
    held = [tensor for state in optimizer.state.values() for tensor in state.values()]
    for tensor in [*model.parameters(), *held]:
        full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        found.update(full.detach().numpy().tobytes())
    return found.hexdigest()


def tell_what_is_own(when: str, rank: int, optimizer: torch.optim.Optimizer, queues: Mapping[str, Queue]) -> None:
    """Prints what this rank has of the optimizer's state, by the number of the parameter, and its queue."""
    for number, parameter in enumerate(optimizer.param_groups[0]["params"]):
        for key, value in inner(optimizer).state.get(parameter, {}).items():
            held = hashlib.sha256(local(value).contiguous().numpy().tobytes()).hexdigest()
            print(f"rank {rank} {when} owning {number}/{key} {held}", flush=True)
    for queue in queues.values():
        print(f"rank {rank} {when} queueing {queue}", flush=True)


def main() -> None:
    """Trains as one rank."""
    orders = Orders(**json.loads(os.environ["LOOP"]))
    rank = 0
    if orders.kind != "alone":
        dist.init_process_group("gloo")
        rank = dist.get_rank()
    if orders.cards:
        paper = Paper(orders.cards, rank, cards=2, in_step=True)
        vars(capturing)["device_in_use"] = lambda: paper
    torch.manual_seed(7)
    model = MODELS[orders.model]()
    trained = wrapped(model, orders.kind)
    torch.manual_seed(100 + rank)
    optimizer = OPTIMIZERS[orders.optimizer](trained.parameters())
    queues: dict[str, Any] = {"queue": Queue()} if rank in orders.queues else {}
    fixed = torch.Generator().manual_seed(3)
    rows = TensorDataset(
        torch.randn(SAMPLES, 8, generator=fixed), torch.randn(SAMPLES, 1, generator=fixed), torch.arange(SAMPLES)
    )
    sampler: Any = None
    if orders.kind != "alone":
        count = parts(orders.kind)
        number = rank * count // dist.get_world_size()
        sampler = DistributedSampler(rows, count, number, shuffle=True, seed=1)
    data = DataLoader(rows, batch_size=2, sampler=sampler, shuffle=sampler is None)
    seen = Path(orders.run).with_name(f"seen-{rank}.txt").open("a")
    draw = random.Random(rank)
    tickets = []
    settings = {"save_at_end": False, **(orders.settings or {})}
    if "on_saved" in settings:
        settings["on_saved"] = lambda answer: print(
            f"rank {rank} hears of {answer.step} {list(answer.labels)} {list(answer.slots)}", flush=True
        )
    with Checkpointer(
        orders.run,
        model=trained,
        optimizer=optimizer,
        data=data,
        **queues,
        **settings,
    ) as checkpointer:
        print(f"rank {rank} is open", flush=True)
        for number, (inputs, wanted, ids) in enumerate(checkpointer.batches(until=orders.until)):
            if not number:
                print(f"rank {rank} begins with {whole(trained, optimizer)}", flush=True)
                tell_what_is_own("begins", rank, optimizer, queues)
            here = [rank, checkpointer.step_count]
            if orders.raises == here:
                raise AssertionError("this rank has an error of its own")
            if orders.stand == here:
                print(f"rank {rank} stands", flush=True)
                while not Path("go").exists():
                    time.sleep(0.01)
            if orders.short == here:
                break
            ((trained(inputs) - wanted) ** 2).mean().backward()
            if orders.diverges == here:
                for parameter in trained.parameters():
                    assert parameter.grad is not None
                    local(parameter.grad).fill_(float("nan"))
            optimizer.step()
            if not orders.adds_up:
                optimizer.zero_grad()
            for queue in queues.values():
                queue.take(inputs)
            if orders.evaluates:
                with torch.no_grad():  # after it, fully_shard shows whole weights until the next backward
                    trained.eval()(inputs)
                    trained.train()
            checkpointer.step()
            print(f"step {checkpointer.step_count}", *ids.tolist(), file=seen, flush=True)
            if orders.ask_every and draw.random() < 1 / orders.ask_every:
                tickets.append(checkpointer.save(label=f"rank {rank}, after {checkpointer.step_count}"))
            if orders.calls is not None and checkpointer.step_count % 5 == 0:
                torch.rand(1)
                optimizer.param_groups[0]["lr"] = checkpointer.step_count / 64
                if rank in orders.calls:
                    print(f"rank {rank} calls with {generator_state()}", flush=True)
                    try:
                        tickets.append(checkpointer.save(label="called", slot=orders.slot, wait=orders.waits))
                    except HoldfastError as error:
                        print(f"rank {rank}: {error}", flush=True)
                optimizer.param_groups[0]["lr"] = 1e-2
            time.sleep(orders.pause)
    print(f"rank {rank} asked {len(tickets)}, answered {sum(bool(t.answer and t.answer.saved) for t in tickets)}")
    print(f"rank {rank} ends {checkpointer.step_count} {digest(trained, optimizer)}", flush=True)
    print(f"rank {rank} leaves with {whole(trained, optimizer)}", flush=True)
    tell_what_is_own("leaves", rank, optimizer, queues)
    if orders.kind != "alone":
        dist.destroy_process_group()


def run() -> None:
    """Runs `main`, and ends as a user's script does."""
    try:
        main()
    except HoldfastError as error:
        sys.exit(f"{type(error).__name__}: {error}")
