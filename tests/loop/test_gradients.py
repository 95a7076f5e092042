"""Gradients that a loop lets add up over its updates are part of its state; those of other loops are not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim

from holdfast import Checkpointer
from holdfast.errors import PartialAccumulationError
from holdfast.state.gradients import Gradients
from holdfast.state.part import Stored


class Loop:
    """A loop that treats its gradients in one of many ways."""

    def __init__(self, root: Path, way: str, **settings: Any) -> None:
        torch.manual_seed(1)
        self.way = way
        # What the first parameter's gradient is shows nothing: no row of it is ever used.
        self.model = nn.ModuleDict({"unused": nn.Embedding(2, 2), "used": nn.Linear(4, 4)})
        self.model["unused"].weight.grad = torch.zeros(2, 2)
        self.optimizer = optim.AdamW(self.model.parameters(), 0.1)
        self.said: list[str] = []
        self.ckpt = Checkpointer(
            root, model=self.model, optimizer=self.optimizer, say=self.said.append, save_steps=1, **settings
        )

    def train(self, steps: int) -> str:
        with self.ckpt:
            for step in range(self.ckpt.resume(), steps):
                if self.way.startswith("first"):
                    self.optimizer.zero_grad(set_to_none="in place" not in self.way)
                self.model["used"](torch.full((1, 4), float(step))).square().sum().backward()
                if "clipped" in self.way:
                    nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
                if self.way.startswith("after") or (self.way == "every other" and step % 2):
                    self.optimizer.zero_grad(set_to_none="in place" not in self.way)
                self.ckpt.step()
        return str([weight.tolist() for weight in self.model.parameters()])

    @property
    def told(self) -> list[str]:
        return [line for line in self.said if "gradients add" in line or "its gradient" in line]


def manifest(root: Path, step: int) -> Any:
    return json.loads((root / f"checkpoint-{step}" / "MANIFEST.json").read_text())


@pytest.mark.parametrize("way", ["never", "never, clipped", "every other"])
def test_gradients_that_add_up_come_back(tmp_path: Path, way: str) -> None:
    whole = Loop(tmp_path / "whole", way).train(7)
    first = Loop(tmp_path / "cut", way)
    first.train(3)
    assert first.told == [
        "gradients add up over step(): from step 2 on they are copied (96 bytes a step) and saved;"
        " checkpoint-1 had been saved without them"
    ]
    second = Loop(tmp_path / "cut", way)
    assert second.train(7) == whole
    assert second.told == []
    assert manifest(tmp_path / "cut", 3)["requires"] == ["gradients"]
    status = json.loads((tmp_path / "cut" / ".holdfast" / "status.json").read_text())
    assert status["copied_buffers"] == {"gradients": 96}


@pytest.mark.parametrize("way", ["first", "first, in place", "first, clipped", "after", "after, in place"])
def test_a_loop_that_zeroes_them_has_no_line_and_no_byte_of_them(tmp_path: Path, way: str) -> None:
    loop = Loop(tmp_path, way)
    loop.train(6)
    assert loop.told == []
    for step in (1, 2, 6):
        entry = manifest(tmp_path, step)
        assert entry["version"] == 1
        assert not any("gradients" in file["path"] for file in entry["files"])
    assert not any(weight._backward_hooks for weight in loop.model.parameters())


class Two:
    """A loop with two models and an optimizer for each, named so that either may come first."""

    def __init__(self, root: Path, *, names: tuple[str, str], seldom: bool) -> None:
        torch.manual_seed(1)
        self.seldom = seldom
        self.often, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.of_often, self.of_other = optim.SGD(self.often.parameters(), 0.1), optim.SGD(self.other.parameters(), 0.1)
        models: dict[str, Any] = dict(sorted(zip(names, (self.often, self.other), strict=True)))
        self.said: list[str] = []
        self.ckpt = Checkpointer(
            root, **models, of_often=self.of_often, of_other=self.of_other, say=self.said.append, save_steps=6
        )

    def train(self, steps: int) -> str:
        with self.ckpt:
            for step in range(self.ckpt.resume(), steps):
                self.of_often.zero_grad()
                self.other(self.often(torch.full((1, 4), float(step)))).square().mean().backward()
                self.of_often.step()
                if not self.seldom:  # as an adversary is trained: its gradients of the other's loss are none of its own
                    self.of_other.zero_grad()
                    self.other(torch.ones(1, 4)).square().mean().backward()
                if not self.seldom or step % 8 == 7:
                    self.of_other.step()
                if self.seldom and step % 8 == 7:
                    self.of_other.zero_grad()
                self.ckpt.step()
        return str([weight.tolist() for weight in (*self.often.parameters(), *self.other.parameters())])

    @property
    def told(self) -> list[str]:
        return [line for line in self.said if "gradients add" in line]


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_one_optimizer_that_steps_more_seldom_has_its_gradients_back(tmp_path: Path, names: tuple[str, str]) -> None:
    whole = Two(tmp_path / "whole", names=names, seldom=True).train(9)
    first = Two(tmp_path / "cut", names=names, seldom=True)
    first.train(6)
    assert len(first.told) == 1
    assert Two(tmp_path / "cut", names=names, seldom=True).train(9) == whole


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_gradients_that_another_loss_leaves_and_the_update_zeroes_are_none(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    loop = Two(tmp_path, names=names, seldom=False)
    loop.train(6)
    assert loop.told == []
    assert not any(weight._backward_hooks for weight in (*loop.often.parameters(), *loop.other.parameters()))


def test_gradients_without_an_update_are_still_refused(tmp_path: Path) -> None:
    Loop(tmp_path, "never").train(3)
    loop = Loop(tmp_path, "never")
    with loop.ckpt:
        loop.ckpt.resume()
        loop.model["used"](torch.ones(1, 4)).sum().backward()
        with pytest.raises(PartialAccumulationError):
            loop.ckpt.step()


def test_a_gradient_that_was_read_is_the_parameters_own_and_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Loop(tmp_path, "never")
    first.train(3)
    read: list[int] = []
    restore = Gradients.restore

    def noting(self: Gradients, stored: Stored | None) -> list[str]:
        assert stored is not None
        read.extend(tensor.data_ptr() for tensor in stored.tensors.values())
        return restore(self, stored)

    monkeypatch.setattr(Gradients, "restore", noting)
    loop = Loop(tmp_path, "never")
    with loop.ckpt:
        loop.ckpt.resume()
        gradients = [weight.grad for weight in loop.model.parameters() if weight.grad is not None]
        assert sorted(gradient.data_ptr() for gradient in gradients) == sorted(read) and len(read) == 3


def test_a_gradient_that_fits_nothing_is_named(tmp_path: Path) -> None:
    Loop(tmp_path, "never").train(3)
    loop = Loop(tmp_path, "never", strict=False)
    loop.model["used"] = nn.Linear(4, 5)
    with loop.ckpt:
        loop.ckpt.resume()
    assert "model.used.weight: its gradient in the checkpoint fits nothing here, and is left out" in loop.told
