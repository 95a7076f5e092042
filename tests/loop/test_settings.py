"""A plain loop resumed with other settings than it was saved with: they hold from the first step on, and are named."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_optimizer
import torch
from torch import nn, optim
from torch.optim import lr_scheduler

from holdfast import Checkpointer
from holdfast.errors import CheckpointError
from holdfast.store import catalog

STEPS = 12
CUT = 6


class Loop:
    """A loop of one layer that keeps the hyperparameters of each of its steps."""

    def __init__(
        self,
        root: Path,
        *,
        schedule: Callable[[optim.Optimizer], Any] | None = None,
        by_hand: Callable[[int, optim.Optimizer], None] = lambda step, optimizer: None,
        optimizer: Callable[..., optim.Optimizer] = optim.AdamW,
        how: dict[str, Any] | None = None,
        **hyperparameters: Any,
    ) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(4, 1)
        self.optimizer = optimizer(self.model.parameters(), **{"lr": 0.01, **hyperparameters})
        self.schedule = schedule(self.optimizer) if schedule else None
        self.by_hand = by_hand
        self.said: list[str] = []
        self.trained_with: list[dict[str, Any]] = []
        parts = {"model": self.model, "optimizer": self.optimizer}
        if self.schedule is not None:
            parts["scheduler"] = self.schedule
        data = [torch.full((2, 4), float(number)) for number in range(STEPS)]
        keywords = {"data": data, "say": self.said.append, "dynamic_checkpoint": {"enabled": False}}
        self.ckpt = Checkpointer(root, **{**keywords, **(how or {}), **parts})

    def train(self, until: int = STEPS, *, cut: int = STEPS) -> "Loop":
        with self.ckpt, warnings.catch_warnings():
            warnings.simplefilter("error")
            for batch in self.ckpt.batches(until=until):
                (group,) = self.optimizer.param_groups
                self.trained_with.append({k: v for k, v in group.items() if k not in ("params", "initial_lr")})
                loss = self.model(batch).square().mean()
                loss.backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
                if isinstance(self.schedule, lr_scheduler.ReduceLROnPlateau):
                    self.schedule.step(1.0)
                elif self.schedule is not None:
                    self.schedule.step()
                self.ckpt.step()
                self.by_hand(self.ckpt.step_count, self.optimizer)
                if self.ckpt.step_count == cut:
                    self.ckpt.save(wait=True)
                    break
        return self

    def train_one_step(self) -> None:
        with self.ckpt:
            self.ckpt.resume()
            self.model(torch.ones(1, 4)).sum().backward()
            self.optimizer.step()
            self.ckpt.step()
            self.ckpt.save(wait=True)

    @property
    def named(self) -> list[str]:
        return [line for line in self.said if line.endswith("from your configuration") or "stays" in line]

    @property
    def rates(self) -> list[float]:
        return [float(settings["lr"]) for settings in self.trained_with]


def cut_run(root: Path, **how: Any) -> None:
    Loop(root, **how).train(cut=CUT)


def warm_up(steps: int) -> Callable[[optim.Optimizer], Any]:
    return lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / steps))


def warm_up_then_decay(steps: int) -> Callable[[optim.Optimizer], Any]:
    def schedule(optimizer: optim.Optimizer) -> Any:
        parts = [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=steps), lr_scheduler.ExponentialLR(optimizer, 0.9)]
        return lr_scheduler.SequentialLR(optimizer, parts, [steps])

    return schedule


def chained(steps: int) -> Callable[[optim.Optimizer], Any]:
    return lambda optimizer: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(optimizer, 0.1, steps), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    )


SCHEDULES: dict[str, Callable[[int], Callable[[optim.Optimizer], Any]]] = {
    "StepLR": lambda size: lambda optimizer: lr_scheduler.StepLR(optimizer, size, 0.5),
    "OneCycleLR": lambda size: lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10 * size),
    "CosineAnnealingLR": lambda size: lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 10 * size),
    "MultiStepLR": lambda size: lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [size, 4 * size]),
    "LambdaLR": lambda size: warm_up(5 * size),
    "SequentialLR": warm_up_then_decay,
    "ChainedScheduler": chained,
}
LINES = {
    "MultiStepLR": ["scheduler.milestones: [2, 8] -> [3, 12], from your configuration"],
    "StepLR": ["scheduler.step_size: 2 -> 3, from your configuration"],
    "OneCycleLR": ["scheduler.total_steps: 20 -> 30, from your configuration"],
    "CosineAnnealingLR": ["scheduler.T_max: 20 -> 30, from your configuration"],
    "LambdaLR": ["scheduler.function.steps: 10 -> 15, from your configuration"],
    "SequentialLR": [
        "scheduler.milestones: [2] -> [3], from your configuration",
        "scheduler.schedulers.0.total_iters: 2 -> 3, from your configuration",
    ],
    "ChainedScheduler": ["scheduler.schedulers.0.total_iters: 2 -> 3, from your configuration"],
}


def test_without_a_change_nothing_is_named_and_the_saved_schedule_goes_on(tmp_path: Path) -> None:
    for kind, schedule in SCHEDULES.items():
        whole = Loop(tmp_path / f"{kind}-whole", schedule=schedule(2)).train()
        cut_run(tmp_path / kind, schedule=schedule(2))
        resumed = Loop(tmp_path / kind, schedule=schedule(2)).train()
        assert resumed.named == [], kind
        assert resumed.trained_with == whole.trained_with[CUT:], kind
        assert torch.equal(resumed.model.weight, whole.model.weight), kind


@pytest.mark.parametrize("kind", SCHEDULES)
def test_another_number_of_a_schedule_holds_as_if_it_had_from_the_beginning(kind: str, tmp_path: Path) -> None:
    whole = Loop(tmp_path / "whole", schedule=SCHEDULES[kind](3)).train()
    cut_run(tmp_path / "run", schedule=SCHEDULES[kind](2))
    resumed = Loop(tmp_path / "run", schedule=SCHEDULES[kind](3)).train()
    assert resumed.trained_with == whole.trained_with[CUT:]
    assert resumed.named == LINES[kind]


@pytest.mark.parametrize("kind", SCHEDULES)
def test_another_learning_rate_goes_through_the_schedule(kind: str, tmp_path: Path) -> None:
    whole = Loop(tmp_path / "whole", schedule=SCHEDULES[kind](2), lr=0.0005).train()
    cut_run(tmp_path / "run", schedule=SCHEDULES[kind](2))
    resumed = Loop(tmp_path / "run", schedule=SCHEDULES[kind](2), lr=0.0005).train()
    assert resumed.rates == whole.rates[CUT:]
    # The rate of a OneCycleLR is its own.
    assert resumed.named == ["optimizer.lr: 0.01 -> 0.0005, from your configuration"] * (kind != "OneCycleLR")


def test_hyperparameters_without_a_schedule_hold_from_the_first_step_on(tmp_path: Path) -> None:
    cut_run(tmp_path)
    resumed = Loop(tmp_path, lr=0.0005, weight_decay=0.3, betas=(0.9, 0.95)).train()
    assert resumed.named == [
        "optimizer.lr: 0.01 -> 0.0005, from your configuration",
        "optimizer.betas: [0.9, 0.999] -> [0.9, 0.95], from your configuration",
        "optimizer.weight_decay: 0.01 -> 0.3, from your configuration",
    ]
    first, last = resumed.trained_with[0], resumed.trained_with[-1]
    assert (first["lr"], first["weight_decay"], first["betas"]) == (0.0005, 0.3, (0.9, 0.95))
    assert first == last
    again = Loop(tmp_path, lr=0.0005, weight_decay=0.3, betas=(0.9, 0.95)).train(until=STEPS)
    assert again.named == []


def test_a_learning_rate_that_is_a_tensor_is_put_where_it_is(tmp_path: Path) -> None:
    cut_run(tmp_path, lr=torch.tensor(0.01))
    resumed = Loop(tmp_path, lr=torch.tensor(0.0005)).train()
    assert resumed.rates == [pytest.approx(0.0005)] * CUT
    assert resumed.named == ["optimizer.lr: 0.01 -> 0.0005, from your configuration"]


def test_what_the_loop_changed_by_hand_is_no_change_of_the_script(tmp_path: Path) -> None:
    def lower(step: int, optimizer: optim.Optimizer) -> None:
        if step == 4:
            optimizer.param_groups[0]["lr"] *= 0.1

    cut_run(tmp_path, by_hand=lower)
    resumed = Loop(tmp_path, by_hand=lower, weight_decay=0.3).train()
    assert resumed.rates == [0.01 * 0.1] * CUT
    assert resumed.named == ["optimizer.weight_decay: 0.01 -> 0.3, from your configuration"]


def plateau(**numbers: Any) -> Callable[[optim.Optimizer], Any]:
    return lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, **{"factor": 0.5, "patience": 3, **numbers})


def test_a_schedule_with_a_history_keeps_it_and_takes_the_new_numbers(tmp_path: Path) -> None:
    """The loss stands still: the rate was halved after step 5, and what waits since then is one bad step."""
    cut_run(tmp_path / "run", schedule=plateau())
    resumed = Loop(tmp_path / "run", schedule=plateau(factor=0.1, patience=1, mode="max"), lr=0.02).train()
    assert resumed.named == [
        "optimizer.lr: 0.01 -> 0.02, from your configuration",
        "scheduler.factor: 0.5 -> 0.1, from your configuration",
        "scheduler.patience: 3 -> 1, from your configuration",
        "scheduler.mode: min -> max, from your configuration",
    ]
    assert resumed.rates[:2] == [pytest.approx(0.01), pytest.approx(0.001)]
    assert resumed.schedule.best == 1.0 and resumed.schedule.mode_worse == -float("inf")  # type: ignore[union-attr]


class Noam:
    """A schedule of the user's own, which counts and saves its own way."""

    def __init__(self, optimizer: optim.Optimizer, warmup: int, begin: int = 0) -> None:
        self.optimizer = optimizer
        self.warmup = warmup
        self.count = begin

    def step(self) -> None:
        self.count += 1
        self.optimizer.param_groups[0]["lr"] = 0.01 * min(1.0, self.count / self.warmup)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "warmup": self.warmup}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def test_a_schedule_of_the_users_own_takes_what_training_has_not_moved(tmp_path: Path) -> None:
    """Its warm-up is a number; its count began with another one too, and is a position by now."""
    cut_run(tmp_path, schedule=lambda optimizer: Noam(optimizer, 4))
    resumed = Loop(tmp_path, schedule=lambda optimizer: Noam(optimizer, 8, begin=2)).train()
    assert resumed.named == [
        "scheduler.warmup: 4 -> 8, from your configuration",
        "scheduler.count: stays 0, for training has moved it since; your configuration has 2",
    ]
    assert resumed.rates[:3] == [0.01, 0.01 * 7 / 8, 0.01]


