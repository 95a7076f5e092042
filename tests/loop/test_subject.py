import torch

from holdfast.loop.subject import buffer_digests, differing_from_rank0


def test_what_rank_0_has_too_is_left_to_it() -> None:
    first = {
        "mean": torch.ones(3),
        "count": torch.tensor(4),
        "mask": torch.tensor([True, False]),
        "none": torch.ones(0),
    }
    second = {name: tensor.clone() for name, tensor in first.items()}
    assert differing_from_rank0(second, buffer_digests(first)) == {}
    second["count"] += 1
    assert list(differing_from_rank0(second, buffer_digests(first))) == ["count"]
    assert differing_from_rank0(second, {}).keys() == second.keys()


def test_bits_count_and_so_do_kind_and_shape() -> None:
    here = {"zero": torch.zeros(2), "kind": torch.zeros(2), "shape": torch.zeros(2, 2), "strided": torch.ones(2, 3).T}
    there = {
        "zero": -torch.zeros(2),
        "kind": torch.zeros(2, dtype=torch.int32),
        "shape": torch.zeros(4),
        "strided": torch.ones(3, 2),
    }
    assert differing_from_rank0(here, buffer_digests(there)).keys() == {"zero", "kind", "shape"}


def test_sparse_ones_are_those_of_rank_0() -> None:
    sparse = {"sparse": torch.eye(2).to_sparse()}
    assert buffer_digests(sparse) == {} and differing_from_rank0(sparse, {}) == {}
