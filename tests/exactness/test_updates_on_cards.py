"""Whichever way training makes its updates, each save on cards is of its boundary, and goes on as if never interrupted.

The cards are those of a device of paper, whose copies come as late as the order allows; all else is as it is.
"""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from helpers.paper import POLICIES, Lane, Paper, taken_for_cards
from helpers.trainings import events
from holdfast import Checkpointer

STEPS = 7
_adamw = inspect.unwrap(torch.optim.AdamW.step)


class Training:
    """A small training with dropout, whose update is made in one of several ways.

    Args:
        run: The run directory.
        way: The function that makes the update of a training.
        paper: The device.
        **settings: Further keywords for the `Checkpointer`.
    """

    def __init__(self, run: Path, way: "Way", paper: Paper, **settings: Any) -> None:
        torch.manual_seed(3)
        self.paper = paper
        self.model = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.3), nn.Linear(16, 3))
        self.parts: dict[str, Any] = {"model": self.model}
        self.rows = torch.zeros(4, 6)
        self.at = 0
        self.update = way(self)
        self.ckpt = Checkpointer(run, say=lambda line: None, save_at_end=False, **self.parts, **settings)

    def loss(self) -> Any:
        return self.model(self.rows).square().mean()

    def adamw(self, **settings: Any) -> torch.optim.AdamW:
        self.parts["optimizer"] = torch.optim.AdamW(self.model.parameters(), lr=0.05, **settings)
        optimizer: torch.optim.AdamW = self.parts["optimizer"]
        return optimizer

    def train(self, *, saves: bool = False) -> list[str]:
        """Trains to the end; returns what each step leaves."""
        left = []
        with self.ckpt:
            for at in range(self.ckpt.resume(), STEPS):
                self.at = at
                self.rows.fill_(at + 1.0)
                self.update()
                self.ckpt.step()
                left.append(self.state())
                if saves:
                    self.ckpt.save(f"at {self.ckpt.step_count}")
        return left

    def state(self) -> str:
        optimizers = [part for part in self.parts.values() if isinstance(part, torch.optim.Optimizer)]
        return str([[p.tolist() for p in self.model.parameters()], *(o.state_dict() for o in optimizers)])


Way = Callable[[Training], Callable[[], None]]


def adamw(training: Training, **settings: Any) -> Callable[[], None]:
    optimizer = training.adamw(**settings)

    def update() -> None:
        training.loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return update


