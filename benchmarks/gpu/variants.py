"""Items 8 and 9: graphs with the step inside, scalers that skip, fused, capturable and compiled updates."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu import shadow
from benchmarks.gpu.bench import GB, MIB, Bench
from benchmarks.gpu.card import Card, training_stream
from benchmarks.gpu.shadow import Outcome, Shadowed, Toy

_SAVES = 3
_EAGER_STEPS = 3
_REPLAYS = 40


def run(bench: Bench) -> None:
    """Each way to update, with saves one after the other. One that fails is a line, and the next goes on."""
    size, width = bench.size(GB, 8 * MIB), bench.size(2048, 256)
    ways: dict[str, Callable[[], Outcome]] = {
        "8 a captured graph with the step inside, captured during a save": lambda: _graph(bench, size, width),
        "9 GradScaler that skips steps": lambda: _scaler(bench, size, width),
        "9 AdamW fused": lambda: _optimizer(bench, size, width, fused=True),
        "9 AdamW capturable": lambda: _optimizer(bench, size, width, capturable=not bench.is_dry),
        "9 AdamW foreach": lambda: _optimizer(bench, size, width, foreach=True),
        "9 the whole step compiled": lambda: _compiled(bench, size // 4, width),  # what a compiler takes grows with it
    }
    with shadow.card_of_paper(bench):
        for name, way in ways.items():
            try:
                outcome = way()
            except Exception as error:  # noqa: BLE001 - whatever it is, the next one may work
                bench.add(name, False, f"{type(error).__name__}: {error}")
                continue
            bench.add(name, outcome.is_good, outcome.text(), saves=outcome.saved, capture=outcome.capture)


def _optimizer(bench: Bench, size: int, width: int, **settings: Any) -> Outcome:
    return shadow.run(bench, "optimizer", Toy.make(bench.device, size, width, **settings), bench.size(_SAVES, 1))


def _scaler(bench: Bench, size: int, width: int) -> Outcome:
    toy = Toy.make(bench.device, size, width)
    scaler = torch.amp.GradScaler(bench.device)
    steps = 0

    def advance() -> torch.Tensor:
        nonlocal steps
        steps += 1
        with torch.autocast(bench.device, torch.float16 if not bench.is_dry else torch.bfloat16):
            loss: torch.Tensor = toy.model(toy.batch).square().mean()
        # Every third step overflows, and its update is skipped.
        torch.autograd.backward(scaler.scale(loss * (float("inf") if steps % 3 == 0 else 1.0)))
        scaler.step(toy.optimizer)
        scaler.update()
        toy.optimizer.zero_grad()
        return loss.detach()

    return shadow.run(bench, "scaler", toy, bench.size(_SAVES, 1), advance, scaler=scaler)


def _compiled(bench: Bench, size: int, width: int) -> Outcome:
    toy = Toy.make(bench.device, size, width)

    @torch.compile(backend="eager" if bench.is_dry else "inductor")
    def update() -> None:
        toy.optimizer.step()

    def advance() -> torch.Tensor:
        loss: torch.Tensor = toy.model(toy.batch).square().mean()
        torch.autograd.backward(loss)
        update()
        toy.optimizer.zero_grad()
        return loss.detach()

    outcome = shadow.run(bench, "compiled", toy, bench.size(_SAVES, 1), advance)
    counted = torch._dynamo.utils.counters
    outcome.said.append(f"frames {dict(counted['frames'])}, breaks {sum(counted['graph_break'].values())}")
    bench.add("9 the whole step compiled, what dynamo did", None, outcome.said[-1])
    return outcome


def _graph(bench: Bench, size: int, width: int) -> Outcome:
    card = Card(bench.device)
    toy = Toy.make(bench.device, size, width, capturable=card.is_real)
    shadowed = Shadowed(toy, bench.folder / "graph")
    loss = torch.zeros((), device=bench.device)

    def step() -> None:
        toy.optimizer.zero_grad()
        value = toy.model(toy.batch).square().mean()
        value.backward()
        toy.optimizer.step()
        loss.copy_(value.detach())

    with shadowed.opened():
        with training_stream(card, default=False):
            for _ in range(_EAGER_STEPS):
                step()
                shadowed.reach(loss)
        # A save was asked for at one of these boundaries, and may still run: the capture comes in the middle of it.
        replay = card.captured(step)
        while shadowed.outcome.saved + len(shadowed.outcome.failed) < bench.size(_SAVES, 2):
            replay()
            shadowed.reach(loss)
        shadowed.settle()
        for _ in range(bench.size(_REPLAYS, 2)):
            replay()
            shadowed.reach(loss)
    return shadowed.outcome
