"""What ranks find out about their states: several of them in one process, each with a comparison of its own."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from helpers.paper import Paper
from holdfast.capture.replicas import Content, Ownership, Replicas, in_short
from holdfast.errors import SaveError

NOTHING = Ownership()


def of(
    rest: Any = None,
    small: Mapping[str, torch.Tensor] | None = None,
    expected: Sequence[str] = (),
    **large: torch.Tensor,
) -> Content:
    return Content(rest, small or {}, large, expected)


def compare(ranks: Sequence[Replicas], contents: Sequence[Mapping[str, Content]]) -> list[dict[str, Ownership]]:
    """One save: what each rank holds to be whose, by part, after what goes over the store as JSON."""
    tables = [json.loads(json.dumps(rank.tally(content))) for rank, content in zip(ranks, contents, strict=True)]
    differences = [json.loads(json.dumps(rank.differences(tables[0]))) for rank in ranks[1:]]
    settled = json.loads(json.dumps(ranks[0].settle(differences)))
    for rank in ranks[1:]:
        rank.follow(settled)
    return [{part: rank.of(part) for part in ("model", "optimizer", "queue")} for rank in ranks]


def agreed(ranks: Sequence[Replicas], contents: Sequence[Mapping[str, Content]]) -> dict[str, Ownership]:
    first, *others = compare(ranks, contents)
    assert all(other == first for other in others)
    return {part: owned for part, owned in first.items() if owned != NOTHING}


def test_what_is_alike_is_nobodys_own_and_is_digested_whole_once() -> None:
    ranks = [Replicas(), Replicas()]
    contents = [{"model": of({"a": 1}, {"mean": torch.ones(3)}, w=torch.ones(1000))} for _ in ranks]
    for digested in (4000, 0, 0):
        assert agreed(ranks, contents) == {} and ranks[0].news == []
        assert [rank.digested_bytes for rank in ranks] == [digested, digested]


def test_bits_count_and_so_do_kind_and_shape() -> None:
    there = {
        "zero": torch.zeros(2),
        "kind": torch.zeros(2),
        "shape": torch.zeros(2, 2),
        "strided": torch.ones(2, 3).T,
        "nothing": torch.ones(0),
        "sparse": torch.eye(2).to_sparse(),
        "complex": torch.full((2,), 1 - 1j).conj(),
    }
    here = {
        **there,
        "zero": -torch.zeros(2),
        "kind": torch.zeros(2, dtype=torch.int32),
        "shape": torch.zeros(4),
        "strided": torch.ones(3, 2),
        "sparse": (2 * torch.eye(2)).to_sparse(),
        "complex": torch.full((2,), 1 + 1j),
    }
    for small in (True, False):
        pair = [{"model": Content(None, held, {}) if small else Content(None, {}, held)} for held in (there, here)]
        owned = agreed([Replicas(), Replicas()], pair)
        assert owned == {"model": Ownership(differing=frozenset({"zero", "kind", "shape", "sparse"}))}


def test_one_other_bit_among_many_is_seen_at_the_first_save_after_a_start() -> None:
    there, here = torch.zeros(100_000), torch.zeros(100_000)
    here[77_777] = 1e-30
    owned = agreed([Replicas(), Replicas()], [{"model": of(w=there)}, {"model": of(w=here)}])
    assert owned == {"model": Ownership(differing=frozenset({"w"}))}


def test_a_name_that_some_ranks_have_is_theirs_and_so_is_a_part() -> None:
    ranks = [Replicas() for _ in range(3)]
    contents: list[dict[str, Content]] = [
        {"optimizer": of({}, a=torch.ones(2), b=torch.ones(2))},
        {"optimizer": of({}, a=torch.ones(2), c=torch.ones(2)), "queue": of({})},
        {"optimizer": of({}, a=torch.ones(2), b=torch.ones(2))},
    ]
    expected = {"optimizer": Ownership(partial=frozenset({"b", "c"})), "queue": Ownership(alone=True)}
    assert agreed(ranks, contents) == expected
    assert ranks[0].news == ["optimizer.b", "optimizer.c", "queue"]
    assert agreed(ranks, contents) == expected and ranks[0].news == []


def test_what_differs_later_is_seen_in_samples_and_stays_each_ranks_own() -> None:
    ranks = [Replicas(), Replicas()]
    tensors = [torch.zeros(5000), torch.zeros(5000)]
    contents = [{"model": of(w=tensor)} for tensor in tensors]
    assert agreed(ranks, contents) == {}
    tensors[1] += 1
    own = {"model": Ownership(differing=frozenset({"w"}))}
    assert agreed(ranks, contents) == own and ranks[0].news == ["model.w"]
    tensors[1] -= 1  # samples say nothing of the rest of it
    assert agreed(ranks, contents) == own and ranks[0].news == []


def test_what_was_copied_is_digested_whole_at_each_save_and_may_be_alike_again() -> None:
    ranks = [Replicas(), Replicas()]
    own = {"queue": Ownership(rest=True, differing=frozenset({"value"}))}
    for value, expected in ((0.0, {}), (1.0, own), (0.0, {})):
        contents = [
            {"queue": of({"n": 0.0}, {"value": torch.zeros(2)})},
            {"queue": of({"n": value}, {"value": torch.full((2,), value)})},
        ]
        assert agreed(ranks, contents) == expected


def test_ranks_that_know_a_tensor_for_another_time_compare_the_same_of_it() -> None:
    """One has compared it in a save that rank 0 gave up."""
    ranks = [Replicas(), Replicas()]
    contents = [{"model": of(w=torch.ones(500))} for _ in ranks]
    ranks[1].tally(contents[1])
    ranks[1].differences(ranks[0].tally(contents[0]))
    assert agreed(ranks, contents) == {}
    changed = [contents[0], {"model": of(w=2 * torch.ones(500))}]
    assert "model" in agreed([ranks[0], Replicas()], changed)


def test_a_buffer_copied_in_one_rank_and_left_alone_in_another_is_compared() -> None:
    for first, second in ((0, 1), (1, 0)):
        contents = [{"model": of(None, {"table": torch.ones(9)})}, {"model": of(table=torch.ones(9))}]
        ranks = [Replicas(), Replicas()]
        for _ in range(2):
            assert agreed(ranks, [contents[first], contents[second]]) == {}
        contents[1]["model"].large["table"].add_(1)
        assert "model" in agreed(ranks, [contents[first], contents[second]])


def test_the_number_of_a_ranks_device_is_no_difference() -> None:
    rests = [{"state": {"$tensor": "state/x", "device": f"cuda:{number}"}} for number in range(2)]
    assert agreed([Replicas(), Replicas()], [{"queue": of(rest)} for rest in rests]) == {}


def test_buffers_that_differ_are_not_worth_a_word() -> None:
    ranks = [Replicas(), Replicas()]
    contents = [{"model": of(None, {"mean": torch.full((2,), value)}, ["mean"])} for value in (0.0, 1.0)]
    assert agreed(ranks, contents) and ranks[0].news == []


def test_where_there_is_no_place_for_it_the_save_fails_and_names_it() -> None:
    ranks = [Replicas("there is no place"), Replicas("there is no place")]
    for _ in range(2):
        with pytest.raises(SaveError, match=r"^model\.w differ between the ranks: there is no place"):
            compare(ranks, [{"model": of(w=torch.zeros(3))}, {"model": of(w=torch.ones(3))}])


def test_many_names_are_told_in_short() -> None:
    assert in_short(list("abc")) == "a, b, c"
    assert in_short(list("abcde")) == "a, b, c and 2 more"


def test_the_same_values_in_another_order_in_memory_are_no_difference_in_any_save() -> None:
    table = torch.randn(30, 40)
    for pair in ((table, table.T.contiguous().T), (table.T.contiguous().T, table)):
        ranks, contents = [Replicas(), Replicas()], [{"model": of(w=tensor)} for tensor in pair]
        assert [agreed(ranks, contents) for _ in range(3)] == [{}, {}, {}]
        changed = [contents[0], {"model": of(w=torch.randn(30, 40))}]
        assert "model" in agreed(ranks, changed)


def test_what_is_on_a_card_in_one_rank_alone_is_compared() -> None:
    tensors = {"large": torch.randn(60, 170), "small": torch.randn(40), "none": torch.ones(0)}
    papers: tuple[Paper | None, Paper | None] = (Paper(in_step=True), None)
    for devices in (papers, papers[::-1]):
        ranks, contents = (
            [Replicas(), Replicas()],
            [{"model": Content(None, tensors, tensors)}, {"model": Content(None, {}, tensors)}],
        )
        for _ in range(3):
            table, _ = [
                rank.tally(content, device) for rank, content, device in zip(ranks, contents, devices, strict=True)
            ]
            assert ranks[1].differences(table) == {}
        changed = {name: tensor + 1 for name, tensor in tensors.items()}
        ranks[1].tally({"model": Content(None, {}, changed)}, devices[1])
        assert set(ranks[1].differences(table)["model"]["differ"]) == {"large", "small"}
