"""What a loop keeps beside its parts: carried over a stop, or named."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn, optim

from holdfast import Checkpointer


def any_module(module: Any) -> Any:
    """Returns a module that takes any attribute."""
    return module


class Loop:
    """A model with an average of its weights that nobody registered, which the loss depends on."""

    def __init__(self, root: Path, *, late: bool = False, has_average: bool = True) -> None:
        torch.manual_seed(3)
        self.late = late
        self.model = any_module(nn.Linear(4, 4))
        self.model.average = [weight.detach().clone() for weight in self.model.parameters()] if has_average else []
        self.model.frozen = {"teacher": nn.Linear(4, 4)}
        self.optimizer = optim.AdamW(self.model.parameters(), 0.1)
        self.said: list[str] = []
        data = [torch.full((1, 4), float(number)) for number in range(3)]
        self.ckpt = Checkpointer(
            root, model=self.model, optimizer=self.optimizer, data=data, say=self.said.append, save_steps=5
        )

    def train(self, steps: int) -> str:
        """Trains up to a step; returns the weights and the average."""
        with self.ckpt:
            for batch in self.ckpt.batches(until=steps):
                self.optimizer.zero_grad()
                pull = sum((kept * live).sum() for kept, live in self._pairs())
                (self.model(batch).sum() + pull).backward()
                self.optimizer.step()
                if not self.late:
                    self._average()
                self.ckpt.step()
                if self.late:
                    self._average()
        return str([tensor.tolist() for tensor in (*self.model.parameters(), *self.model.average)])

    def _pairs(self) -> Any:
        return zip(self.model.average, self.model.parameters(), strict=False)

    @torch.no_grad()
    def _average(self) -> None:
        for kept, live in self._pairs():
            kept.mul_(0.9).add_(live, alpha=0.1)


def manifest(root: Path, step: int) -> Any:
    return json.loads((root / f"checkpoint-{step}" / "MANIFEST.json").read_text())


def test_a_resume_goes_on_with_what_nobody_registered(tmp_path: Path) -> None:
    whole = Loop(tmp_path / "whole").train(10)
    Loop(tmp_path / "cut").train(5)
    cut = Loop(tmp_path / "cut")
    assert cut.train(10) == whole
    entry = manifest(tmp_path / "cut", 10)
    assert entry["requires"] == ["carried"] and entry["version"] == 2
    size = next(file["size"] for file in entry["files"] if file["path"] == "carried.safetensors")
    assert size < 512, "the teacher has not changed"
    assert not any("average" in line for line in cut.said)


def test_without_it_a_checkpoint_is_of_the_first_version(tmp_path: Path) -> None:
    Loop(tmp_path, has_average=False).train(5)
    entry = manifest(tmp_path, 5)
    assert entry["version"] == 1 and "requires" not in entry
    assert not any(file["path"].startswith("carried") for file in entry["files"])


def test_what_a_resume_has_no_place_for_is_named(tmp_path: Path) -> None:
    Loop(tmp_path).train(5)
    without = Loop(tmp_path, has_average=False)
    without.train(6)
    (line,) = (line for line in without.said if "model.average" in line)
    assert line.startswith("model.average (2 tensors): the checkpoint carries it, and here is nothing in that place")


def test_what_a_loop_changes_after_its_step_is_told_once(tmp_path: Path) -> None:
    loop = Loop(tmp_path, late=True)
    loop.train(10)
    (line,) = (line for line in loop.said if "model.average" in line)
    assert line == "model.average: changed after step(), and a checkpoint has it as it was then: call step() last"
