"""Ours beside another checkout of it, in turns within one run: python -m benchmarks.against PATH.

Each turn is a process that has the package of one of the two, and these measurements. A machine's speed drifts, so that
only the ratio of two turns of one round counts.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

_ROOT = Path(__file__).parents[1]
BOUNDARY_LAYERS = 100  # with a weight and a bias each, and three tensors of AdamW's for each: 800
_LOOKS = 300
_BLOCKS = 3

COLUMNS = {
    "durable": ("time to durable in a long step", "s"),
    "at once": ("time to durable where the update comes at once", "s"),
    "safe": ("until an update that comes at once may begin", "s"),
    "lost": ("training time lost", "s"),
    "memory": ("extra memory of saves", "MB"),
    "boundary": ("a boundary of 800 tensors", "ms"),
}
"""What is measured, and its unit."""

Turn = Mapping[str, float]


def main() -> None:
    """Measures both, and prints the ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against", description=__doc__.split("\n", 1)[0])
    parser.add_argument("path", type=Path, help="another checkout of this repository")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, default=0.5, help="the size of the state")
    parser.add_argument("--only", choices=tuple(COLUMNS), action="append", help="this alone; may be given again")
    given = parser.parse_args()
    sources = [path / "src" for path in (given.path, _ROOT)]
    if not (sources[0] / "holdfast").is_dir():
        parser.error(f"{sources[0]}: there is no holdfast in it")
    columns = given.only or list(COLUMNS)
    print(tables(measure(sources, given.rounds, given.gigabytes, columns), columns), flush=True)


def measure(sources: Sequence[Path], rounds: int, gigabytes: float, columns: Sequence[str]) -> list[list[Turn]]:
    """Returns the turns of each round, theirs first; the rounds begin with one and the other."""
    measured: list[list[Turn]] = []
    for number in range(rounds):
        turns: dict[int, Turn] = {}
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            turns[which] = _turn(sources[which], gigabytes, columns)
        measured.append([turns[0], turns[1]])
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return measured


def tables(measured: Sequence[Sequence[Turn]], columns: Sequence[str]) -> str:
    """Returns what was measured: medians, and the ratios of each round with their spread."""
    lines = [f"{'':50}{'theirs':>10}{'ours':>10}{'ours / theirs, by round':>30}"]
    for column in columns:
        title, unit = COLUMNS[column]
        theirs, ours = ([turns[which][column] for turns in measured] for which in (0, 1))
        medians = f"{statistics.median(theirs):10.3g}{statistics.median(ours):10.3g}"
        lines.append(f"{f'{title}, {unit}':50}{medians}{_ratios(ours, theirs):>30}")
    return "\n".join(lines)


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> str:
    if min(*ours, *theirs) <= 0:  # what is lost is a difference
        return "less than the machine's noise"
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _turn(source: Path, gigabytes: float, columns: Sequence[str]) -> Turn:
    command = [sys.executable, "-W", "ignore", "-c", "from benchmarks import against; against.turn()"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(source), str(_ROOT)])}
    ended = subprocess.run(
        [*command, str(source), str(gigabytes), *columns],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    turn: Turn = json.loads(ended.stdout.splitlines()[-1])
    return turn


def turn() -> None:
    """Measures once, in a process of its own that is told by its arguments, and prints the figures."""
    import holdfast

    source, gigabytes, *columns = sys.argv[1:]
    assert Path(holdfast.__file__).is_relative_to(Path(source).resolve()), f"{holdfast.__file__} is measured"
    folder = Path(tempfile.mkdtemp(prefix="holdfast-against-", dir="."))
    try:
        figures = _saves(folder, float(gigabytes), columns)
        if "boundary" in columns:
            device = "cuda" if torch.cuda.is_available() else "cpu"
            figures["boundary"] = boundary_seconds(folder / "boundary", BOUNDARY_LAYERS, device) * 1e3
    finally:
        shutil.rmtree(folder)
    print(json.dumps(figures))


def _saves(folder: Path, gigabytes: float, columns: Sequence[str]) -> dict[str, float]:
    from benchmarks import loop, states, turns
    from benchmarks.quiet import quiet

    figures: dict[str, float] = {}
    if set(columns) == {"boundary"}:
        return figures
    with quiet():
        # A state of linear layers has no loss; what trains is GPT-2's form, as wide as the size wants.
        state = states.gpt2(layers=max(1, round(gigabytes * 1e9 / 1.5e9 * 12)))
        ways = turns.of_ours(state, state.digests())
        if {"durable", "memory"} & set(columns):
            found = ways["native"](_made(folder / "long"))
            figures |= {"durable": found["durable"], "memory": found["memory"] / 1e6}
        if {"at once", "safe"} & set(columns):
            found = ways["native_at_once"](_made(folder / "short"))
            figures |= {"at once": found["durable"], "safe": found["safe"]}
        if "lost" in columns:
            figures["lost"] = statistics.median(loop.native(state, _made(folder / "lost"), _BLOCKS).lost())
    return figures


def boundary_seconds(run: Path, layers: int, device: str = "cpu") -> float:
    """Returns what a boundary takes where nobody asks, by the public interface alone: the least of some rounds.

    Args:
        run: The run directory.
        layers: Linear layers, with AdamW: eight tensors each.
        device: Where they are.
    """
    from holdfast import Checkpointer

    model = torch.nn.Sequential(*(torch.nn.Linear(16, 16, device=device) for _ in range(layers)))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 16, device=device)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    seconds = []
    with Checkpointer(run, resume=False, save_at_end=False, say=_silent, model=model, optimizer=optimizer) as ckpt:
        ckpt.resume()
        for _ in range(7):
            begun = time.perf_counter()
            for _ in range(_LOOKS):
                with ckpt.update():
                    pass
                ckpt.step()
            seconds.append((time.perf_counter() - begun) / _LOOKS)
    return min(seconds)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _silent(text: str) -> None:
    pass


if __name__ == "__main__":
    main()
