import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn, optim
from torch.optim import lr_scheduler as lrs

from helpers.launches import Launches
from helpers.parts import move, raw, same, save_recorded
from holdfast.errors import CheckpointError, UnsupportedError
from holdfast.state.part import Stored
from holdfast.state.stateful import StatefulPart, stateful_part

BIG = 1 << 16  # floats: 256 KiB


def optimizer() -> optim.Optimizer:
    return optim.SGD([nn.Parameter(torch.zeros(1))], 0.1, momentum=0.9)


class Schedule:
    """The argument of a LambdaLR that has state."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, step: int) -> float:
        self.calls += 1
        return 0.9**self.calls


SCHEDULES: dict[str, Callable[[optim.Optimizer], Any]] = {
    "step": lambda o: lrs.StepLR(o, 2, 0.3),
    "multi-step": lambda o: lrs.MultiStepLR(o, [1, 3, 3], 0.7),
    "cosine": lambda o: lrs.CosineAnnealingLR(o, 10),
    "restarts": lambda o: lrs.CosineAnnealingWarmRestarts(o, 2, 2),
    "one cycle": lambda o: lrs.OneCycleLR(o, 0.5, total_steps=20),
    "cyclic": lambda o: lrs.CyclicLR(o, 0.01, 0.2, 3),
    "lambda": lambda o: lrs.LambdaLR(o, lambda step: 0.95**step),
    "lambda with state": lambda o: lrs.LambdaLR(o, Schedule()),
    "plateau": lambda o: lrs.ReduceLROnPlateau(o, patience=0),
    "sequential": lambda o: lrs.SequentialLR(o, [lrs.ConstantLR(o, 0.1), lrs.ExponentialLR(o, 0.9)], [2]),
    "chained": lambda o: lrs.ChainedScheduler([lrs.ConstantLR(o, 0.1), lrs.ExponentialLR(o, 0.9)]),
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_schedules_go_on_where_they_were(tmp_path: Path, kind: str) -> None:
    def step(number: int, schedule: Any, of: optim.Optimizer) -> float:
        of.step()
        schedule.step(*([float(number % 2)] if kind == "plateau" else []))
        rate: float = of.param_groups[0]["lr"]
        return rate

    first, second = optimizer(), optimizer()
    old, new = SCHEDULES[kind](first), SCHEDULES[kind](second)
    for number in range(3):
        step(number, old, first)
    move([StatefulPart("scheduler", old)], [StatefulPart("scheduler", new)], tmp_path)
    second.param_groups[0].update({key: value for key, value in first.param_groups[0].items() if key != "params"})
    assert same(new.state_dict(), old.state_dict())
    with warnings.catch_warnings(action="ignore"):  # it does not know that its optimizer was ahead of it
        assert [step(n, new, second) for n in range(9)] == [step(n, old, first) for n in range(9)]


class Average:
    """An average that a loop keeps by hand."""

    def __init__(self, size: int = BIG) -> None:
        self.shadow = {"w": torch.zeros(size), "b": torch.zeros(2)}
        self.more: dict[Any, Any] = {"n": 0, 3: (1, 0.1), "array": np.zeros(2), "none": None}

    def state_dict(self) -> dict[str, Any]:
        return {"shadow": self.shadow, "more": self.more}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.shadow, self.more = state["shadow"], state["more"]


def test_large_tensors_are_live_and_the_rest_is_of_the_moment_of_recording(tmp_path: Path) -> None:
    old, new = Average(), Average()
    part, other = StatefulPart("ema", old), StatefulPart("ema", new)
    assert {name: tensor.data_ptr() for name, tensor in part.live().items()} == {
        "state/shadow/w": old.shadow["w"].data_ptr()
    }
    recorded = part.record()
    old.more["n"] = 1
    old.more["array"][0] = 1
    old.shadow["b"].add_(1)
    old.shadow["w"].add_(1)
    stored = save_recorded([part], [recorded], tmp_path)["ema"]
    assert other.problems(stored) == [] and other.restore(stored, strict=True) == []
    assert new.more["n"] == 0 and not new.more["array"].any() and not new.shadow["b"].any()
    assert raw(new.shadow["w"]) == raw(torch.ones(BIG))
    assert list(new.more) == ["n", 3, "array", "none"] and new.more[3] == (1, 0.1)


def test_structure_differs_when_large_tensors_are_others() -> None:
    average = Average()
    part = StatefulPart("ema", average)
    before = part.structure()
    average.shadow["w"].add_(1)
    part.record()
    assert part.structure() == before
    average.shadow["w"] = torch.ones(BIG)
    part.record()
    assert part.structure() != before and part.live()["state/shadow/w"].all()


def test_a_scaler_comes_back_and_is_not_asked_for_numbers_at_every_step(tmp_path: Path) -> None:
    old, new = torch.amp.GradScaler("cpu", init_scale=8.0), torch.amp.GradScaler("cpu")
    part = stateful_part("scaler", old)
    weight = nn.Parameter(torch.ones(1))
    sgd = optim.SGD([weight], 0.1)
    weight.grad = old.scale(torch.ones(1))
    old.step(sgd)
    old.update()
    before = old.state_dict()
    recorded = part.record()
    assert isinstance(recorded["scale"], torch.Tensor)
    weight.grad = torch.full((1,), float("inf"))
    old.step(sgd)
    old.update()
    assert old.get_scale() == 4.0
    stored = save_recorded([part], [recorded], tmp_path)["scaler"]
    other = stateful_part("scaler", new)
    assert other.restore(stored, strict=True) == []
    assert same(new.state_dict(), before) and before["_growth_tracker"] == 1


@pytest.mark.parametrize("enabled", [True, False])
def test_a_scaler_that_has_scaled_nothing_comes_back(tmp_path: Path, enabled: bool) -> None:
    old = torch.amp.GradScaler("cpu", init_scale=8.0, enabled=enabled)
    new = torch.amp.GradScaler("cpu", enabled=enabled)
    move([stateful_part("scaler", old)], [stateful_part("scaler", new)], tmp_path)
    assert same(new.state_dict(), old.state_dict())


class Holding:
    def __init__(self, value: Any) -> None:
        self.value = value

    def state_dict(self) -> Any:
        return {"a": {"b": [self.value]}}

    def load_state_dict(self, state: Any) -> None:
        raise KeyError("a")


def test_content_that_has_no_form_is_refused_at_once_by_path_and_type() -> None:
    with pytest.raises(UnsupportedError, match=r"^other: state/a/b/0 is a builtins\.object, which"):
        StatefulPart("other", Holding(object()))


def test_another_class_is_a_mismatch() -> None:
    part = StatefulPart("ema", Average())
    stored = Stored({}, {"kind": "object", "class": "StepLR", "state": {}})
    assert part.problems(stored) == ["ema: is a StepLR in the checkpoint and a Average here"]
    with pytest.raises(CheckpointError, match="is a StepLR"):
        part.restore(stored, strict=True)
    assert part.restore(stored, strict=False) == ["ema: is a StepLR in the checkpoint and a Average here: left out"]


@pytest.mark.parametrize("rest", [None, {"kind": "model"}, {"kind": "object", "class": "Average", "state": {"$x": 1}}])
def test_what_nobody_wrote_raises_an_error_of_ours(rest: Any) -> None:
    with pytest.raises(CheckpointError):
        StatefulPart("ema", Average()).restore(Stored({}, rest), strict=True)


def test_an_object_that_does_not_take_the_state_is_named() -> None:
    part = StatefulPart("other", Holding(1))
    with pytest.raises(CheckpointError, match=r"other does not take the checkpoint's state: KeyError\('a'\)"):
        part.restore(part.encode(part.record()), strict=True)


def test_small_tensors_of_a_card_are_copied_together_and_come_into_their_places() -> None:
    shadow = {f"w{n}": torch.empty(n + 1, device="meta") for n in range(50)}
    part = StatefulPart(
        "average", Holding({"host": torch.ones(2), "shadow": shadow, "odd": (torch.empty(7, device="meta").conj(), 3)})
    )
    with Launches(lambda tensor: tensor.is_meta) as launches:
        recorded = part.record()["a"]["b"][0]
    assert launches.calls == {"aten::_foreach_copy_": 1}
    assert {name: tensor.shape for name, tensor in recorded["shadow"].items()} == {f"w{n}": (n + 1,) for n in range(50)}
    assert not any(recorded["shadow"][name] is shadow[name] for name in shadow)