def test_a_schedule_that_ends_before_the_step_is_refused(tmp_path: Path) -> None:
    def cycle(steps: int) -> Callable[[optim.Optimizer], Any]:
        return lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)

    cut_run(tmp_path, schedule=cycle(20))
    with pytest.raises(CheckpointError, match="scheduler: with the numbers that you changed it cannot be stepped"):
        Loop(tmp_path, schedule=cycle(3)).train()


def test_with_keep_the_checkpoint_holds_and_each_change_is_named(tmp_path: Path) -> None:
    schedule = SCHEDULES["StepLR"]
    whole = Loop(tmp_path / "whole", schedule=schedule(2)).train()
    cut_run(tmp_path / "run", schedule=schedule(2))
    kept = Loop(tmp_path / "run", schedule=schedule(3), lr=0.5, how={"resume_settings": "keep"}).train()
    assert kept.trained_with == whole.trained_with[CUT:]
    assert kept.named == [
        "optimizer.lr: stays 0.01, from the checkpoint, as resume_settings says; your configuration has 0.5",
        "scheduler.step_size: stays 2, from the checkpoint, as resume_settings says; your configuration has 3",
    ]


def test_what_was_kept_is_what_the_next_resume_compares_with(tmp_path: Path) -> None:
    how: dict[str, Any] = {"schedule": SCHEDULES["StepLR"](3), "lr": 0.5}
    cut_run(tmp_path, schedule=SCHEDULES["StepLR"](2))
    Loop(tmp_path, **how, how={"resume_settings": "keep"}).train(cut=CUT + 2)
    followed = Loop(tmp_path, **how).train()
    assert followed.rates == Loop(tmp_path / "whole", **how).train().rates[CUT + 2 :]
    assert followed.named == [
        "optimizer.lr: 0.01 -> 0.5, from your configuration",
        "scheduler.step_size: 2 -> 3, from your configuration",
    ]


