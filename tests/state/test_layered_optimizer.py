"""Optimizers of others, wrapped and with state in odd places: training goes on as if it had not been interrupted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_optimizer
import torch
from torch import nn, optim

from helpers.parts import move, same, save
from holdfast.errors import CheckpointError, ConfigError
from holdfast.state.layered_optimizer import LayeredOptimizerPart
from holdfast.state.optimizer import OptimizerPart
from holdfast.state.part import Stored
from holdfast.state.registry import parts_of
from holdfast.state.stated_optimizer import StatedOptimizerPart

Make = Callable[[nn.Module], Any]


def net(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).to(dtype)


def train(model: nn.Module, optimizer: Any, steps: int = 3, seed: int = 1) -> None:
    data = torch.Generator().manual_seed(seed)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = model(batch).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        batch = torch.randn(5, 6, generator=data).to(next(model.parameters()).dtype)
        closure()
        if hasattr(optimizer, "first_step"):
            optimizer.step(closure)
        else:
            optimizer.step()


class Sharpness(optim.Optimizer):
    """The widely copied way to look for flat minima: the state is in `base`, and `state_dict` knows nothing of it."""

    state: Any

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"rho": 0.05})
        self.base = optim.AdamW(self.param_groups, lr=0.05)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["before"] = parameter.clone()
                parameter.add_(parameter.grad, alpha=group["rho"])

    @torch.no_grad()
    def second_step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.copy_(self.state[parameter]["before"])
        self.base.step()

    def step(self, closure: Any = None) -> Any:
        self.first_step()
        closure = torch.enable_grad()(closure)
        closure()
        self.second_step()

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict)
        self.base.param_groups = self.param_groups


class Averaging(optim.SGD):
    """Keeps weights of its own in an attribute, by parameter, and counts."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.05, momentum=0.9)
        self.count, self.every = 0, 2
        self.slow: dict[torch.Tensor, torch.Tensor] = {}
        self.total = torch.zeros(())

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        super().step()
        self.count += 1
        for parameter in self.param_groups[0]["params"]:
            slow = self.slow.setdefault(parameter, parameter.clone())
            if self.count % self.every == 0:
                parameter.copy_(slow.lerp_(parameter, 0.5))
        self.total += self.count


class Outside:
    """No optimizer of torch's, without a `state_dict`, around two."""

    def __init__(self, model: Any) -> None:
        self.both = [optim.AdamW(model[0].parameters(), 0.05), optim.SGD(model[2].parameters(), 0.05, momentum=0.9)]
        self.param_groups = [group for optimizer in self.both for group in optimizer.param_groups]

    def zero_grad(self) -> None:
        for optimizer in self.both:
            optimizer.zero_grad()

    def step(self) -> None:
        for optimizer in self.both:
            optimizer.step()


class Counting(optim.AdamW):
    """Adds to torch's own `state_dict`."""

    beat = 0

    def step(self, closure: Any = None) -> Any:
        self.beat += 1
        self.param_groups[0]["lr"] = 0.01 * (self.beat % 3 + 1)
        super().step()

    def state_dict(self) -> Any:
        return {**super().state_dict(), "beat": self.beat}

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict)
        self.beat = state_dict["beat"]


def adamw(model: nn.Module) -> optim.Optimizer:
    return optim.AdamW(model.parameters(), 0.05)


def schedule_free(model: nn.Module) -> Any:
    optimizer = pytorch_optimizer.ScheduleFreeWrapper(adamw(model))
    optimizer.train()
    return optimizer


