"""What stands for a tensor on a card tells it from every other, and is the same wherever it lies."""

from typing import Any

import pytest
import torch

from helpers.paper import POLICIES, Paper
from holdfast.capture import card_digests
from holdfast.capture.card_digests import CardDigests, Wanted, on_host


def sums(tensor: torch.Tensor, policy: str = "eager") -> bytes:
    return CardDigests(Paper(policy, 1, in_step=True)).of({"t": Wanted(tensor, None)})["t"]


def sample() -> torch.Tensor:
    return torch.randn(300, 77, generator=torch.Generator().manual_seed(3))


def test_one_element_shows_and_two_that_are_exchanged_and_two_blocks() -> None:
    base, seen = sample(), set()
    flat = base.view(-1)
    for place in (0, 1, 7_777, 23_098, 23_099):
        other = base.clone()
        other.view(-1)[place] = torch.nextafter(flat[place], torch.tensor(9.0))
        seen.add(sums(other))
    for first, second in ((0, 1), (0, 2), (10, 10 + 5 * 256), (17, 22_000), (23_098, 23_099)):
        other = base.clone()
        other.view(-1)[[first, second]] = flat[[second, first]]
        seen.add(sums(other))
    for width in (1, 2, 77, 256, 1000):
        other = base.clone()
        other.view(-1)[:width], other.view(-1)[-width:] = flat[-width:], flat[:width]
        seen.add(sums(other))
    other = torch.cat([base[150:], base[:150]])
    assert len(seen | {sums(other), sums(base)}) == 17
    zero, negative = torch.zeros(9_000), torch.zeros(9_000)
    negative[8_000] = -0.0
    assert sums(zero) != sums(negative)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.bool, torch.int16, torch.complex64])
@pytest.mark.parametrize("size", [1, 7, 15, 4_097, 20_011])
def test_every_dtype_and_size_is_added_up_and_its_last_byte_counts(dtype: torch.dtype, size: int) -> None:
    base = torch.randint(0, 2, (size,), generator=torch.Generator().manual_seed(size)).to(dtype)
    other = base.clone()
    flat = other.view(torch.uint8)
    flat[-1] = 1 - flat[-1] % 2
    assert sums(base) == on_host(Wanted(base, None)) != sums(other)
    assert len(sums(base)) == Wanted(base, None).bytes <= base.nbytes + 16


def test_the_same_values_stand_for_the_same_however_they_lie() -> None:
    base = sample()
    room = torch.zeros(base.numel() + 3)
    room[3:] = base.view(-1)
    for other in (
        room[3:].view(300, 77),  # begins where no whole number does
        base.T.contiguous().T,
        torch.stack([base, base])[1],
        base.to_sparse().to_dense(),
    ):
        assert sums(other) == sums(base)
    conjugate = torch.complex(base, base)
    assert sums(conjugate.conj()) == sums(conjugate.conj().resolve_conj())


@pytest.mark.parametrize("policy", POLICIES)
def test_sums_and_pieces_of_many_on_two_cards_in_several_rounds(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card_digests, "_ROUND_BYTES", 4_000)
    paper = Paper(policy, 5, cards=2, in_step=True)
    tensors = {number: paper.place(torch.randn(50 + 137 * number), number % 2) for number in range(20)}
    wanted = {n: Wanted(t, [(0, 8), (t.nbytes - 5, 5)] if n % 3 else None) for n, t in tensors.items()}
    made = CardDigests(paper).of(wanted)
    assert made == {number: on_host(each) for number, each in wanted.items()}
    for number, tensor in tensors.items():
        raw = tensor.numpy().tobytes()
        assert number % 3 == 0 or made[number] == raw[:8] + raw[-5:]


def test_a_card_without_room_has_it_done_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    paper, tensors = Paper(in_step=True), {"plain": sample(), "turned": sample().T}
    expected = {name: on_host(Wanted(tensor, None)) for name, tensor in tensors.items()}
    paper.free = 0
    ordered: list[bool] = []
    enqueue = paper.enqueue

    def counting(card: int, work: Any) -> None:
        ordered.append(len(work.args[0]) == 1)
        enqueue(card, work)

    monkeypatch.setattr(paper, "enqueue", counting)
    wanted = {name: Wanted(tensor, None) for name, tensor in tensors.items()}
    assert CardDigests(paper).of(wanted) == expected and ordered == [True]

    def full(card: int, work: object) -> None:
        raise torch.OutOfMemoryError("the card is full")

    monkeypatch.setattr(paper, "enqueue", full)
    assert CardDigests(paper).of(wanted) == expected