def test_each_of_several_groups_follows_its_own(tmp_path: Path) -> None:
    def optimizer(rates: tuple[float, float]) -> Callable[..., optim.Optimizer]:
        def build(parameters: Any, lr: float) -> optim.Optimizer:
            weight, bias = parameters
            return optim.SGD([{"params": [weight], "lr": rates[0]}, {"params": [bias], "lr": rates[1]}], lr=lr)

        return build

    Loop(tmp_path, optimizer=optimizer((0.1, 0.2))).train_one_step()
    resumed = Loop(tmp_path, optimizer=optimizer((0.1, 0.05)))
    with resumed.ckpt:
        resumed.ckpt.resume()
    assert [group["lr"] for group in resumed.optimizer.param_groups] == [0.1, 0.05]
    assert resumed.named == ["optimizer.groups.1.lr: 0.2 -> 0.05, from your configuration"]


def test_the_end_and_the_accumulation_that_batches_got_first_are_named(tmp_path: Path) -> None:
    def train(until: int, accumulate: int) -> list[str]:
        loop = Loop(tmp_path)
        with loop.ckpt:
            for group in loop.ckpt.batches(until=until, accumulate=accumulate):
                for batch in group:
                    loop.model(batch).sum().backward()
                loop.optimizer.step()
                loop.optimizer.zero_grad()
                loop.ckpt.step()
                loop.ckpt.save(wait=True)
        return loop.named

    assert train(2, 2) == []
    assert train(4, 3) == [
        "until: 2 -> 4, from your configuration",
        "accumulate: 2 -> 3, from your configuration",
    ]


