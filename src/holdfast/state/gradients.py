"""Gradients that a loop lets add up over its updates: they are state, and most loops have none.

Whether a loop does so shows in the backward passes after a boundary: they add to the gradient that was there, or to
none, because the loop has zeroed it first. It may zero those of one optimizer and not of another, so each parameter is
watched, and only in the first steps, while there are gradients at boundaries.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from holdfast.devices.late import LateNumber, LateNumbers, number_of
from holdfast.state.card_copies import CardCopies
from holdfast.state.model import ModelPart
from holdfast.state.part import GRADIENTS, LoadedTensors, Stored
from holdfast.state.sharding import ShardRange, is_distributed, local_of, range_of, written_by

# A loop that has zeroed its gradients so often before its next backward pass does so always.
_ENOUGH = 3


class Gradients:
    """The gradients of a training's weights, as far as they go over its boundaries.

    Args:
        models: The models that the weights are of: a weight's name begins with its model's.
        others: Weights that are of no model, by name.
    """

    def __init__(self, models: Sequence[ModelPart] = (), others: Mapping[str, torch.Tensor] | None = None) -> None:
        self._models = models
        self._others = others or {}
        self._zeroed = 0
        # For each weight that a backward pass came to: true while all of them have met a gradient there. A card says so
        # in a tensor of its own.
        self._met: dict[str, bool | torch.Tensor] = {}
        self._late: LateNumbers | None = None
        # What cards have yet to say of the passes before a boundary.
        self._coming: list[LateNumber] = []
        self._hooks: list[RemovableHandle] = []
        self._copies = CardCopies()
        self._told = False
        self._saved_without: list[int] = []
        self.are_carried = False
        """True once they were seen to go over a boundary."""

    def begin(self, late: LateNumbers | None) -> None:
        """Takes in how numbers of cards are read without waiting for them; None where there are none."""
        self._late = late

    @property
    def bytes(self) -> int:
        """The bytes that are copied at each boundary, at most."""
        learning = [local_of(weight) for weight in self._parameters().values() if weight.requires_grad]
        return sum(weight.nbytes for weight in learning) if self.are_carried else 0

    def record(self) -> Mapping[str, torch.Tensor] | None:
        """Copies the gradients, as of now, if they go over boundaries. Called by training at every boundary.

        Returns:
            The copies, by the names of their parameters; None where a loop zeroes them, or may.
        """
        self._judge()
        if self.are_carried:
            own = {n: local_of(w.grad) for n, w in self._parameters().items() if w.grad is not None}
            copies = {name: grad.detach().clone() for name, grad in own.items() if is_on_host(grad)}
            on_cards = {name: grad for name, grad in own.items() if name not in copies}
            return {**copies, **self._copies.take(on_cards)} if on_cards else copies
        if self._zeroed < _ENOUGH and not self._coming:
            self._look()
        return None

    def saved_without(self, step: int) -> None:
        """Takes in that a checkpoint was written while it was not known if there are any."""
        if self._zeroed < _ENOUGH:
            self._saved_without.append(step)

    def news(self, step: int) -> str:
        """Returns a line for the user when they have just been seen to go over a boundary; empty otherwise.

        Args:
            step: The step of the boundary that was recorded.
        """
        if not self.are_carried or self._told:
            return ""
        self._told = True
        lacking = " and ".join(f"checkpoint-{number}" for number in self._saved_without)
        return (
            f"gradients add up over step(): from step {step} on they are copied ({self.bytes:,} bytes a step) and saved"
            + (f"; {lacking} had been saved without them" if lacking else "")
        )

    def restore(self, stored: Stored | None) -> list[str]:
        """Puts gradients back; returns the names of those that fit no parameter.

        Args:
            stored: What the checkpoint holds of them; None where it holds none.
        """
        if stored is None:
            return []
        left = dict(stored.tensors)
        for name, parameter in self._parameters().items():
            tensor = left.get(name)
            if tensor is None:
                parameter.grad = None
            elif tensor.shape == local_of(parameter).shape:
                parameter.grad = _taken_over(parameter, name, stored)
                if parameter.grad is None:
                    # Of the same kind as the parameter, which may be distributed.
                    parameter.grad = torch.zeros_like(parameter.detach(), dtype=tensor.dtype)
                    local_of(parameter.grad).copy_(tensor)
                del left[name]
        self.are_carried = self._told = True
        return [f"{name}: its gradient in the checkpoint fits nothing here, and is left out" for name in left]

    def plain(self, copies: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns those of the copies that are of no distributed parameter: processes may have them alike, or not."""
        parameters = self._parameters()
        return {name: copy for name, copy in copies.items() if not is_distributed(parameters[name])}

    def written(self, copies: Mapping[str, torch.Tensor], rank: int, size: int) -> dict[str, torch.Tensor]:
        """Returns those of the copies that one process writes."""
        if size == 1:
            return dict(copies)
        parameters = self._parameters()
        mine = written_by({name: parameters[name] for name in copies if name in parameters}, rank, size)
        return {name: copy for name, copy in copies.items() if name in mine}

    def ranges(self, copies: Mapping[str, torch.Tensor]) -> dict[str, ShardRange]:
        """Returns the range that this process has of each of the whole gradients."""
        parameters = self._parameters()
        return {name: range_of(parameters[name], name) for name in copies if name in parameters}

    def shard_range(self, name: str, shape: tuple[int, ...]) -> ShardRange | None:
        """Returns the range of a whole gradient of a checkpoint that this process needs; None where it needs all."""
        parameter = self._parameters().get(name)
        return None if parameter is None or tuple(parameter.shape) != shape else range_of(parameter, name)

    def neighbors(self) -> dict[str, torch.Tensor]:
        """Returns the weights beside which gradients of a checkpoint will be."""
        return {name: local_of(weight) for name, weight in self._parameters().items()}

    def _parameters(self) -> dict[str, torch.Tensor]:
        """Returns the weights by name, those of the models as of the last look at them."""
        of_models = {f"{model.name}.{name}": weight for model in self._models for name, weight in model.weights.items()}
        return {**of_models, **self._others}

    def _look(self) -> None:
        """Has the next backward passes tell what they meet, if there is a gradient now."""
        weights = {n: w for n, w in self._parameters().items() if w.grad is not None and w.requires_grad}
        # Of gradients that are zero by themselves nothing could be told; on a card they are met as zero.
        present = [weight.grad for weight in weights.values() if weight.grad is not None]
        if not any(self._is_on_card(gradient) or _is_nonzero(gradient) for gradient in present):
            self._zeroed += 1
            return
        for model in self._models:
            # What is sharded takes no part in a pass itself; that begins with what the model gave.
            names = [n for n, w in weights.items() if n.startswith(f"{model.name}.") and local_of(w) is not w]
            if sharded := {name: weights.pop(name) for name in names}:
                self._hooks.append(_before_backward(model, partial(self._meet, sharded)))
        for name, weight in weights.items():
            hook = weight.register_hook(partial(self._meet, {name: weight}))  # type: ignore[no-untyped-call]
            self._hooks.append(hook)

    def _meet(self, weights: Mapping[str, torch.Tensor], incoming: torch.Tensor) -> None:
        """Runs in a backward pass, before what comes is added to what is there."""
        for name, weight in weights.items():
            before, present = self._met.get(name, True), weight.grad
            if before is False or present is None:
                self._met[name] = False
            elif not self._is_on_card(present):
                self._met[name] = _is_nonzero(present)
            elif (flag := self._flag(present)) is not None:
                self._met[name] = flag if before is True else flag & before

    def _flag(self, gradient: torch.Tensor) -> torch.Tensor | None:
        """Has a card find out if a gradient of its own is other than zero; None where it is not the time to ask."""
        assert self._late is not None
        if self._late.device.is_capturing():
            return None
        try:
            return _elements_of(gradient).any()
        except torch.OutOfMemoryError:
            return None

    def _is_on_card(self, gradient: torch.Tensor) -> bool:
        return self._late is not None and self._late.device.card_of(_elements_of(gradient)) is not None

    def _judge(self) -> None:
        """Takes in what the passes since the last boundary have met.

        What one of several passes has met as zero was zeroed in between: a generator's loss leaves gradients in the
        discriminator, which are none of its update.
        """
        while self._hooks:
            self._hooks.pop().remove()
        met, self._met = self._met, {}
        if not met and not (self._coming and all(late.is_there for late in self._coming)):
            return
        answers: list[LateNumber | float | None] = [*self._coming, *self._ask(met)]
        self._coming = [late for late in answers if isinstance(late, LateNumber) and not late.is_there]
        if any(flag is True for flag in met.values()) or any(map(_is_yes, answers)):
            self.are_carried, self._coming = True, []
        elif not self._coming and None not in answers:
            self._zeroed += 1

    def _ask(self, met: Mapping[str, bool | torch.Tensor]) -> list[LateNumber | float | None]:
        """Asks each card if any weight of its own has met a gradient in all passes; it answers when it gets there."""
        flags: dict[torch.device, list[torch.Tensor]] = {}
        for flag in met.values():
            if isinstance(flag, torch.Tensor):
                flags.setdefault(flag.device, []).append(flag)
        return [number_of(torch.stack(of_card).any(), self._late) for of_card in flags.values()]


