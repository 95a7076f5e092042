"""What ranks of a test hold for themselves: optimizers that share their state out, and objects of each rank's own."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist


def _place() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


class WholeStates(torch.optim.Optimizer):
    """Each parameter's state is in one rank, whole, and that rank updates it for all."""

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        super().__init__(parameters, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        rank, size = _place()
        for number, parameter in enumerate(self.param_groups[0]["params"]):
            if number % size == rank:
                state = self.state[parameter]
                if not state:
                    state.update(step=torch.zeros(()), momentum=torch.zeros_like(parameter))
                state["step"] += 1
                state["momentum"].mul_(0.9).add_(parameter.grad)
                parameter.sub_(0.01 * state["momentum"])
            if size > 1:
                dist.broadcast(parameter, number % size)


class Slices(WholeStates):
    """Each rank has a slice of each parameter's state, which may be empty, and updates that slice."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        rank, size = _place()
        for parameter in self.param_groups[0]["params"]:
            parts, gradient = parameter.tensor_split(size), parameter.grad.tensor_split(size)[rank]
            momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(gradient))
            parts[rank].sub_(0.01 * momentum.mul_(0.9).add_(gradient))
            for owner in range(size if size > 1 else 0):
                dist.broadcast(parts[owner], owner)


def adamw(parameters: Iterable[torch.Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


def zero(parameters: Iterable[torch.Tensor]) -> torch.optim.Optimizer:
    # It warns of what it is made of, which ends a collection of tests.
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return ZeroRedundancyOptimizer(parameters, torch.optim.AdamW, lr=1e-2)


OPTIMIZERS: dict[str, Callable[[Iterable[torch.Tensor]], torch.optim.Optimizer]] = {
    "adamw": adamw,
    "whole states": WholeStates,
    "slices": Slices,
    "zero": zero,
}


class Queue:
    """What a rank has seen of its own samples: numbers, a small tensor, and a large one."""

    def __init__(self) -> None:
        self.count = 100 * _place()[0]
        self.last = torch.zeros(2)
        self.history = torch.zeros(20_000)

    def take(self, inputs: torch.Tensor) -> None:
        self.count += 1
        self.last = inputs[0, :2].clone()
        self.history[self.count % 20_000] = inputs.sum()

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "last": self.last, "history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.last, self.history = state["count"], state["last"], state["history"]

    def __str__(self) -> str:
        return f"{self.count} {self.last.tolist()} {self.history.double().sum().item()}"