def scaled(training: Training) -> Callable[[], None]:
    """A loss that overflows in two of the steps, which are skipped."""
    optimizer = training.adamw()
    scaler = training.parts["scaler"] = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)

    def update() -> None:
        scaler.scale(training.loss() * (float("inf") if training.at in (2, 5) else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return update


def in_backward(training: Training) -> Callable[[], None]:
    """An optimizer for each parameter, which steps as soon as its gradient is there, in another thread and lane."""
    aside = Lane("aside", 0)
    parameter: Any
    for number, parameter in enumerate(training.model.parameters()):
        optimizer = training.parts[f"optimizer_{number}"] = torch.optim.AdamW([parameter], lr=0.05)

        def step(parameter: Any, optimizer: torch.optim.AdamW = optimizer) -> None:
            optimizer.step()
            parameter.grad = None

        parameter.register_post_accumulate_grad_hook(step)

    def backward(loss: Any) -> None:
        with training.paper.in_lane(aside):
            loss.backward()

    def update() -> None:
        thread = Thread(target=backward, args=(training.loss(),))
        thread.start()
        thread.join()

    return update


def compiled(training: Training) -> Callable[[], None]:
    torch.compiler.reset()
    optimizer = training.adamw(foreach=True)
    step = torch.compile(optimizer.step, backend="eager")

    def update() -> None:
        training.loss().backward()
        step()
        optimizer.zero_grad()

    return update


class Captured(torch.optim.AdamW):
    """Puts its work into lanes, as a real one does with kernels, or into the graph that is captured."""

    paper: Paper

    def step(self, closure: Any = None) -> Any:
        with torch.no_grad():
            self.paper.put(0, torch.no_grad()(partial(_adamw, self)))


def graph(training: Training) -> Callable[[], None]:
    """All of a step in a graph, which is captured while a save runs."""
    optimizer = training.parts["optimizer"] = Captured(training.model.parameters(), lr=0.05)
    optimizer.paper = training.paper
    graphs = []

    def enqueue() -> None:
        training.paper.put(0, lambda: training.loss().backward())
        optimizer.step()
        training.paper.put(0, partial(optimizer.zero_grad, set_to_none=False))

    def update() -> None:
        if training.at == 3:
            with training.paper.capture() as captured:
                enqueue()
            graphs.append(captured)
        if graphs:
            graphs[0].replay()
        else:
            enqueue()

    return update


def graph_of_before(training: Training) -> Callable[[], None]:
    """A graph that was captured before the training was opened."""
    optimizer = training.parts["optimizer"] = Captured(training.model.parameters(), lr=0.05)
    optimizer.paper = training.paper
    with training.paper.capture() as captured:
        training.paper.put(0, lambda: training.loss().backward())
        optimizer.step()
        training.paper.put(0, partial(optimizer.zero_grad, set_to_none=False))
    return captured.replay


def foreach(training: Training) -> Callable[[], None]:
    return adamw(training, foreach=True)


def fused(training: Training) -> Callable[[], None]:
    return adamw(training, fused=True, amsgrad=True)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
@pytest.mark.parametrize(
    ("way", "policy"),
    [
        *((way, "lazy") for way in (foreach, fused, scaled, compiled, in_backward, graph_of_before)),
        *((graph, policy) for policy in POLICIES),
    ],
)
def test_each_of_its_saves_goes_on_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Way, policy: str
) -> None:
    """A save is asked for at each step, and training goes on into the next update while the cards copy."""
    whole = taken_for_cards(monkeypatch, Paper("eager", in_step=True))
    left = Training(tmp_path / "whole", way, whole).train()
    assert len(set(left)) == STEPS - 2 * (way is scaled)
    paper = taken_for_cards(monkeypatch, Paper(policy, 5, cards=2, in_step=True))
    saved = Training(tmp_path / "run", way, paper)
    assert saved.train(saves=True) == left, "it notices nothing"
    assert not saved.ckpt._engine.gate.only_when_blocked and paper.waits
    steps = [event["step"] for event in events(tmp_path / "run", "saved")]
    assert len(steps) > 2
    for step in steps if policy == "lazy" and way is not compiled else steps[1:2]:
        path = tmp_path / "run" / f"checkpoint-{step}"
        resumed = Training(tmp_path / f"from-{step}", way, paper, resume=str(path))
        assert resumed.train() == left[step:], f"from step {step}"


class Descending(torch.optim.Optimizer):
    """Takes one from each weight, by halves, in the lane of whoever calls it or in the graph that is captured."""

    def __init__(self, paper: Paper, parameters: Any) -> None:
        super().__init__(parameters, {})
        self.paper = paper

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                half = parameter.numel() // 2
                for piece in parameter.detach().split([half, parameter.numel() - half]):
                    self.paper.put(0, partial(piece.data.sub_, 1.0))


def _fill(tensor: torch.Tensor, value: float) -> None:
    tensor.data.fill_(value)


class ReadAtOnce(Paper):
    """`step()` and `save()` read with torch, at once: so what their lanes wait for is done at once, too."""

    def __init__(self, policy: str, seed: int) -> None:
        super().__init__(policy, seed)
        self.another = Lane("another", 0)

    def join(self, lane: Any, event: Any) -> None:
        super().join(lane, event)
        if lane in (self._current[0], self.another):
            self.wait(event)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("captured", [False, True], ids=["optimizer", "graph"])
def test_updates_in_a_lane_that_nobody_joins_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, captured: bool, policy: str
) -> None:
    """Nothing of training is done when it is enqueued, and optimizer, `step()` and `save()` have a lane each."""
    paper = ReadAtOnce(policy, 7)
    taken_for_cards(monkeypatch, paper)
    model = nn.ParameterList(torch.zeros(9) for _ in range(3))
    best = torch.zeros(1)
    model.register_buffer("best", best)
    optimizer, aside = Descending(paper, model.parameters()), Lane("aside", 0)
    update: Callable[[], Any] = optimizer.step
    if captured:
        with paper.capture() as graph:
            optimizer.step()
        update = graph.replay
    with Checkpointer(
        tmp_path / "run", model=model, optimizer=optimizer, say=lambda line: None, save_at_end=False
    ) as ckpt:
        for _ in range(ckpt.resume(), 6):
            with paper.in_lane(aside):
                update()
            ckpt.step()
            paper.put(0, partial(_fill, best, float(ckpt.step_count)))
            with paper.in_lane(paper.another):
                ckpt.save(f"at {ckpt.step_count}")
    saved = {event["step"]: event["path"] for event in events(tmp_path / "run", "saved")}
    assert len(saved) > 2
    for step, path in saved.items():
        weights = load_file(Path(path) / "model.safetensors")
        assert weights.pop("best").tolist() == [step]
        assert all(torch.equal(weight, torch.full((9,), -float(step))) for weight in weights.values()), step
