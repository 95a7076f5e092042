"""One of the examples as it stands, with the story's steps and intervals. `EXAMPLE` names it.

What is put in the place of its `Checkpointer` is that, and stands still where the story says; or, to train without
Holdfast, a loop over the same data that saves nothing.
"""

import importlib
import itertools
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

import holdfast
from field.program import APART, OUT, PLAIN, SAVE_STEPS, STEPS, finish, hold
from holdfast.loop.checkpointer import Checkpointer

EXAMPLES = Path(__file__).parents[3] / "examples"
parts: dict[str, Any] = {}
kept: list[object] = []


class Held(Checkpointer):
    """A `Checkpointer` as the story needs it."""

    def __init__(self, output_dir: str, **given: Any) -> None:
        parts.update(given)
        super().__init__(output_dir, save_steps=SAVE_STEPS, save_total_limit=1, **given)
        register_module_forward_pre_hook(lambda *_: hold(self.step_count))


class Alone:
    """Goes through the data, counts the steps, and does nothing else."""

    stop_requested = False
    step_count = 0

    def __init__(self, output_dir: str, **given: Any) -> None:
        parts.update(given)

    def __enter__(self) -> "Alone":
        return self

    def __exit__(self, *error: object) -> None: ...

    def resume(self) -> int:
        return 0

    def batches(self, until: int) -> Iterator[Any]:
        for batch in itertools.chain.from_iterable(itertools.repeat(parts["data"])):
            yield batch
            if self.step_count == until:
                return

    def step(self, loss: Any = None) -> None:
        self.step_count += 1


def tensors() -> dict[str, torch.Tensor]:
    """Returns what the models and the optimizer ended with."""
    ended_with: dict[str, torch.Tensor] = {}
    for name, part in parts.items():
        if isinstance(part, torch.nn.Module):
            ended_with |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
    for number, state in parts["optimizer"].state_dict()["state"].items():
        ended_with |= {f"{number}.{key}": value for key, value in state.items() if isinstance(value, torch.Tensor)}
    return ended_with


def see_torchvision() -> None:
    """Makes timm and its torchvision importable.

    The build on the index is one for CUDA. Beside a torch without it the compiled operators are missing, of which the
    training of a classifier needs none: two are named in their place.
    """
    sys.path.append(str(APART["timm"]))
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        parts_of_it: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            parts_of_it.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        kept.append(parts_of_it)


if "timm" in os.environ["EXAMPLE"]:
    see_torchvision()
vars(holdfast)["Checkpointer"] = Alone if PLAIN else Held
sys.argv = [os.environ["EXAMPLE"], str(OUT), "--steps", str(STEPS)]
runpy.run_path(str(EXAMPLES / os.environ["EXAMPLE"]), run_name="__main__")
finish(tensors())
