"""The hooks that send every optimizer through the gate before it writes to weights or to its state."""

import functools
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from holdfast.capture.gate import Gate

# The methods besides `step` by which optimizers of others write weights: SAM's two halves, Lookahead's way to its slow
# weights and back. Those of schedule-free ones do nothing if the mode is that already.
_WRITERS = (
    "first_step",
    "second_step",
    "ascent_step",
    "descent_step",
    "backup_and_load_cache",
    "clear_and_load_backup",
)
_MODES = {"train": True, "eval": False}

_gates: "weakref.WeakKeyDictionary[Any, Gate]" = weakref.WeakKeyDictionary()


class OptimizerHook:
    """Sends every optimizer that owns registered parameters through the gate before it updates them.

    torch calls the hook for each of its optimizers, whatever its class: plain, scheduled, wrapped by accelerate, called
    by a GradScaler, LBFGS, compiled. Others (a probe's, inside an evaluation) pass.

    Args:
        gate: The gate.
        parameters: The registered parameters.
        optimizers: The registered optimizers, with those inside of them: their further methods that write weights pass
            the gate too.
    """

    def __init__(self, gate: Gate, parameters: Iterable[torch.Tensor], optimizers: Iterable[Any] = ()) -> None:
        self._gate = gate
        self._parameters = {id(parameter) for parameter in parameters}
        self._owners: weakref.WeakKeyDictionary[Any, tuple[int, bool]] = weakref.WeakKeyDictionary()
        self._handle = register_optimizer_step_pre_hook(self._before_step)
        self._gated = [optimizer for optimizer in optimizers if _gate_methods(type(optimizer))]
        for optimizer in self._gated:
            _gates[optimizer] = gate

    def remove(self) -> None:
        """Takes the hooks away."""
        self._handle.remove()
        for optimizer in self._gated:
            if _gates.get(optimizer) is self._gate:
                del _gates[optimizer]

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        groups = len(optimizer.param_groups)
        known = self._owners.get(optimizer)
        if known is None or known[0] != groups:
            owns = any(id(p) in self._parameters for group in optimizer.param_groups for p in group["params"])
            self._owners[optimizer] = known = (groups, owns)
        if known[1]:
            self._gate.enter_update()


def _gate_methods(kind: type) -> bool:
    """Has the methods of a class that write weights look for a gate; False where it has none.

    In the class, as torch does with `step`: what is put into an object would be copied with it, and act on the first.
    """
    names = [name for name in _WRITERS if callable(getattr(kind, name, None))]
    # accelerate's wrapper hands them on to the optimizer inside, if that has them, and writes nothing itself.
    hands_on = kind.__name__ == "AcceleratedOptimizer"
    if not hands_on and all(callable(getattr(kind, name, None)) for name in _MODES):
        names += _MODES
    if not kind.__weakrefoffset__ or kind.__hash__ is None:
        return False
    for name in names:
        method = getattr(kind, name)
        if not getattr(method, "passes_gate", False):
            setattr(kind, name, _gated(method, _MODES.get(name)))
    return bool(names)


def _gated(method: Callable[..., Any], mode: bool | None) -> Callable[..., Any]:
    @functools.wraps(method)
    def gated(self: Any, *args: Any, **kwargs: Any) -> Any:
        gate = _gates.get(self)
        # accelerate's wrapper, whose eval a Trainer calls at each evaluation, says no mode: what is inside passes.
        if gate is not None and (mode is None or _mode_of(self) not in (mode, None)):
            gate.enter_update()
        return method(self, *args, **kwargs)

    gated.passes_gate = True  # type: ignore[attr-defined]
    return gated


def _mode_of(optimizer: Any) -> Any:
    """Returns the mode that a schedule-free optimizer is in; None where it does not say."""
    groups = getattr(optimizer, "param_groups", None) or [{}]
    return getattr(optimizer, "train_mode", groups[0].get("train_mode"))
