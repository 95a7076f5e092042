"""Items 10 and 11: a save on a card that is nearly full, and the calls that look at all tensors at once."""

import time
from collections.abc import Callable, Sequence

import torch

from benchmarks.gpu import shadow
from benchmarks.gpu.bench import GB, MIB, Bench, milliseconds
from benchmarks.gpu.card import Card
from benchmarks.gpu.shadow import Shadowed, Toy

_FULL = 0.95
_MOST_READS_SECONDS = 0.010


def run(bench: Bench) -> None:
    """Looks at all tensors first: the card is full afterwards."""
    _look(bench)
    Card(bench.device).release()
    with shadow.card_of_paper(bench):
        _fill(bench)


def _fill(bench: Bench) -> None:
    card = Card(bench.device)
    toy = Toy.make(bench.device, bench.size(2 * GB, 8 * MIB), bench.size(2048, 256), fused=not bench.is_dry)
    shadowed = _Unshadowed(toy, bench.folder / "full")
    with shadowed.opened():
        for _ in range(3):
            toy.advance()
            shadowed.ckpt.step()
        card.settle()
        left = int(card.free_bytes() - card.describe()["memory"] * (1 - _FULL))
        filler = torch.empty(max(0, left) if card.is_real else MIB, dtype=torch.uint8, device=bench.device)
        before, free = card.trouble(), card.free_bytes()
        peak = card.reserved_peak(reset=True)
        for _ in range(bench.size(3, 1)):
            pending = shadowed.ckpt.save()
            while pending.answer is None:
                toy.advance()
                shadowed.ckpt.step()
            if pending.answer.error:
                shadowed.outcome.failed.append(pending.answer.error)
        after, grown = card.trouble(), card.reserved_peak() - peak
        del filler
    retries, ooms = (new - old for new, old in zip(after, before, strict=True))
    good = not retries and not ooms and not shadowed.outcome.failed
    text = f"{retries} retries, {ooms} out of memory, allocator grew by {grown / 1e6:.0f} MB"
    text += f", {free / 1e6:.0f} MB were free, capture: {shadowed.outcome.capture}"
    failed = f"; {shadowed.outcome.failed[0]}" if shadowed.outcome.failed else ""
    bench.add(f"10 saves on a card that is {_FULL:.0%} full", good, text + failed, grown=grown)


class _Unshadowed(Shadowed):
    """Keeps no copy on the card."""

    def settle(self) -> None:
        """Has nothing to compare."""


def _look(bench: Bench) -> None:
    card = Card(bench.device)
    count, each = bench.size(788, 20), bench.size(12 * GB // 788 // 4, 100)
    tensors = [torch.ones(each, device=bench.device) for _ in range(count)]
    seconds = _timed(card, lambda: torch._foreach_norm(tensors, float("inf")))
    text = f"{milliseconds(seconds)} for {count} tensors of {count * each * 4 / 1e9:.1f} GB, waited for"
    bench.add("11 _foreach_norm(inf) of all", bench.timed(seconds <= _MOST_READS_SECONDS), text, seconds=seconds)
    hidden = [
        f"{bad} in {dtype}"
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
        for bad in (float("nan"), float("inf"), -float("inf"))
        if _finite_with(bad, dtype, bench.device) != [True, False, True]
    ]
    text = f"not shown: {', '.join(hidden)}" if hidden else "in fp32, bf16 and fp16, and what is finite is finite"
    bench.add("11 _foreach_norm shows NaN and infinity", not hidden, text)
    _refuse(bench)
    sets = [[torch.ones(4096, device=bench.device) for _ in range(100)] for _ in range(2)]
    seconds = _timed(card, lambda: torch._foreach_copy_(sets[0], sets[1]))
    single = _timed(card, lambda: [tensor.clone() for tensor in sets[1]])
    bench.add(
        "11 _foreach_copy_ of 100 buffers",
        bench.timed(seconds <= single),
        f"{milliseconds(seconds)}; a clone each {milliseconds(single)}",
    )


def _finite_with(bad: float, dtype: torch.dtype, device: str) -> list[bool]:
    """Returns which of three tensors are finite by their norms; the second has one bad number."""
    tensors = [torch.ones(1000, device=device, dtype=dtype) for _ in range(3)]
    tensors[1][517] = bad
    norms = torch.stack(torch._foreach_norm(tensors, float("inf")))
    finite: list[bool] = torch.isfinite(norms).tolist()
    return finite


def _refuse(bench: Bench) -> None:
    odd = {
        "an empty one": torch.empty(0, device=bench.device),
        "whole numbers": torch.ones(3, dtype=torch.int64, device=bench.device),
        "fp8": torch.ones(3, device=bench.device).to(torch.float8_e4m3fn),
    }
    for name, tensor in odd.items():
        try:
            norms: Sequence[torch.Tensor] = torch._foreach_norm(
                [torch.ones(3, device=bench.device), tensor], float("inf")
            )
            text = f"taken: {[float(norm) for norm in norms]}"
        except Exception as error:  # noqa: BLE001 - what it says is the finding
            text = f"refused: {str(error).splitlines()[0][:100]}"
        bench.add(f"11 _foreach_norm with {name} in the list", None, text)


def _timed(card: Card, work: Callable[[], object]) -> float:
    work()
    card.settle()
    begun = time.perf_counter()
    work()
    card.settle()
    return time.perf_counter() - begun
