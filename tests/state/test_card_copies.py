"""Copies of a boundary stay what they are as long as anybody has any of them, and cost a launch or two."""

import gc
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from helpers.launches import Launches
from holdfast.state import card_copies
from holdfast.state.card_copies import CardCopies, by_card_and_width


def tensors() -> dict[str, torch.Tensor]:
    return {
        "single": torch.randn(5, 3),
        "scalar": torch.tensor(7),
        "half": torch.randn(9).to(torch.bfloat16),
        "eight": torch.randn(6).to(torch.float8_e4m3fn),
        "flags": torch.tensor([True, False, True]),
        "nothing": torch.ones(0, 4),
        "turned": torch.randn(4, 6).T,
        "part": torch.randn(8, 8)[2:5, 1:4],
        "one for all": torch.ones(3).expand(2, 3),
        "complex": torch.randn(3, dtype=torch.complex128),
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
        "sparse": torch.eye(3).to_sparse(),
        "large": torch.randn(600, 600),
    }


def values(copies: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return {
        name: (copy.dtype, copy.to_dense().resolve_conj().to(torch.complex128).tolist())
        for name, copy in copies.items()
    }


def test_copies_are_the_tensors_of_their_moment_bit_for_bit() -> None:
    live, copies = tensors(), CardCopies()
    expected, taken = [], []
    for step in range(4):
        for tensor in live.values():
            if tensor.dtype == torch.float32 and tensor.layout == torch.strided and 0 not in tensor.stride():
                tensor += step
        expected.append(values(live))
        taken.append(copies.take(live))
    assert [values(each) for each in taken] == expected
    assert all(each.keys() == live.keys() for each in taken)


def test_one_tensor_out_of_a_set_keeps_the_set_from_being_written_over() -> None:
    live, copies = {"a": torch.zeros(4), "b": torch.zeros(2_000, 200)}, CardCopies()
    kept = {}
    for step in range(6):
        for tensor in live.values():
            tensor.fill_(step)
        whole = copies.take(live)
        kept[step] = [whole["a"], whole["b"][3:5], whole["a"].numpy(), whole][step % 4]
        del whole
    gc.collect()
    for step, copy in kept.items():
        copy = copy["b"] if isinstance(copy, Mapping) else copy
        assert torch.as_tensor(copy).eq(step).all(), step


def test_sets_that_nobody_has_are_used_again_and_not_kept_in_number() -> None:
    live, copies = {"a": torch.zeros(1000), "b": torch.zeros(1000, 1000)}, CardCopies()
    lent = [copies.take(live) for _ in range(5)]
    assert len(copies._sets) == 5
    lent.clear()
    pointers = {copies.take(live)["b"].data_ptr() for _ in range(6)}
    assert len(copies._sets) == 2 and len(pointers) == 1


def test_where_owners_cannot_be_counted_no_set_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card_copies, "_owners", None)
    live, copies = {"a": torch.zeros(1000)}, CardCopies()
    first = copies.take(live)["a"]
    live["a"] += 1
    copies.take(live)
    assert first.eq(0).all()


def test_eight_hundred_tensors_take_a_launch_for_each_width() -> None:
    live: dict[str, torch.Tensor] = {f"mean {n}": torch.randn(7) for n in range(400)}
    live |= {f"count {n}": torch.tensor(n) for n in range(400)}
    copies = CardCopies()
    copies.take(live)
    with Launches() as launches:
        copies.take(live)
    assert launches.calls == {"aten::_foreach_copy_": 2}


def test_tensors_of_several_cards_are_copied_apart() -> None:
    live = {"a": torch.ones(3), "b": torch.ones(3, device="meta"), "c": torch.ones(3)}
    copies = CardCopies().take(live)
    assert by_card_and_width(list(live.values())) == [[0, 2], [1]]
    assert copies["b"].is_meta and copies["a"].eq(1).all() and copies["c"].eq(1).all()


def test_of_what_is_large_neither_the_tensors_nor_a_spare_set_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    owners = card_copies._owners
    assert owners is not None
    monkeypatch.setattr(card_copies, "_KEPT_BYTES", 39)
    live, copies = {"a": torch.zeros(10)}, CardCopies()
    storage = live["a"].untyped_storage()
    before = owners(storage._cdata)
    lent = []
    for step in range(3):
        live["a"].fill_(step)
        lent.append(copies.take({"a": live["a"]}))
    assert owners(storage._cdata) == before and copies._sets == []
    assert [copy["a"].tolist() for copy in lent] == [[step] * 10 for step in range(3)]


def test_tensors_that_are_replaced_or_made_larger_are_followed() -> None:
    copies = CardCopies()
    first = copies.take({"a": torch.ones(3)})
    second = copies.take({"a": torch.full((3,), 2.0), "b": torch.ones(2)})
    third = copies.take({"a": torch.ones(7)})
    assert [list(first["a"]), list(second["a"]), list(second["b"]), third["a"].shape[0]] == [
        [1] * 3,
        [2] * 3,
        [1] * 2,
        7,
    ]


def test_tensors_that_change_places_go_by_their_names() -> None:
    first, second, copies = torch.ones(3), torch.zeros(3), CardCopies()
    copies.take({"a": first, "b": second})
    assert copies.take({"b": first, "a": second})["b"].eq(1).all()


def test_what_is_recorded_in_inference_mode_can_be_recorded_outside_of_it() -> None:
    live, copies = {"a": torch.ones(3)}, CardCopies()
    with torch.inference_mode():
        copies.take(live)
    copies.take(live)
