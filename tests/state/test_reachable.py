"""The tensors that a walk from a training's objects comes to, and the names of their places."""

import functools
from collections import deque
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from holdfast.state import reachable
from holdfast.state.reachable import Walk, known_of, resolve


@dataclass
class Box:
    content: Any


class Slotted:
    __slots__ = ("average",)

    def __init__(self) -> None:
        self.average = torch.zeros(2)


class Nothing:
    """Takes any attribute."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__[name] = value


def names(**roots: object) -> list[str]:
    return sorted(Walk(roots, {}).places)


def test_a_place_is_named_as_a_user_would_write_it() -> None:
    holder = Nothing()
    holder.teacher = nn.Linear(2, 2, bias=False)
    holder.shadow = {"fc.weight": torch.zeros(1), 3: torch.zeros(1)}
    holder.queue = deque([torch.zeros(1), Box((torch.zeros(1),))])
    holder.slotted = Slotted()
    places = Walk({"model": holder, "": holder.queue[1]}, {}).places
    assert sorted(places) == [
        "content[0]",
        "model.queue[0]",
        "model.shadow[3]",
        "model.shadow[fc.weight]",
        "model.slotted.average",
        "model.teacher.weight",
    ]
    roots = {"model": holder, "": holder.queue[1]}
    assert all(resolve(roots, place.hops) is place.tensor for place in places.values())
    assert all(place.holder[0][place.holder[1]] is place.tensor for place in places.values())


def test_a_place_that_is_gone_resolves_to_nothing() -> None:
    holder = Nothing()
    holder.average = torch.zeros(1)
    (place,) = Walk({"model": holder}, {}).places.values()
    holder.average = 3.0
    assert resolve({"model": holder}, place.hops) is None
    del holder.average
    assert resolve({"model": holder}, place.hops) is None


def test_what_wraps_a_model_is_not_in_its_names() -> None:
    holder = Nothing()
    holder.ref = nn.DataParallel(nn.Linear(2, 2, bias=False))
    assert names(model=holder) == ["model.ref.weight"]


def test_what_parts_hold_is_passed_over_and_names_the_keys_that_they_are() -> None:
    model = nn.BatchNorm1d(2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 2)).sum().backward()
    optimizer.step()
    model.shadow = {model.weight: torch.zeros(2)}  # type: ignore[assignment]
    model.alias = [model.running_mean, model.weight.data]  # type: ignore[assignment]
    model.schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)  # type: ignore[assignment]
    optimizer.previous = [torch.zeros(2)]  # type: ignore[attr-defined]
    named = {"model": model, "optimizer": optimizer, "schedule": model.schedule}
    assert sorted(Walk(named, known_of(named)).places) == ["model.shadow[model.weight]", "optimizer.previous[0]"]


def test_samples_code_and_what_a_forward_left_are_no_state() -> None:
    weight = torch.ones(2, requires_grad=True)
    holder = Nothing()
    holder.__dict__.update(
        data=TensorDataset(torch.zeros(2)),
        loader=DataLoader(TensorDataset(torch.zeros(2))),
        generator=torch.Generator(),
        function=functools.partial(print, torch.zeros(2)),
        code=lambda tensor=weight: tensor,
        hidden=weight * 2,
        meta=torch.zeros(2, device="meta"),
        table=list(range(100_000)),
        itself=holder,
    )
    walk = Walk({"model": holder}, {})
    assert walk.places == {} and walk.complete
    assert walk.objects < 10


def test_what_a_metric_has_computed_of_its_state_is_passed_over() -> None:
    torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    metric = torchmetrics.MeanSquaredError()
    metric(torch.ones(3), torch.zeros(3))
    metric.compute()
    assert metric._forward_cache is not None and metric._computed is not None
    made = ["error._defaults[sum_squared_error]", "error._defaults[total]"]
    assert sorted(Walk({"error": metric}, {}).places) == [*made, "error.sum_squared_error", "error.total"]


def test_a_walk_has_an_end_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reachable, "MOST_OBJECTS", 100)
    assert Walk({"model": [Box(n) for n in range(40)]}, {}).complete
    assert not Walk({"model": [Box(n) for n in range(200)]}, {}).complete
