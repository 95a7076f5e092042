from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import pytorch_optimizer
import torch
from torch import nn, optim

from helpers.parts import move, save
from holdfast.errors import CheckpointError, UnsupportedError
from holdfast.state.part import Part, Stored
from holdfast.state.registry import parts_of


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))


def step(model: nn.Module, optimizer: Any) -> None:
    model(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def lookahead(parameters: Any) -> Any:
    return pytorch_optimizer.Lookahead(optim.AdamW(parameters, 0.1), k=2)


def part_of(model: nn.Module, optimizer: Any) -> Part:
    return parts_of({"model": model, "optimizer": optimizer})[1]


def stored_state(tmp_path: Path) -> Stored:
    model = net()
    wrapped = lookahead(model.parameters())
    step(model, wrapped)
    return save([part_of(model, wrapped)], tmp_path)["optimizer"]


def test_a_state_that_goes_by_numbers_is_refused_where_the_numbers_are_of_other_parameters(tmp_path: Path) -> None:
    stored = stored_state(tmp_path)
    model = net(1)
    part = part_of(model, lookahead([*model.parameters()][::-1]))
    (problem,) = part.problems(stored)
    assert problem.endswith("in another order or other groups, and the state of Lookahead goes by their numbers")
    with pytest.raises(CheckpointError, match="another order"):
        part.restore(stored, strict=True)
    assert part.restore(stored, strict=False) == [f"{problem}: left out"]


def test_parameters_on_one_side_alone_are_named(tmp_path: Path) -> None:
    stored = stored_state(tmp_path)
    model = net(1)
    part = part_of(model, lookahead([*model.parameters()][:3]))
    assert part.problems(stored) == ["optimizer: 'model.1.bias' is updated in the checkpoint and not here"]


def test_another_class_or_kind_is_a_mismatch(tmp_path: Path) -> None:
    stored = stored_state(tmp_path)
    model = net(1)
    free = pytorch_optimizer.ScheduleFreeWrapper(optim.AdamW(model.parameters(), 0.1))
    (problem,) = part_of(model, free).problems(stored)
    assert problem == "optimizer: is of class Lookahead in the checkpoint and of class ScheduleFreeWrapper here"
    with pytest.raises(CheckpointError, match="'stated_optimizer' in the checkpoint, and of kind 'optimizer' here"):
        part_of(model, optim.AdamW(model.parameters())).problems(stored)


@pytest.mark.parametrize("groups", [7, [7], None])
def test_groups_that_nobody_wrote_raise_an_error_of_ours(tmp_path: Path, groups: Any) -> None:
    stored = stored_state(tmp_path)
    model = net(1)
    part = part_of(model, lookahead(model.parameters()))
    with pytest.raises(CheckpointError, match="its groups cannot be read"):
        part.problems(Stored(stored.tensors, {**stored.rest, "groups": groups}))


def test_a_state_that_the_optimizer_does_not_take_is_an_error_that_names_it(tmp_path: Path) -> None:
    stored = stored_state(tmp_path)
    model = net(1)
    part = part_of(model, lookahead(model.parameters()))
    with pytest.raises(CheckpointError, match="optimizer does not take the checkpoint's state: KeyError"):
        part.restore(Stored(stored.tensors, {**stored.rest, "state": {}}), strict=True)


class ByPlace(optim.SGD):
    """Names parameters by `id`, as old wrappers do: in another process these are those of nothing, or of anything."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1)
        self.slow: dict[Any, Any] = defaultdict(dict)

    def step(self, closure: Any = None) -> Any:
        super().step()
        for parameter in self.param_groups[0]["params"]:
            self.slow[parameter]["weights"] = parameter.detach().clone()

    def state_dict(self) -> Any:
        return {"slow": {id(parameter): kept for parameter, kept in self.slow.items()}, "fast": super().state_dict()}


def test_parameters_that_are_named_by_their_place_in_memory_are_refused() -> None:
    model = net()
    optimizer = ByPlace(model.parameters())
    part = part_of(model, optimizer)
    step(model, optimizer)
    recorded = part.record()
    with pytest.raises(UnsupportedError, match=r"the state_dict of ByPlace names parameters by their place in memory"):
        part.encode(recorded)


class Forgetful(optim.SGD):
    """Takes back less than it gives."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1)
        self.beat, self.curve = 0, torch.zeros(100_000)

    def step(self, closure: Any = None) -> Any:
        super().step()
        self.beat += 1
        self.curve += 1

    def state_dict(self) -> Any:
        return {"fast": super().state_dict(), "beat": self.beat, "curve": self.curve}

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict["fast"])


def test_what_it_did_not_take_is_named(tmp_path: Path) -> None:
    old, new = net(), net(1)
    first, second = Forgetful(old.parameters()), Forgetful(new.parameters())
    step(old, first)
    notes = move([part_of(old, first)], [part_of(new, second)], tmp_path)
    assert notes == ["optimizer: its state_dict after the resume differs from what was loaded: beat, curve"]


class Hidden(optim.SGD):
    """Puts state into `state` that `.state` does not have."""

    def state_dict(self) -> Any:
        said = super().state_dict()
        return {**said, "state": {**said["state"], 99: {"kept": torch.ones(3)}}}


def test_state_that_was_slipped_under_torchs_own_is_refused_at_once() -> None:
    model = net()
    with pytest.raises(UnsupportedError, match=r"Hidden has state that is not in its \.state"):
        part_of(model, Hidden(model.parameters(), 0.1))
