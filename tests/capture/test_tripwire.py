from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from helpers.paper import Lane, Paper
from helpers.parts import raw
from holdfast.capture.tripwire import WriteDetector

MB = 1 << 20


def some_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "weight": torch.randn(64, 64),
        "half": torch.randn(300).to(torch.bfloat16),
        "scalar": torch.randn(()),
        "turned": torch.randn(8, 6).T,
        "nothing": torch.zeros(0),
    }


def seen(tensors: dict[str, torch.Tensor], write: Callable[[], object], swappable: int | None = None) -> list[str]:
    detector = WriteDetector(tensors, swappable)
    before = detector.fingerprint()
    write()
    return detector.changed(before, detector.fingerprint())


def sampled_places(size: int) -> list[int]:
    """Returns the places at which a tensor of `size` bytes that is alone is looked at, 64 bytes each."""
    return [size * (2 * place + 1) // 32 for place in range(16)]


def test_reading_is_no_change() -> None:
    tensors = some_tensors()
    assert seen(tensors, lambda: [tensor.sum() for tensor in tensors.values()]) == []


@pytest.mark.parametrize("name", ["weight", "half", "scalar", "turned", "nothing"])
def test_an_operation_in_place_is_seen_even_where_it_changes_no_byte(name: str) -> None:
    tensors = some_tensors()
    assert seen(tensors, lambda: tensors[name].add_(0)) == [name]


@pytest.mark.parametrize("name", ["weight", "half", "scalar", "turned"])
def test_other_data_is_seen_though_it_is_equal(name: str) -> None:
    tensors = some_tensors()

    def swap() -> None:
        tensors[name].data = tensors[name].detach().clone()

    assert seen(tensors, swap) == [name]


def by_data(tensor: torch.Tensor) -> None:
    tensor.data.mul_(2)


def by_numpy(tensor: torch.Tensor) -> None:
    tensor.detach().numpy()[...] *= 2


def by_a_fused_kernel(tensor: torch.Tensor) -> None:
    ones = [torch.ones_like(tensor) for _ in range(3)]
    torch._fused_adamw_(
        [tensor],
        ones[:1],
        ones[1:2],
        ones[2:],
        [],
        [torch.ones(())],
        lr=0.1,
        beta1=0.9,
        beta2=0.99,
        weight_decay=0.0,
        eps=1e-8,
        amsgrad=False,
        maximize=False,
    )


@pytest.mark.parametrize("write", [by_data, by_numpy, by_a_fused_kernel], ids=lambda write: write.__name__)
def test_a_write_that_moves_no_version_is_seen_by_what_it_writes(write: Callable[[torch.Tensor], None]) -> None:
    tensors = some_tensors()
    version = tensors["weight"]._version
    assert seen(tensors, lambda: write(tensors["weight"])) == ["weight"]
    assert tensors["weight"]._version == version


def test_each_change_is_named_once_and_in_order() -> None:
    tensors = some_tensors()

    def write() -> None:
        for name in ("scalar", "turned", "weight"):
            tensors[name].mul_(2)

    assert seen(tensors, write) == ["weight", "scalar", "turned"]


def test_a_change_back_is_none_to_what_is_compared() -> None:
    tensors = some_tensors()
    detector = WriteDetector(tensors)
    first = detector.fingerprint()
    tensors["weight"].data.neg_()
    second = detector.fingerprint()
    tensors["weight"].data.neg_()
    third = detector.fingerprint()
    assert detector.changed(first, second) == detector.changed(second, third) == ["weight"]
    assert detector.changed(first, third) == []


def test_the_samples_are_spread_over_the_whole() -> None:
    tensors = {"one": torch.zeros(MB, dtype=torch.uint8)}
    places = sampled_places(MB)
    assert {after - before for before, after in pairwise(places)} == {MB // 16}
    for place in places:
        assert seen(tensors, lambda place=place: tensors["one"].data[place + 63].add_(1)) == ["one"]  # type: ignore[misc]


def test_what_lies_between_the_samples_is_left_to_the_second_reading() -> None:
    tensors = {"one": torch.zeros(MB, dtype=torch.uint8)}

    def write() -> None:
        for place in sampled_places(MB):
            tensors["one"].data[place - 1].add_(1)
            tensors["one"].data[place + 64].add_(1)

    assert seen(tensors, write) == []


def test_the_samples_go_by_bytes_so_that_many_small_ones_share_them() -> None:
    tensors = {f"{number}": torch.zeros(16) for number in range(32)}  # 64 bytes each: every second one is sampled

    def write() -> None:
        for tensor in tensors.values():
            tensor.data.add_(1)

    assert seen(tensors, write) == [f"{number}" for number in range(1, 32, 2)]


def test_of_those_that_are_never_swapped_only_samples_are_taken() -> None:
    tensors = some_tensors()
    assert seen(tensors, lambda: tensors["half"].add_(0), swappable=1) == []
    assert seen(tensors, lambda: tensors["weight"].add_(0), swappable=1) == ["weight"]

    state = {"weight": torch.zeros(4), "moment": torch.zeros(4)}
    assert seen(state, lambda: state["moment"].data.add_(1), swappable=1) == ["moment"]


def test_what_was_sampled_can_be_compared_after_its_owner_has_dropped_it() -> None:
    tensors = {"weight": torch.zeros(MB)}  # large enough for the allocator to give back at once
    detector = WriteDetector(tensors)
    before = detector.fingerprint()
    tensors["weight"].data = torch.ones(3)
    assert detector.changed(before, detector.fingerprint()) == ["weight"]


def test_nothing_and_what_has_no_plain_memory() -> None:
    assert seen({}, lambda: None) == []
    sparse = {"sparse": torch.eye(3).to_sparse()}
    detector = WriteDetector(sparse, 0)
    assert detector.changed(detector.fingerprint(), detector.fingerprint()) == []


@pytest.mark.cuda
def test_a_device_is_sampled_too() -> None:
    tensors = {"one": torch.zeros(MB, device="cuda"), "other": torch.zeros(MB, device="cuda")}
    assert seen(tensors, lambda: None) == []
    assert seen(tensors, lambda: tensors["other"].data.add_(1)) == ["other"]


def test_what_is_on_cards_is_sampled_there_and_each_card_is_compared_alone() -> None:
    paper = Paper(cards=2)
    tensors = {
        "first": paper.place(torch.ones(MB), 0),
        "second": paper.place(torch.ones(MB), 1),
        "host": paper.place(torch.ones(MB), None),
    }
    side = Lane("side", 1)
    detector = WriteDetector(tensors, swappable=1, device=paper)
    then = detector.fingerprint({0: {paper.lane(0)}, 1: {paper.lane(1), side}})
    assert detector.cards == [0, 1] == sorted(then.card_samples)
    assert [len(then.marks[card]) for card in (0, 1)] == [1, 2]
    for name, card in (("second", 1), ("first", 0), ("host", None)):
        tensors[name].data.fill_(7)
        now = detector.fingerprint({})
        differing = {
            number: set(detector.changed_on_card(number, raw(then.card_samples[number]), raw(now.card_samples[number])))
            for number in (0, 1)
        }
        assert differing == {number: {name} if number == card else set() for number in (0, 1)}
        assert detector.changed(then, now) == ([name] if card is None else [])
        then = now


def test_what_the_host_sees_alone_is_looked_at_without_a_word_to_a_card() -> None:
    paper = Paper()
    detector = WriteDetector({"there": paper.place(torch.ones(MB), 0)}, swappable=1, device=paper)
    assert not detector.fingerprint().card_samples


def test_where_a_card_has_no_room_for_samples_training_goes_on_and_the_host_tells_what_it_sees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paper = Paper()
    tensor = paper.place(torch.ones(MB), 0)
    detector = WriteDetector({"there": tensor}, swappable=1, device=paper)

    def refuse(tensors: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("the card is full")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "cat", refuse)
        then = detector.fingerprint({0: [paper.lane(0)]})
    assert not then.card_samples and len(then.marks[0]) == 1
    tensor.add_(1)
    assert detector.changed(then, detector.fingerprint()) == ["there"]


def test_pointers_and_versions_of_all_are_compared_from_the_first_copy_to_the_last() -> None:
    tensors = {**some_tensors(), "sparse": torch.eye(3).to_sparse()}
    with torch.inference_mode():
        tensors["inferred"] = torch.ones(3)
    detector = WriteDetector(tensors, 1)
    then = detector.glance()
    assert detector.changed_since(then) == []
    tensors["turned"].add_(0)
    tensors["half"].data = tensors["half"].clone()
    assert detector.changed_since(then) == ["half", "turned"]
