"""What a program of this folder shares with the story that is told with it: where it stands still, what it ended with.

A program is called as `python NAME.py OUT` (or under torchrun). It trains `STEPS` steps in `OUT`, and

- attaches Holdfast and resumes as `auto`, unless `PLAIN`: then it trains as if Holdfast were not there;
- calls `hold(step)` within each step, before its update, with the number of the steps that are done;
- calls `finish(model, history)` when training has come to its end by itself.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

STEPS = 20
"""The optimizer steps of every training."""
SAVE_STEPS = 4
"""The interval of scheduled saves, of which one checkpoint is kept."""
PLAIN = bool(os.environ.get("FIELD_PLAIN"))
"""True where the program is to train without Holdfast."""
APART = {name: Path(sys.prefix, name) for name in ("timm", "deepspeed")}
"""Folders of packages that no other program may see; the Makefile says why."""
OUT = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
"""The run directory."""

_HOLDS = {int(step) for step in os.environ.get("FIELD_HOLDS", "").split(",") if step}
_LIMIT_SECONDS = 120.0


def path_of(apart: str = "") -> str:
    """Returns the path on which a program finds this package, and packages that lie apart."""
    own = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return os.pathsep.join([*own, *([str(APART[apart])] if apart else [])])


def hold(step: int) -> None:
    """Stands still after a step that the story has named, in rank 0, until the story says go on.

    Args:
        step: The number of steps that are done, over all resumes.
    """
    if step not in _HOLDS or int(os.environ.get("RANK", "0")):
        return
    _HOLDS.discard(step)  # a step of several forward passes stands still once
    mark(f"at-{step}").touch()
    deadline = time.monotonic() + _LIMIT_SECONDS
    while not mark(f"go-{step}").exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody said that training may go on after step {step}")
        time.sleep(0.005)


def mark(name: str) -> Path:
    """Returns the file by which the program and the story tell each other something."""
    return OUT.with_name(f"{OUT.name}.{name}")


def finish(model: torch.nn.Module | Mapping[str, torch.Tensor], history: Any = None) -> None:
    """Leaves what training ended with, for the story to compare.

    Args:
        model: The model, or its tensors by name.
        history: What was logged, as JSON; times of it are left out.
    """
    tensors = model.state_dict() if isinstance(model, torch.nn.Module) else model
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    if not int(os.environ.get("RANK", "0")):
        ended_with = {"weights": digest.hexdigest()[:16], "history": _without_times(history)}
        mark("result.json").write_text(json.dumps(ended_with))


def _without_times(history: Any) -> Any:
    if isinstance(history, Mapping):
        return {
            name: _without_times(value)
            for name, value in history.items()
            if not str(name).endswith(("runtime", "per_second", "step_time")) and name != "total_flos"
        }
    return [_without_times(value) for value in history] if isinstance(history, list) else history
