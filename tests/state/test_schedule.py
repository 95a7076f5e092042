"""The numbers of schedules, and which of them can be stepped anew."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import optim
from torch.optim import lr_scheduler
from transformers import get_cosine_schedule_with_warmup

from holdfast.state import schedule

FLOOR = 0.25


@pytest.fixture
def optimizer() -> optim.Optimizer:
    return optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)


def test_a_function_has_the_numbers_that_it_mentions(optimizer: optim.Optimizer) -> None:
    warmup = 100
    names = ["not a number"]

    def rate(step: int, power: float = 2.0) -> float:
        return max(FLOOR, min(1.0, step / warmup)) ** power if names else 1.0

    numbers = schedule.numbers(lr_scheduler.LambdaLR(optimizer, rate))
    assert numbers["function"] == {"FLOOR": 0.25, "warmup": 100, "constants": [1.0], "defaults": [2.0]}


def test_a_function_that_mentions_what_is_not_there_yet_has_none(optimizer: optim.Optimizer) -> None:
    def rate(step: int) -> float:
        return later if step else 1.0

    assert schedule.numbers(lr_scheduler.LambdaLR(optimizer, rate))["function"] == {}
    later = 0.5


def test_a_partial_function_and_an_object_have_theirs(optimizer: optim.Optimizer) -> None:
    class Warmup:
        def __init__(self, steps: int) -> None:
            self.steps = steps

        def __call__(self, step: int) -> float:
            return min(1.0, step / self.steps)

    cosine = get_cosine_schedule_with_warmup(optimizer, 10, 100)
    assert schedule.numbers(cosine)["function"].items() >= {"num_warmup_steps": 10, "num_training_steps": 100}.items()
    assert schedule.numbers(lr_scheduler.LambdaLR(optimizer, Warmup(7)))["function"] == {"steps": 7}
    assert "function" not in schedule.numbers(lr_scheduler.StepLR(optimizer, 3))


def decayed(step: int, base: float) -> float:
    return base**step


def test_a_method_has_the_numbers_of_its_object_that_it_mentions(optimizer: optim.Optimizer) -> None:
    class Program:
        def __init__(self) -> None:
            self.decay = 0.5
            self.began_at = 1700000000.0

        def rate(self, step: int) -> float:
            return float(max(self.decay**step, 0.125))

    recorded = schedule.numbers(lr_scheduler.LambdaLR(optimizer, Program().rate))
    assert recorded["function"] == {"decay": 0.5, "constants": [0.125], "defaults": []}


def test_functions_of_groups_that_differ_have_each_their_own() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))]} for _ in range(2)]
    functions: list[Callable[[int], float]] = [functools.partial(decayed, base=base) for base in (0.5, 0.25)]
    both = lr_scheduler.LambdaLR(optim.SGD(groups, lr=0.1), functions)
    assert [function["base"] for function in schedule.numbers(both)["functions"]] == [0.5, 0.25]


def test_what_takes_a_measurement_is_not_stepped_anew(optimizer: optim.Optimizer) -> None:
    class Measured(lr_scheduler.LRScheduler):
        def step(self, loss: Any = None) -> None:
            super().step()

        def get_lr(self) -> list[float]:  # type: ignore[override]
            return [0.1]

    class Needy(Measured):
        def step(self, loss: Any) -> None:  # type: ignore[override]
            pass

        def _initial_step(self) -> None:
            pass

    step = lr_scheduler.StepLR(optimizer, 3)
    assert schedule.can_be_replayed(step) and schedule.can_be_replayed(Measured(optimizer))
    assert schedule.can_be_replayed(lr_scheduler.SequentialLR(optimizer, [step, step], [2]))
    assert not schedule.can_be_replayed(Needy(optimizer))
    assert not schedule.can_be_replayed(lr_scheduler.ReduceLROnPlateau(optimizer))
    assert not schedule.can_be_replayed(object())


def test_a_schedule_is_known_in_a_wrapper_and_other_objects_are_none(optimizer: optim.Optimizer) -> None:
    class Wrapper:
        def __init__(self, scheduler: Any) -> None:
            self.scheduler = scheduler

    step = lr_scheduler.StepLR(optimizer, 3)
    assert schedule.bare_schedule(Wrapper(step)) is step is schedule.bare_schedule(step)
    assert schedule.bare_schedule(torch.amp.GradScaler("cpu")) is None
