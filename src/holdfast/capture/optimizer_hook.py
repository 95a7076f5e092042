"""The hooks that send every optimizer through the gate before it writes to weights or to its state."""

import functools
import weakref
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from holdfast.capture.gate import Gate
from holdfast.capture.graph_hook import GraphHook
from holdfast.devices.device import Device

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

_hooks: "weakref.WeakKeyDictionary[Any, OptimizerHook]" = weakref.WeakKeyDictionary()


class OptimizerHook:
    """Sends every optimizer that owns registered parameters through the gate before it updates them.

    torch calls the hook for each of its optimizers, whatever its class: plain, scheduled, wrapped by accelerate, called
    by a GradScaler, LBFGS, compiled. Others (a probe's, inside an evaluation) pass.

    Args:
        gate: The gate.
        parameters: The registered parameters.
        optimizers: The registered optimizers, with those inside of them: their further methods that write weights pass
            the gate too.
        device: The accelerator that parameters are on; None where they are all with the host.
    """

    def __init__(
        self,
        gate: Gate,
        parameters: Iterable[torch.Tensor],
        optimizers: Iterable[Any] = (),
        device: Device | None = None,
    ) -> None:
        self._gate = gate
        self._cards = {id(p): None if device is None else device.card_of(p) for p in parameters}
        self._lanes: dict[int, set[Hashable]] = {card: set() for card in self._cards.values() if card is not None}
        # By optimizer: its number of groups as it was looked at, whether it owns parameters, and the cards of those.
        self._known: weakref.WeakKeyDictionary[Any, tuple[int, bool, list[int]]] = weakref.WeakKeyDictionary()
        self._graphs = GraphHook(gate, device, self._lanes) if device is not None and self._lanes else None
        before = self._before_step
        if self._graphs is not None:
            # Dynamo would trace it, and write down the lane of the first step. On the host the gate's lock ends that.
            before = torch.compiler.disable(before)  # type: ignore[no-untyped-call]
        self._handle = register_optimizer_step_pre_hook(before)
        self._gated = [optimizer for optimizer in optimizers if _gate_methods(type(optimizer))]
        for optimizer in self._gated:
            _hooks[optimizer] = self

    def remove(self) -> None:
        """Takes the hooks away."""
        self._handle.remove()
        if self._graphs is not None:
            self._graphs.remove()
        for optimizer in self._gated:
            if _hooks.get(optimizer) is self:
                del _hooks[optimizer]

    def lanes(self) -> Mapping[int, Collection[Hashable]]:
        """Returns the lanes that updates were put into since they were joined, by card: of each that has parameters."""
        return {card: tuple(lanes) for card, lanes in self._lanes.items()}

    def joined(self) -> AbstractContextManager[None]:
        """Encloses reads at a boundary, which come behind all updates, and before what their lanes get afterwards."""
        return self._graphs.joined() if self._graphs is not None else nullcontext()

    def enter_update(self) -> None:
        """Waits at the gate, for an update of whatever parameters."""
        self._enter_update(self._lanes)

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Waits at the gate; where the step begins with a closure, which computes and writes nothing, after that."""
        _, owns, cards = self._look_at(optimizer)
        if not owns:
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None or not _begins_with_closure(type(optimizer)):
            self._enter_update(cards)
            return None
        within = self._entering_after(closure, cards)
        if "closure" in kwargs:
            return args, {**kwargs, "closure": within}
        return (args[0], within, *args[2:]), kwargs

    def _entering_after(self, closure: Callable[[], Any], cards: Iterable[int]) -> Callable[[], Any]:
        def within() -> Any:
            loss = closure()
            self._enter_update(cards)
            return loss

        return within

    def _enter_update(self, cards: Iterable[int]) -> None:
        if self._graphs is None:
            self._gate.enter_update()
        else:
            self._graphs.enter_update(cards)

    def _look_at(self, optimizer: torch.optim.Optimizer) -> tuple[int, bool, list[int]]:
        groups = len(optimizer.param_groups)
        known = self._known.get(optimizer)
        if known is None or known[0] != groups:
            of_it = (id(p) for group in optimizer.param_groups for p in group["params"])
            cards = {self._cards[p] for p in of_it if p in self._cards}
            self._known[optimizer] = known = (groups, bool(cards), [card for card in cards if card is not None])
        return known


def _begins_with_closure(kind: type[torch.optim.Optimizer]) -> bool:
    """Tells whether a class's step calls its closure once, before it writes anything: torch's own, but LBFGS."""
    return kind.step.__module__.startswith("torch.optim") and not issubclass(kind, torch.optim.LBFGS)


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
        hook = _hooks.get(self)
        # accelerate's wrapper, whose eval a Trainer calls at each evaluation, says no mode: what is inside passes.
        if hook is not None and (mode is None or _mode_of(self) not in (mode, None)):
            hook.enter_update()
        return method(self, *args, **kwargs)

    gated.passes_gate = True  # type: ignore[attr-defined]
    return gated


def _mode_of(optimizer: Any) -> Any:
    """Returns the mode that a schedule-free optimizer is in; None where it does not say."""
    groups = getattr(optimizer, "param_groups", None) or [{}]
    return getattr(optimizer, "train_mode", groups[0].get("train_mode"))
