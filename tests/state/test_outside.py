"""Tensors in no part: what a checkpoint carries of them, and what it says that it does not."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from holdfast.state import outside as outside_module
from holdfast.state.likeness import alike
from holdfast.state.outside import Carried, Outside, owner_of
from holdfast.state.reachable import known_of


class Kept:
    """What a model keeps beside its weights."""

    def __init__(self) -> None:
        self.teacher = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.average = torch.zeros(64)


def watched() -> tuple[Any, Outside]:
    """Returns a model with something beside its weights, and the watch over it, right before its first step."""
    model: Any = nn.Linear(4, 4)
    model.kept = Kept()
    named: Mapping[str, object] = {"model": model}
    outside = Outside(lambda: named, lambda: known_of(named))
    outside.begin()
    return model, outside


def saved(outside: Outside) -> Carried:
    return outside.at_save(outside.record())


def test_what_never_changes_costs_no_byte() -> None:
    model, outside = watched()
    with torch.no_grad():
        model.weight.add_(1)
    model(torch.ones(4)).sum().backward()
    assert saved(outside) == saved(outside) == Carried()


@pytest.mark.parametrize("way", ["in place", "past the versions", "another tensor", "another holder"])
def test_what_changes_is_carried_as_of_the_boundary(way: str) -> None:
    model, outside = watched()
    saved(outside)
    with torch.no_grad():
        match way:
            case "in place":
                model.kept.average.add_(1)
            case "past the versions":
                model.kept.average.data.add_(1)
            case "another tensor":
                model.kept.average = model.kept.average + 1
            case "another holder":
                before, model.kept = model.kept, Kept()
                model.kept.average, model.kept.teacher = before.average + 1, before.teacher
        recorded = outside.record()
        carried = outside.at_save(recorded)
        assert list(carried.tensors) == ["model.kept.average"] and not carried.left_out
        assert torch.equal(carried.tensors["model.kept.average"], torch.ones(64))
        recorded = outside.record()
        model.kept.average.add_(1)
        assert torch.equal(outside.at_save(recorded).tensors["model.kept.average"], torch.ones(64))
        assert torch.equal(saved(outside).tensors["model.kept.average"], torch.full((64,), 2.0))


def test_a_large_one_is_read_where_it_is_and_copied_once_it_changes_between_updates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outside_module, "_COPIED_BYTES", {"cpu": 100})
    model, outside = watched()
    outside.record()
    model.kept.average.data.add_(1)
    assert saved(outside).tensors["model.kept.average"].data_ptr() == model.kept.average.data_ptr()
    assert outside.copied == {}
    recorded = outside.record()
    model.kept.average.data.add_(1)
    carried = outside.at_save(recorded)
    assert carried.tensors == {}
    assert list(carried.left_out) == [
        "model.kept.average: it changed after the boundary, and is copied at every one from now on"
    ]
    assert outside.copied == {"model.kept.average": 256}
    recorded = outside.record()
    model.kept.average.data.add_(1)
    assert torch.equal(outside.at_save(recorded).tensors["model.kept.average"], torch.full((64,), 2.0))


def test_two_records_are_alike_until_something_changes() -> None:
    model, outside = watched()
    model.kept.average.data.add_(1)
    outside.record()
    model.kept.average.data.add_(1)
    saved(outside)
    first = outside.record()
    saved(outside)
    assert alike(first, outside.record())
    model.kept.average.data.add_(1)
    assert not alike(first, outside.record())
    second = outside.record()
    model.kept.teacher[0].weight.data.add_(1)
    assert not alike(second, outside.record())


def test_what_first_changes_after_the_boundary_is_not_taken_for_what_was_there() -> None:
    model, outside = watched()
    recorded = outside.record()
    model.kept.average.data.add_(1)
    assert "model.kept.average: it changed after the boundary" in outside.at_save(recorded).left_out[0]
    assert list(saved(outside).tensors) == ["model.kept.average"]


def test_what_comes_with_the_first_step_is_no_change_and_what_comes_later_is() -> None:
    model, outside = watched()
    model.mask = torch.ones(4)
    assert saved(outside) == Carried()
    model.snapshot = torch.ones(4)
    assert list(saved(outside).tensors) == ["model.snapshot"]
    del model.snapshot
    assert saved(outside) == Carried()


def test_what_no_file_of_tensors_holds_is_named_when_it_changes() -> None:
    model, outside = watched()
    model.kept.graph = torch.eye(2).to_sparse()
    assert saved(outside) == Carried()
    model.kept.graph = torch.ones(2, 2).to_sparse()
    assert list(saved(outside).left_out) == ["model.kept.graph: it is a Tensor of layout torch.sparse_coo"]


def test_it_comes_back_in_place_is_carried_on_and_what_has_no_place_is_named() -> None:
    model, outside = watched()
    average = model.kept.average
    tensors = {
        "model.kept.average": torch.ones(64),
        "model.gone": torch.ones(1),
        "model.kept.teacher.0.bias": torch.ones(3),
    }
    assert outside.restore(tensors) == ["model.gone", "model.kept.teacher.0.bias"]
    assert model.kept.average is average and torch.equal(average, torch.ones(64))
    assert torch.equal(saved(outside).tensors["model.kept.average"], torch.ones(64)), "it has not changed since"


def test_what_an_optimizer_updates_is_carried_whether_or_not_it_was_seen_to_change() -> None:
    model, outside = watched()
    bias = model.kept.teacher[0].bias
    assert outside.places_of([bias, nn.Parameter(torch.ones(1))]) == {"model.kept.teacher.0.bias": bias}
    outside.carry(["model.kept.teacher.0.bias"])
    assert list(saved(outside).tensors) == ["model.kept.teacher.0.bias"]


def test_what_is_told_in_short_names_what_a_user_made() -> None:
    owners = {
        "ref_model.layers.0.weight": "ref_model",
        "callbacks[Ema].shadow[fc.weight]": "callbacks[Ema].shadow",
        "model.ema[0]": "model.ema",
        "model.kept.average": "model.kept",
        "reward_weights": "reward_weights",
    }
    assert {name: owner_of(name) for name in owners} == owners
    left_out = {f"ref_model.{number}": "it is gone" for number in range(3)}
    assert outside_module.in_short(left_out) == ["ref_model (3 tensors): it is gone"]
