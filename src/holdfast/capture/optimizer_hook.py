"""The hook that sends every optimizer through the gate."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from holdfast.capture.gate import Gate


class OptimizerHook:
    """Sends every optimizer that owns registered parameters through the gate before it updates them.

    torch calls the hook for each of its optimizers, whatever its class: plain, scheduled, wrapped by accelerate, called
    by a GradScaler, LBFGS, compiled. Others (a probe's, inside an evaluation) pass.

    Args:
        gate: The gate.
        parameters: The registered parameters.
    """

    def __init__(self, gate: Gate, parameters: Iterable[torch.Tensor]) -> None:
        self._gate = gate
        self._parameters = {id(parameter) for parameter in parameters}
        self._owners: weakref.WeakKeyDictionary[Any, tuple[int, bool]] = weakref.WeakKeyDictionary()
        self._handle = register_optimizer_step_pre_hook(self._before_step)

    def remove(self) -> None:
        """Takes the hook away."""
        self._handle.remove()

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        groups = len(optimizer.param_groups)
        known = self._owners.get(optimizer)
        if known is None or known[0] != groups:
            owns = any(id(p) in self._parameters for group in optimizer.param_groups for p in group["params"])
            self._owners[optimizer] = known = (groups, owns)
        if known[1]:
            self._gate.enter_update()