def _taken_over(parameter: torch.Tensor, name: str, stored: Stored) -> torch.Tensor | None:
    """Returns a checkpoint's own memory of a gradient, if it can be the parameter's; None where it must be copied."""
    tensor = stored.tensors[name]
    is_like = tensor.device == parameter.device and tensor.layout == torch.strided and parameter.is_contiguous()
    if is_distributed(parameter) or not is_like or not isinstance(stored.tensors, LoadedTensors):
        return None
    return stored.tensors.claim(name)


def _before_backward(model: ModelPart, call: Callable[[torch.Tensor], None]) -> RemovableHandle:
    """Has something called at the beginning of each backward pass through a model."""

    def watch(module: object, arguments: object, output: object) -> None:
        learning = (tensor for tensor in _tensors_in(output) if tensor.requires_grad)
        if (tensor := next(learning, None)) is not None:
            tensor.register_hook(call)  # type: ignore[no-untyped-call]

    return model.module.register_forward_hook(watch)


def _tensors_in(output: object) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, Mapping | tuple | list):
        for item in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors_in(item)


def is_on_host(gradient: torch.Tensor) -> bool:
    """Tells whether a gradient is in the memory of the host, where it is copied by itself."""
    return gradient.device.type == "cpu"


def _is_nonzero(gradient: torch.Tensor) -> bool:
    return bool(_elements_of(gradient).count_nonzero())


def _elements_of(gradient: torch.Tensor) -> torch.Tensor:
    own = local_of(gradient).detach()
    # A sparse one is of a table that may not fit into memory a second time.
    return own._values() if own.layout == torch.sparse_coo else own.to_dense()


def _is_yes(answer: LateNumber | float | None) -> bool:
    return bool(answer.value if isinstance(answer, LateNumber) else answer)


def gradients_rest() -> dict[str, Any]:
    """Returns the JSON beside the gradients."""
    return {"kind": GRADIENTS}
