"""What one rank of a measured training does: blocks of steps, or steps and evaluations during which saves are asked."""

import os
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from holdfast.engine import saver as service
from holdfast.loop.checkpointer import Checkpointer

_BLOCK_STEPS = 10
_LOOKS = 300
# Between two boundaries of ranks that are idle.
_PAUSE_SECONDS = 0.05


class Cost(NamedTuple):
    """Seconds: of a whole step, and of what follows its update, by the wall clock and of the thread's own CPU time."""

    step: float
    wall: float
    cpu: float


@dataclass
class Training:
    """Linear layers with AdamW, in one process or in several."""

    model: torch.nn.Module
    trained: torch.nn.Module
    optimizer: torch.optim.Optimizer

    @classmethod
    def make(cls, layers: int) -> "Training":
        """A new one."""
        model = torch.nn.Sequential(*(torch.nn.Linear(16, 16) for _ in range(layers)))
        trained = DistributedDataParallel(model) if dist.is_initialized() else model
        return cls(model, trained, torch.optim.AdamW(trained.parameters()))

    def update(self) -> None:
        """One step."""
        self.trained(torch.randn(4, 16)).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def evaluate(self) -> None:
        """One batch of an evaluation, which needs no other rank."""
        with torch.no_grad():
            self.model(torch.randn(4, 16))


def run_blocks(run: Path, pipe: Connection) -> None:
    """Steps in blocks, each in the way that it is told, and sends back what a step cost."""
    # The plain loop has a model of its own, which our hook lets pass.
    plain, ours = Training.make(75), Training.make(75)
    with Checkpointer(run, say=_silent, resume=False, model=ours.trained, optimizer=ours.optimizer) as checkpointer:
        checkpointer.resume()
        while (way := pipe.recv()) != "end":
            match way:
                case "plain":
                    pipe.send(_block(plain.update, _nothing))
                case "ours":
                    pipe.send(_block(ours.update, checkpointer.step))
                case "broadcast":
                    pipe.send(_block(plain.update, lambda: _broadcast(run / "absent")))
                case "alone":
                    pipe.send(_boundaries(checkpointer))


def _block(update: Callable[[], None], look: Callable[[], object]) -> Cost:
    wall, cpu = [], []
    begun = time.perf_counter()
    for _ in range(_BLOCK_STEPS):
        update()
        here, used = time.perf_counter(), time.thread_time()
        look()
        cpu.append(time.thread_time() - used)
        wall.append(time.perf_counter() - here)
    return Cost((time.perf_counter() - begun) / _BLOCK_STEPS, statistics.median(wall), statistics.median(cpu))


def _boundaries(checkpointer: Checkpointer) -> Cost:
    """The step path without a training around it, whose noise is a hundred times as large."""
    begun, used = time.perf_counter(), time.thread_time()
    for _ in range(_LOOKS):
        with checkpointer.update():
            pass
        checkpointer.step()
    wall = (time.perf_counter() - begun) / _LOOKS
    return Cost(wall, wall, (time.thread_time() - used) / _LOOKS)


def _broadcast(trigger: Path) -> bool:
    """What Axolotl's callback does when it looks for the trigger file."""
    found = torch.tensor(int(dist.get_rank() == 0 and trigger.exists()))
    dist.broadcast(found, src=0)
    asked = bool(found.item())
    dist.barrier()
    return asked


def stand_idle(run: Path, pipe: Connection) -> None:
    """Trains with pauses, while saves are asked for."""
    _train_and_be_asked(run, pipe, evaluates=False)


def stand_in_evaluation(run: Path, pipe: Connection) -> None:
    """The last rank evaluates after the first step, and the others wait for its gradients."""
    _train_and_be_asked(run, pipe, evaluates=not dist.is_initialized() or dist.get_rank() == dist.get_world_size() - 1)


def _train_and_be_asked(run: Path, pipe: Connection, *, evaluates: bool) -> None:
    # A request soon after a save waits so long for others that would share the next one; not what is measured.
    service._MERGING_SECONDS = 0.0
    training, evaluated = Training.make(4), threading.Event()
    with Checkpointer(
        run,
        say=_silent,
        resume=False,
        on_stop="return",
        dynamic_checkpoint={"enabled": True, "check_interval": 0, "keep": 2},
        model=training.trained,
        optimizer=training.optimizer,
    ) as checkpointer:
        checkpointer.resume()
        threading.Thread(target=_ask, args=(pipe, checkpointer, evaluated), daemon=True).start()
        while not checkpointer.stop_requested:
            training.update()
            checkpointer.step()
            if checkpointer.step_count == 1:
                pipe.send("training")
            while evaluates and not evaluated.is_set():
                training.evaluate()
            time.sleep(_PAUSE_SECONDS)


def _ask(pipe: Connection, checkpointer: Checkpointer, evaluated: threading.Event) -> None:
    try:
        while (word := pipe.recv()) != "end":
            checkpointer.save(stop=word == "stop")
    except EOFError:
        os._exit(1)  # whoever measured is gone, and nobody would stop this training
    evaluated.set()


def _silent(text: str) -> None:
    pass


def _nothing() -> None:
    pass
