from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from holdfast.capture.tripwire import WriteDetector

MB = 1 << 20


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "weight": torch.randn(64, 64),
        "half": torch.randn(300).to(torch.bfloat16),
        "scalar": torch.randn(()),
        "turned": torch.randn(8, 6).T,
        "nothing": torch.zeros(0),
    }


def seen(held: dict[str, torch.Tensor], write: Callable[[], object], swapped: int | None = None) -> list[str]:
    detector = WriteDetector(held, swapped)
    before = detector.fingerprint()
    write()
    return detector.changed(before, detector.fingerprint())


def sampled_places(size: int) -> list[int]:
    """Where a tensor of `size` bytes that is alone is looked at, 64 bytes each."""
    return [size * (2 * place + 1) // 32 for place in range(16)]


def test_reading_is_no_change() -> None:
    held = tensors()
    assert seen(held, lambda: [tensor.sum() for tensor in held.values()]) == []


@pytest.mark.parametrize("name", ["weight", "half", "scalar", "turned", "nothing"])
def test_an_operation_in_place_is_seen_even_where_it_changes_no_byte(name: str) -> None:
    held = tensors()
    assert seen(held, lambda: held[name].add_(0)) == [name]


@pytest.mark.parametrize("name", ["weight", "half", "scalar", "turned"])
def test_other_data_is_seen_though_it_is_equal(name: str) -> None:
    held = tensors()

    def swap() -> None:
        held[name].data = held[name].detach().clone()

    assert seen(held, swap) == [name]


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
    held = tensors()
    version = held["weight"]._version
    assert seen(held, lambda: write(held["weight"])) == ["weight"]
    assert held["weight"]._version == version


def test_each_change_is_named_once_and_in_order() -> None:
    held = tensors()

    def write() -> None:
        for name in ("scalar", "turned", "weight"):
            held[name].mul_(2)

    assert seen(held, write) == ["weight", "scalar", "turned"]


def test_a_change_back_is_none_to_what_is_compared() -> None:
    held = tensors()
    detector = WriteDetector(held)
    first = detector.fingerprint()
    held["weight"].data.neg_()
    second = detector.fingerprint()
    held["weight"].data.neg_()
    third = detector.fingerprint()
    assert detector.changed(first, second) == detector.changed(second, third) == ["weight"]
    assert detector.changed(first, third) == []


def test_the_samples_are_spread_over_the_whole() -> None:
    held = {"one": torch.zeros(MB, dtype=torch.uint8)}
    places = sampled_places(MB)
    assert {after - before for before, after in pairwise(places)} == {MB // 16}
    for place in places:
        assert seen(held, lambda place=place: held["one"].data[place + 63].add_(1)) == ["one"]  # type: ignore[misc]


def test_what_lies_between_the_samples_is_left_to_the_second_reading() -> None:
    held = {"one": torch.zeros(MB, dtype=torch.uint8)}

    def write() -> None:
        for place in sampled_places(MB):
            held["one"].data[place - 1].add_(1)
            held["one"].data[place + 64].add_(1)

    assert seen(held, write) == []


def test_the_samples_go_by_bytes_so_that_many_small_ones_share_them() -> None:
    held = {f"{number}": torch.zeros(16) for number in range(32)}  # 64 bytes each: every second one is sampled

    def write() -> None:
        for tensor in held.values():
            tensor.data.add_(1)

    assert seen(held, write) == [f"{number}" for number in range(1, 32, 2)]


def test_of_those_that_are_never_swapped_only_samples_are_taken() -> None:
    held = tensors()
    assert seen(held, lambda: held["half"].add_(0), swapped=1) == []
    assert seen(held, lambda: held["weight"].add_(0), swapped=1) == ["weight"]

    state = {"weight": torch.zeros(4), "moment": torch.zeros(4)}
    assert seen(state, lambda: state["moment"].data.add_(1), swapped=1) == ["moment"]


def test_what_was_sampled_can_be_compared_after_its_owner_has_dropped_it() -> None:
    held = {"weight": torch.zeros(MB)}  # large enough for the allocator to give back at once
    detector = WriteDetector(held)
    before = detector.fingerprint()
    held["weight"].data = torch.ones(3)
    assert detector.changed(before, detector.fingerprint()) == ["weight"]


def test_nothing_and_what_has_no_plain_memory() -> None:
    assert seen({}, lambda: None) == []
    sparse = {"sparse": torch.eye(3).to_sparse()}
    detector = WriteDetector(sparse, 0)
    assert detector.changed(detector.fingerprint(), detector.fingerprint()) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="SKIPPED, NOT PASSED: there is no CUDA device")
def test_a_device_is_sampled_too() -> None:
    held = {"one": torch.zeros(MB, device="cuda"), "other": torch.zeros(MB, device="cuda")}
    assert seen(held, lambda: None) == []
    assert seen(held, lambda: held["other"].data.add_(1)) == ["other"]
