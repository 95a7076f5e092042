"""How long a new process takes from its start to its first step after a resume, and with what."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import CACHES, save_once
from benchmarks.memory import Ballast
from benchmarks.ours import Native
from benchmarks.peers.torch_save import TorchSave
from benchmarks.states import State

WAYS = {"native": Native.title, "torch": "torch.load"}
"""How the state comes back: how tables call it."""

_REPOSITORY = Path(__file__).parent.parent
# Losses of two processes agree to this: the order of a sum may differ.
_AGREE = 1e-4

Found = dict[str, dict[str, dict[str, list[float]]]]


def measure(state: State, folder: Path, rounds: int, filled: Ballast | None) -> Found:
    """Saves a state in each way, and has new processes go on from there.

    Args:
        state: A GPT-2.
        folder: An empty directory.
        rounds: How many processes, in each way and from each cache.
        filled: What keeps free memory filled.

    Returns:
        Seconds by way, by cache (`cold` or `warm`, of the checkpoint alone), and by what they were spent on.
    """
    paths = saved(state, folder)
    expected = float(state.forward_backward())
    state.drop_gradients()
    found: Found = {way: {cache: {} for cache in CACHES} for way in WAYS}
    for _ in range(rounds):
        for cache, prepare in CACHES.items():
            for way, path in paths.items():
                if filled is not None:
                    filled.fill()
                prepare(path)
                seconds, loss = resumed(state, way, path)
                if not math.isclose(loss, expected, abs_tol=_AGREE):
                    raise AssertionError(f"{path} did not come back: the first step's loss is {loss}, not {expected}")
                for part, value in seconds.items():
                    found[way][cache].setdefault(part, []).append(value)
    shutil.rmtree(folder)
    return found


def saved(state: State, folder: Path) -> dict[str, Path]:
    """Saves a state in each way. Gives the checkpoints."""
    for way in WAYS:
        (folder / way).mkdir()
    with Native(state, folder / "native") as saver:
        native, _ = save_once(saver, 0)
    plain, _ = save_once(TorchSave(state, folder / "torch"), 0)
    return {"native": native, "torch": plain}


def resumed(state: State, way: str, path: Path) -> tuple[dict[str, float], float]:
    """Has a new process go on from a checkpoint.

    Args:
        state: A GPT-2 of the same form.
        way: How its state comes back.
        path: The checkpoint.

    Returns:
        Seconds by what they were spent on, and the loss of the first step.
    """
    config: Any = state.model.config
    shape = (config.n_layer, config.n_embd, config.vocab_size)
    what = [way, path.resolve(), state.device.type, *shape]
    begun = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.fresh", repr(begun), *map(str, what)]
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, cwd=_REPOSITORY, env=environment, stdout=subprocess.PIPE, check=True)
    said = json.loads(done.stdout)
    return said["seconds"], said["loss"]
