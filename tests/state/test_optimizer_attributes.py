from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim

from helpers.parts import move, same, save
from holdfast.errors import CheckpointError
from holdfast.state.model import ModelPart
from holdfast.state.optimizer_attributes import AttributesPart
from holdfast.state.part import Stored


class Odd(optim.SGD):
    """Keeps all kinds of things beside its state."""

    def __init__(self, parameters: Any, every: int = 2) -> None:
        super().__init__(parameters, lr=0.1)
        self.every, self.steps = every, 0
        self.members = list(self.param_groups[0]["params"])
        self.flat = torch.zeros(6)
        self.view = self.flat[:3]
        self.slow = {self.members[0]: {"mean": torch.zeros(2)}}
        self.history: list[Any] = []
        self.log = print


def part_of(optimizer: Odd, model: nn.Module) -> AttributesPart:
    return AttributesPart("optimizer", optimizer, [ModelPart("model", model)])


def test_tensors_and_numbers_that_changed_come_back_and_how_it_was_made_does_not(tmp_path: Path) -> None:
    old, new = nn.Linear(2, 2), nn.Linear(2, 2)
    first = Odd(old.parameters())
    part = part_of(first, old)
    first.steps, first.late = 5, "now"  # type: ignore[attr-defined]
    first.flat += 3
    first.slow[first.members[0]]["mean"] += 1
    first.history.append((1, torch.ones(2)))
    second = Odd(new.parameters(), every=7)
    assert move([part], [part_of(second, new)], tmp_path) == []
    assert (second.steps, second.late, second.every, second.log) == (5, "now", 7, print)  # type: ignore[attr-defined]
    assert same(second.flat, first.flat) and same(second.history, first.history)
    assert same(second.slow[new.weight], first.slow[old.weight])
    second.flat.zero_()
    assert not second.view.any(), "memory that was shared is shared still"


def test_histories_of_numbers_come_back_if_they_have_changed(tmp_path: Path) -> None:
    old, new = nn.Linear(2, 2), nn.Linear(2, 2)
    first: Any = Odd(old.parameters())
    first.norms, first.betas, first.counts, first.ids = deque([0.5], 3), [0.9, 0.999], {"skipped": 0}, [id(old)]
    part = part_of(first, old)
    first.norms.append(2.0)
    first.counts["skipped"] += 1
    first.ids.append(id(new))
    second: Any = Odd(new.parameters())
    second.norms, second.betas, second.counts, second.ids = deque([0.5], 3), [0.8, 0.99], {"skipped": 0}, [0]
    assert move([part], [part_of(second, new)], tmp_path) == []
    assert same([second.norms, second.counts], [deque([0.5, 2.0], 3), {"skipped": 1}])
    assert second.betas == [0.8, 0.99], "how it was made is the program's"
    assert second.ids == [0], "places in memory are no other process's"
    second.norms.append(3.0)
    assert second.norms.maxlen == 3


def test_what_came_back_is_saved_again_though_it_did_not_change_since(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    first = Odd(model.parameters())
    part = part_of(first, model)
    first.steps = 5
    again = part_of(Odd(model.parameters()), model)
    move([part], [again], tmp_path / "first")
    assert save([again], tmp_path / "second")["optimizer"].rest["values"]["steps"] == 5


def test_what_is_recorded_is_of_that_moment(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    optimizer = Odd(model.parameters())
    part = part_of(optimizer, model)
    optimizer.steps = 1
    recorded = part.record()
    optimizer.steps = 2
    assert part.encode(recorded).rest["values"]["steps"] == 1


def test_other_tensors_change_the_structure() -> None:
    model = nn.Linear(2, 2)
    optimizer = Odd(model.parameters())
    part = part_of(optimizer, model)
    before = part.structure()
    optimizer.flat += 1
    assert part.structure() == before
    optimizer.flat = torch.zeros(6)
    assert part.structure() != before


@pytest.mark.parametrize("name", ["step", "state_dict", "__class__", "param_groups", "no name"])
def test_a_checkpoint_sets_nothing_that_is_not_a_plain_attribute(tmp_path: Path, name: str) -> None:
    model = nn.Linear(2, 2)
    optimizer = Odd(model.parameters())
    part = part_of(optimizer, model)
    stored = save([part], tmp_path)["optimizer"]
    rest = {**stored.rest, "values": {"steps": 9, name: 1}}
    with pytest.raises(CheckpointError, match="is no attribute that holds a state"):
        part.restore(Stored(stored.tensors, rest), strict=True)
    assert optimizer.steps == 0
    with pytest.raises(CheckpointError, match="cannot be read"):
        part.restore(Stored(stored.tensors, {**stored.rest, "values": [1]}), strict=True)
