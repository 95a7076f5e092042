"""Launch: make bench, or python -m benchmarks.

Every figure is a median with its minimum and maximum. What is compared is measured in turns, within one run, because a
machine's speed drifts; only the ratios carry over to another one.
"""

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.saves import LARGE, SMALL, compare_saves
from holdfast.checkpointer import Checkpointer
from holdfast.config import DynamicCheckpoint

_LOOKS = 2_000


def main() -> None:
    """Prints the table."""
    folder = Path(tempfile.mkdtemp(prefix="holdfast-bench-", dir="."))
    try:
        print(f"{'a boundary of a 150-tensor model, nobody asks':52}{'µs':>10}  (min-max)")
        for text, settings in {
            "trigger file off": DynamicCheckpoint(),
            "trigger file every 100 steps (the default)": DynamicCheckpoint(enabled=True),
            "trigger file every step": DynamicCheckpoint(enabled=True, check_interval=1),
            "trigger file all the time, from a thread": DynamicCheckpoint(enabled=True, check_interval=0),
        }.items():
            print(_row(text, boundary_cost(folder / "run", settings), 1e6))
        print(f"\n{'a verb, from start to end':52}{'s':>10}  (min-max)")
        for verb in ("list", "status", "verify"):
            print(_row(f"holdfast {verb}", verb_cost(verb, folder / "run"), 1))
        for size, config, rounds in (("25 M", SMALL, 5), ("124 M", LARGE, 3)):
            print(f"\n{f'one save of {size} parameters with AdamW, training':52}{'s':>10}  (min-max)")
            seconds = compare_saves(folder, config, rounds)
            for what, values in seconds.items():
                print(_row(what, values, 1))
            for what in ("stall", "durable"):
                pairs = zip(seconds[f"our {what}"], seconds[f"their {what}"], strict=True)
                print(_row(f"{what}, ours / Trainer's own", [ours / theirs for ours, theirs in pairs], 1))
    finally:
        shutil.rmtree(folder)


def boundary_cost(run: Path, settings: DynamicCheckpoint, rounds: int = 7) -> list[float]:
    """Seconds that a boundary takes of the training thread when there is nothing to save, one value a round.

    The model has 150 tensors and AdamW: random state, 600 tensors' marks, schedule and hyperparameters are recorded.
    """
    model = torch.nn.Sequential(*(torch.nn.Linear(16, 16) for _ in range(75)))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 16)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
    costs = []
    with Checkpointer(
        run,
        dynamic_checkpoint=settings.model_dump(),
        say=_silent,
        resume=False,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
    ) as checkpointer:
        checkpointer.resume()
        for _ in range(rounds):
            begun = time.perf_counter()
            for _ in range(_LOOKS):
                with checkpointer.update():
                    pass
                checkpointer.step()
            costs.append((time.perf_counter() - begun) / _LOOKS)
    return costs


def verb_cost(verb: str, run: Path, rounds: int = 9) -> list[float]:
    """Seconds of whole processes."""
    command = [sys.executable, "-m", "holdfast", verb, str(run)]
    return [_timed(lambda: subprocess.run(command, capture_output=True, check=False)) for _ in range(rounds)]


def _timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _row(text: str, values: Sequence[float], scale: float) -> str:
    middle, low, high = (scale * value for value in (statistics.median(values), min(values), max(values)))
    return f"  {text:50}{middle:10.3g}  ({low:.3g}-{high:.3g})"


def _silent(text: str) -> None:
    pass


if __name__ == "__main__":
    main()
