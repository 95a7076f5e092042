"""A glance at tensors of several cards: each card has its own sample, and nothing is put together over two."""

import pytest
import torch

from holdfast.state.glance import Glance, Watched
from holdfast.state.reachable import Place


def watched(name: str, tensor: torch.Tensor) -> Watched:
    """One whose sample is taken as on a card."""
    made = Watched(Place(name, (), tensor, ({name: tensor}, name)))
    made.window = b""
    made.view = made.alias.reshape(-1).view(torch.uint8)[:4]
    made.first = made.view.clone()
    return made


def test_each_card_has_a_sample_of_its_own() -> None:
    first, second, third = torch.zeros(3), torch.zeros(3, device="meta"), torch.zeros(3)
    glance = Glance({"a": watched("a", first), "b": watched("b", second), "c": watched("c", third)})
    look = glance.look()
    assert [(sample.device.type, sample.numel()) for sample in look.on_cards] == [("cpu", 8), ("meta", 4)]


def test_those_that_differ_from_another_look_or_from_the_first_are_named() -> None:
    first, second = torch.zeros(3), torch.zeros(3)
    glance = Glance({"a": watched("a", first), "b": watched("b", second)})
    second.data[0] = 1.0
    look = glance.look()
    first.data[0] = 2.0
    assert glance.changed_on_device(look) == ["b"]
    assert glance.changed_on_device(glance.look(), look) == ["a"]


def test_where_a_card_has_no_room_for_samples_nothing_is_seen_there_and_training_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = torch.zeros(3)
    glance = Glance({"a": watched("a", first)})

    def refuse(tensors: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("the card is full")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "cat", refuse)
        full = glance.look()
    first.data[0] = 1.0
    assert glance.changed_on_device(full) == glance.changed_on_device(glance.look(), full) == []
    assert glance.changed_on_device(glance.look()) == ["a"]