def test_of_a_checkpoint_that_records_none_it_is_said_and_what_it_holds_is_kept(tmp_path: Path) -> None:
    cut_run(tmp_path, schedule=plateau(patience=50))
    checkpoint = tmp_path / f"checkpoint-{CUT}"
    manifest = catalog.read(checkpoint).manifest
    assert manifest is not None
    (checkpoint / "MANIFEST.json").write_bytes(replace(manifest, settings={}).encode())
    resumed = Loop(tmp_path, lr=0.5, schedule=plateau(patience=50, factor=0.1)).train()
    assert resumed.rates == [0.01] * CUT and resumed.named == []
    assert (
        "settings: the checkpoint records none; what you changed since cannot be seen, and what it holds is kept"
        in resumed.said
    )


@pytest.mark.parametrize("lie", [3, {"optimizer": 3}, {"optimizer": {"groups": [7, {"first": [], "settings": 1}]}}])
def test_settings_that_are_none_are_not_compared(lie: Any, tmp_path: Path) -> None:
    cut_run(tmp_path, schedule=SCHEDULES["StepLR"](2))
    checkpoint = tmp_path / f"checkpoint-{CUT}"
    manifest = catalog.read(checkpoint).manifest
    assert manifest is not None
    lies = {"parts": lie, "adapters": lie, "batches": lie}
    (checkpoint / "MANIFEST.json").write_bytes(replace(manifest, settings=lies).encode())
    assert Loop(tmp_path, lr=0.5, schedule=SCHEDULES["StepLR"](3)).train().named == []


def test_a_checkpoint_records_what_it_was_trained_with(tmp_path: Path) -> None:
    cut_run(tmp_path, schedule=SCHEDULES["StepLR"](2))
    entry = catalog.read(tmp_path / "checkpoint-6")
    assert entry.manifest is not None
    parts = entry.manifest.settings["parts"]
    (group,) = parts["optimizer"]["groups"]
    assert parts["optimizer"]["class"] == "AdamW" and group["settings"]["lr"] == 0.01
    assert (group["first"], group["parameters"]) == ("model.weight", 2)
    assert parts["scheduler"] == {"class": "StepLR", "numbers": {"step_size": 2, "gamma": 0.5}}
    assert entry.manifest.settings["batches"] == {"until": STEPS, "epochs": None, "accumulate": None}
    assert entry.manifest.version == 1


@pytest.mark.parametrize("wrapper", ["Lookahead", "TRAC", "OrthoGrad"])
def test_what_changed_inside_a_wrapper_holds_too(tmp_path: Path, wrapper: str) -> None:
    wrap = getattr(pytorch_optimizer, wrapper)
    make = lambda parameters, **hyperparameters: wrap(optim.AdamW(parameters, **hyperparameters))  # noqa: E731
    cut_run(tmp_path, optimizer=make, lr=0.05)
    resumed = Loop(tmp_path, optimizer=make, lr=0.01).train()
    assert resumed.named == ["optimizer.lr: 0.05 -> 0.01, from your configuration"]
    assert set(resumed.rates) == {0.01}
