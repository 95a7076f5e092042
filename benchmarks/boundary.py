"""What a boundary costs the training thread when there is nothing to save."""

import threading
import time
from pathlib import Path

import torch

from benchmarks.table import head, row
from holdfast.capture.boundary import Boundary
from holdfast.capture.gate import Gate
from holdfast.doors.request_queue import RequestQueue
from holdfast.log import RunLog
from holdfast.loop.checkpointer import Checkpointer
from holdfast.run.run import Run
from holdfast.settings import DynamicCheckpoint

_LOOKS = 2_000


def report(folder: Path) -> None:
    """Prints the table."""
    run = folder / "boundary"
    head("a boundary of a 150-tensor model, nobody asks", "µs")
    for text, settings in {
        "trigger file off": DynamicCheckpoint(),
        "trigger file every 100 steps (the default)": DynamicCheckpoint(enabled=True),
        "trigger file every step": DynamicCheckpoint(enabled=True, check_interval=1),
        "trigger file all the time, from a thread": DynamicCheckpoint(enabled=True, check_interval=0),
    }.items():
        row(text, boundary_cost(run, settings), 1e6)
    row("of that, to find out whether anybody asks", check_cost(run), 1e6)


def boundary_cost(run: Path, settings: DynamicCheckpoint, rounds: int = 7) -> list[float]:
    """Seconds that a boundary takes of the training thread when there is nothing to save, one value a round.

    The model has 150 tensors and AdamW: random state, 600 tensors' marks, schedule and hyperparameters are recorded.
    """
    model = torch.nn.Sequential(*(torch.nn.Linear(16, 16) for _ in range(75)))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 16)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
    costs = []
    with Checkpointer(
        run,
        dynamic_checkpoint=settings.model_dump(),
        say=_silent,
        resume=False,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
    ) as checkpointer:
        checkpointer.resume()
        for _ in range(rounds):
            begun = time.perf_counter()
            for _ in range(_LOOKS):
                with checkpointer.update():
                    pass
                checkpointer.step()
            costs.append((time.perf_counter() - begun) / _LOOKS)
    return costs


def check_cost(directory: Path, rounds: int = 7) -> list[float]:
    """Seconds that it takes to learn at a boundary that nobody asks: the gate and the doors, without recording."""
    run = Run.open(directory)
    gate = Gate(threading.Event())
    queue = RequestQueue(run, DynamicCheckpoint(enabled=True), RunLog(_silent), threading.Event())
    boundary = Boundary(1, "update")
    costs = []
    for _ in range(rounds):
        begun = time.perf_counter()
        for step in range(1, _LOOKS + 1):
            gate.leave()
            gate.reach(boundary, shut=queue.look(step, last=False))
        costs.append((time.perf_counter() - begun) / _LOOKS)
    run.close("measured", 0)
    return costs


def _silent(text: str) -> None:
    pass