MAKERS: dict[str, tuple[type, Make]] = {
    "lookahead": (StatedOptimizerPart, lambda m: pytorch_optimizer.Lookahead(adamw(m), k=2)),
    "two layers": (StatedOptimizerPart, lambda m: pytorch_optimizer.Lookahead(schedule_free(m), k=2)),
    "schedule free": (StatedOptimizerPart, schedule_free),
    "trac": (StatedOptimizerPart, lambda m: pytorch_optimizer.TRAC(adamw(m))),
    "sharpness, shared": (
        LayeredOptimizerPart,
        lambda m: pytorch_optimizer.SAM(m.parameters(), optim.AdamW, lr=0.05),
    ),
    "sharpness, apart": (LayeredOptimizerPart, lambda m: Sharpness(m.parameters())),
    "added by its state_dict": (LayeredOptimizerPart, lambda m: Counting(m.parameters())),
    "attributes": (LayeredOptimizerPart, lambda m: Averaging(m.parameters())),
    "outside of torch": (LayeredOptimizerPart, Outside),
    "eight matrices of soap": (LayeredOptimizerPart, lambda m: pytorch_optimizer.SOAP(m.parameters(), 0.05)),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_training_goes_on_as_if_it_had_not_been_interrupted(tmp_path: Path, kind: str) -> None:
    part, make = MAKERS[kind]
    old, new = net(), net(1)
    first, second = make(old), make(new)
    train(old, first)
    train(new, second, 1, seed=7)  # a state of its own, which has to go
    parts = parts_of({"model": new, "optimizer": second})
    assert isinstance(parts[1], part)
    assert move(parts_of({"model": old, "optimizer": first}), parts, tmp_path) == []
    train(old, first, 4, seed=5)
    train(new, second, 4, seed=5)
    assert same(dict(new.named_parameters()), dict(old.named_parameters()))


def test_what_keeps_all_in_its_state_is_saved_as_ever(tmp_path: Path) -> None:
    model = net()
    own = pytorch_optimizer.Lion(model.parameters(), 0.05)
    train(model, own)
    rest = save(parts_of({"model": model, "optimizer": own}), tmp_path)["optimizer"].rest
    assert rest.keys() == {"kind", "class", "groups", "state", "shared"} and rest["kind"] == "optimizer"


def test_the_wrapper_of_accelerate_has_no_state_of_its_own() -> None:
    from accelerate import Accelerator

    model = net()
    wrapped = Accelerator(cpu=True).prepare(adamw(model))
    assert type(parts_of({"model": model, "optimizer": wrapped})[1]) is OptimizerPart


def test_fp32_state_under_bf16_weights_stays_what_it_was(tmp_path: Path) -> None:
    """Moments in another dtype than their weights, which every `load_state_dict` casts."""
    old, new = net(dtype=torch.bfloat16), net(1, dtype=torch.bfloat16)
    first, second = (pytorch_optimizer.Lookahead(adamw(model), k=2) for model in (old, new))
    train(old, first)
    for state in first.optimizer.state.values():
        state["exp_avg"] = state["exp_avg"].float() + 1e-4
    parts = [parts_of({"model": model, "optimizer": wrapped}) for model, wrapped in ((old, first), (new, second))]
    assert move(parts[0], parts[1], tmp_path) == []
    pairs = zip(first.optimizer.state.values(), second.optimizer.state.values(), strict=True)
    assert all(same(before["exp_avg"], after["exp_avg"]) for before, after in pairs)


def test_a_plain_checkpoint_fits_a_wrapper_that_has_nothing_to_add(tmp_path: Path) -> None:
    old, new = net(), net(1)
    first, second = adamw(old), pytorch_optimizer.SAM(new.parameters(), optim.AdamW, lr=0.05)
    train(old, first)
    stored = save(parts_of({"model": old, "optimizer": first}), tmp_path)["optimizer"]
    part = parts_of({"model": new, "optimizer": second})[1]
    part.restore(stored, strict=True)
    assert len(part.live()) == 12


def test_layers_that_only_the_checkpoint_has_are_a_mismatch(tmp_path: Path) -> None:
    old, new = net(), net(1)
    first = Averaging(old.parameters())
    train(old, first)
    stored = save(parts_of({"model": old, "optimizer": first}), tmp_path)["optimizer"]
    with pytest.raises(CheckpointError, match="is of kind 'layered_optimizer' in the checkpoint"):
        parts_of({"model": new, "optimizer": optim.SGD(new.parameters(), 0.05)})[1].problems(stored)
    layers = {**stored.rest, "layers": {"groups:base": stored.rest["first"]}}
    (line, *_) = parts_of({"model": new, "optimizer": Averaging(new.parameters())})[1].problems(
        Stored(stored.tensors, layers)
    )
    assert line == "optimizer: the checkpoint has a state of base (groups), and there is none here"


def test_what_gives_no_state_is_refused_in_one_line() -> None:
    class Mute:
        def __init__(self, model: nn.Module) -> None:
            self.param_groups = [{"params": list(model.parameters())}]

        def state_dict(self) -> None:
            raise RuntimeError("gather it first")

        def load_state_dict(self, state: Any) -> None: ...

    model = net()
    with pytest.raises(
        ConfigError, match=r"^optimizer: a Mute gives no state to save it by: its state_dict\(\) raises"
    ):
        parts_of({"model": model, "optimizer": Mute(model)})


def test_plain_sgd_has_no_state_and_is_no_alarm(tmp_path: Path) -> None:
    old, new = net(), net(1)
    first, second = optim.SGD(old.parameters(), 0.1), optim.SGD(new.parameters(), 0.1)
    train(old, first)
    parts = [parts_of({"model": model, "optimizer": plain}) for model, plain in ((old, first), (new, second))]
    assert move(parts[0], parts[1], tmp_path) == []
