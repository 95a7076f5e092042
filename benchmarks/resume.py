"""The memory of the host that a resume takes beside the state that it brings back, and its time, to the first step.

Each resume is in a process of its own, which has its model and its optimizer already. Pages of files do not count: they
can be had back.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import states
from benchmarks.attached import Attached
from benchmarks.attached_saves import save
from benchmarks.measure import CACHES, save_once
from benchmarks.memory import Peak, held
from benchmarks.ours import Native
from benchmarks.table import head, row
from holdfast import Checkpointer

_REPOSITORY = Path(__file__).parent.parent
_ROUNDS = 3
_NATIVE = "a plain loop"
_WAYS = {_NATIVE: "native", "attach(trainer)": "attach", "the Trainer alone": "attach"}


def report(folder: Path) -> None:
    """Prints the table."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    state = states.gpt2(device)
    paths = {}
    with Native(state, folder / "native") as saver:
        paths["native"], _ = save_once(saver, 0)
    paths["attach"], _, _ = save(state, folder / "attach", saves=1, at_once=False)
    size = state.size
    del state, saver
    head(f"a resume of {size / 1e6:.0f} MB on {device}, memory of the host", "")
    for way, layout in _WAYS.items():
        rounds = []
        for _ in range(_ROUNDS):
            CACHES["cold"](paths[layout])
            rounds.append(_resumed(way, paths[layout], device))
        row(f"{way}: memory beyond what stays, MB", [extra for extra, _ in rounds], 1e-6)
        row(f"{way}: until the first step, s", [seconds for _, seconds in rounds], 1)
    shutil.rmtree(folder / "native")
    shutil.rmtree(folder / "attach")


def _resumed(way: str, path: Path, device: str) -> tuple[int, float]:
    """Has a new process resume. Gives bytes and seconds."""
    command = [sys.executable, "-m", "benchmarks.resume", way, str(path.resolve()), device]
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, cwd=_REPOSITORY, env=environment, stdout=subprocess.PIPE, check=True)
    extra, seconds = json.loads(done.stdout.splitlines()[-1])
    return extra, seconds


def _resume(way: str, path: Path, device: str) -> None:
    """Resumes, and prints what that took until the first step."""
    state = states.fresh_gpt2(device, 12, 768, 50257, seed=1)
    state.settle()
    attached = None if way == _NATIVE else Attached(state, path.parent)
    peak = Peak()
    peak.__enter__()
    before, begun = held(), time.perf_counter()

    def told(_: object = None) -> Iterator[None]:
        state.settle()
        seconds, stays = time.perf_counter() - begun, held() - before
        peak.__exit__(None, None, None)
        print(
            "\n" + json.dumps([peak.extra - stays, seconds]), file=sys.__stdout__
        )  # a Trainer's own words go elsewhere
        yield from ()

    if attached is not None:
        attached.train(told, path, attach=way.startswith("attach"))
        return
    with Checkpointer(
        path.parent, say=lambda _: None, model=state.model, optimizer=state.optimizer, scheduler=state.scheduler
    ) as checkpointer:
        checkpointer.resume()
        list(told())


if __name__ == "__main__":
    _resume(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
