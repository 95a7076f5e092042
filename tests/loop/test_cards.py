"""A loop whose tensors are on a card: `step()` waits for nothing there, whatever it has to look at."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn, optim

from helpers.elsewhere import Elsewhere
from helpers.launches import Launches
from helpers.paper import Paper, taken_for_cards
from holdfast import Checkpointer


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> Paper:
    return taken_for_cards(monkeypatch, Paper("lazy", in_step=True))


def launches(paper: Paper) -> Launches:
    """Counts, and fails at what waits; the page that numbers of a card come to is the host's."""

    def is_on_card(tensor: torch.Tensor) -> bool:
        begins = [(begin, begin + size) for begin, size in paper.registered]
        return not any(begin <= tensor.data_ptr() < end for begin, end in begins)

    return Launches(is_on_card)


class Loop:
    def __init__(self, root: Path, way: str = "after", **settings: Any) -> None:
        torch.manual_seed(1)
        self.way = way
        self.model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.optimizer = optim.AdamW(self.model.parameters(), 0.1)
        self.said: list[str] = []
        self.ckpt = Checkpointer(
            root, model=self.model, optimizer=self.optimizer, say=self.said.append, save_steps=1, **settings
        )

    def train(self, steps: int, paper: Paper | None = None) -> str:
        with self.ckpt:
            for step in range(self.ckpt.resume(), steps):
                loss = self.model(torch.full((1, 4), float(step))).square().sum()
                loss.backward()
                self.optimizer.step()
                if self.way.startswith("after"):
                    self.optimizer.zero_grad(set_to_none="in place" not in self.way)
                if paper is None:
                    self.ckpt.step(loss=loss.item())
                else:
                    with launches(paper):
                        self.ckpt.step(loss=loss)
                    paper.finish()
        return str([weight.tolist() for weight in self.model.parameters()])


def status(root: Path) -> Any:
    return json.loads((root / ".holdfast" / "status.json").read_text())


def test_a_loss_on_a_card_is_in_the_status_when_the_card_has_come_to_it(tmp_path: Path, paper: Paper) -> None:
    loop = Loop(tmp_path)
    loop.train(1, paper)
    shown = status(tmp_path)["loss"]
    assert shown is not None and shown == pytest.approx(
        Loop(tmp_path / "host").model(torch.zeros(1, 4)).square().sum().item()
    )


def test_a_loss_on_a_card_is_not_waited_for_where_all_of_the_state_is_with_the_host(
    tmp_path: Path, paper: Paper
) -> None:
    loop = Loop(tmp_path)
    for weight in loop.model.parameters():
        paper.place(weight, None)
    with loop.ckpt:
        loop.ckpt.resume()
        with loop.ckpt.update(), launches(paper):
            loop.ckpt.step(loss=torch.tensor(2.5))
        assert loop.ckpt._engine.run.status.now.loss is None
        paper.finish()
        assert loop.ckpt._engine.run.status.now.loss == 2.5


@pytest.mark.parametrize("way", ["never", "after, in place"])
def test_gradients_on_a_card_are_judged_without_waiting_and_as_those_of_the_host(
    tmp_path: Path, paper: Paper, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    cut = Loop(tmp_path / "cut", way)
    cut.train(4, paper)
    resumed = Loop(tmp_path / "cut", way)
    ended = resumed.train(7, paper)
    assert (tmp_path / "cut" / "checkpoint-4" / "gradients.safetensors").exists() == (way == "never")
    assert [line for line in cut.said if "gradients add" in line] == (
        ["gradients add up over step(): from step 3 on they are copied (160 bytes a step) and saved;"
         " checkpoint-1 and checkpoint-2 had been saved without them"] if way == "never" else []
    )  # fmt: skip
    monkeypatch.setattr("holdfast.engine.capturing.device_in_use", lambda: None)
    assert Loop(tmp_path / "host", way).train(7) == ended


@pytest.mark.parametrize("policy", ["lazy", "random"])
def test_buffers_and_gradients_of_a_save_are_those_of_its_boundary_however_late_they_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    taken_for_cards(monkeypatch, Paper(policy, 2, in_step=True))
    monkeypatch.setattr("holdfast.state.buffers.has_plain_memory", lambda tensor: False)
    monkeypatch.setattr("holdfast.state.gradients.is_on_host", lambda tensor: False)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 40), nn.BatchNorm1d(40), nn.Linear(40, 1))
    optimizer = optim.SGD(model.parameters(), 0.01)
    then: dict[int, dict[str, torch.Tensor]] = {}
    with Checkpointer(tmp_path, model=model, optimizer=optimizer, say=lambda line: None, save_steps=1) as ckpt:
        for step in range(ckpt.resume(), 8):
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
            gradients = {f"model.{name}": weight.grad for name, weight in model.named_parameters()}
            ckpt.step()
            state = {**model.state_dict(), **gradients}
            then[step + 1] = {name: tensor.detach().clone() for name, tensor in state.items() if tensor is not None}
    for step in range(4, 9):
        checkpoint = tmp_path / f"checkpoint-{step}"
        saved = load_file(checkpoint / "model.safetensors") | load_file(checkpoint / "gradients.safetensors")
        assert saved.keys() == then[step].keys()
        assert [name for name in saved if not torch.equal(saved[name], then[step][name])] == []


def test_state_on_a_device_of_another_kind_is_saved_at_boundaries_and_status_says_why(tmp_path: Path) -> None:
    values = torch.randn(40, 40)
    model = nn.ParameterDict({"weight": nn.Parameter(Elsewhere(values))})
    optimizer = optim.SGD(model.parameters(), 0.1, foreach=False)
    with Checkpointer(tmp_path, model=model, optimizer=optimizer, say=lambda line: None) as ckpt:
        for _ in range(ckpt.resume(), 3):
            model["weight"].grad = torch.ones_like(model["weight"])
            optimizer.step()
            ckpt.step()
        ckpt.save(wait=True)
    assert torch.equal(load_file(tmp_path / "checkpoint-3/model.safetensors")["weight"], values)
    status = json.loads((tmp_path / ".holdfast/status.json").read_text())
    assert "model.weight" in status["capture"] and "on mps:0" in status["capture"]
