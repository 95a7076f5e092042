import inspect
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers.gates import begun, boundary, ended, gate_at, held
from helpers.paper import POLICIES, Lane, Paper, PaperGraph
from holdfast.capture.optimizer_hook import OptimizerHook


def descend(weight: torch.Tensor) -> None:
    weight.data.sub_(1.0)


class OnPaper(torch.optim.Optimizer):
    """Descends in the lane of whoever calls it, or in the graph that is captured."""

    def __init__(self, paper: Paper, parameters: Any) -> None:
        super().__init__(parameters, {})
        self._paper = paper

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                self._paper.put(0, partial(descend, parameter))


class Trained:
    """A weight on a card, standing at a boundary with the gate shut."""

    def __init__(self, paper: Paper, weight: torch.Tensor) -> None:
        self.paper, self.weight = paper, weight
        self.optimizer = OnPaper(self.paper, [self.weight])
        self.gate = gate_at(1)
        self.hook = OptimizerHook(self.gate, [self.weight], device=self.paper)
        self.gate.shut(-1)

    def updates(self) -> int:
        return -round(float(self.weight.detach()[0]))

    def requires_the_gate(self, graph: PaperGraph) -> None:
        with held(self.gate, graph.replay):
            assert self.updates() == 0
            self.gate.open(1)
        assert self.updates() == 1 and self.gate.updating

    def passes(self, graph: PaperGraph) -> None:
        assert ended(begun(graph.replay)) and not self.gate.updating


@pytest.fixture
def trained() -> Iterator[Trained]:
    made = Trained(Paper(in_step=True), nn.Parameter(torch.zeros(4)))
    yield made
    made.hook.remove()


def test_a_replay_waits_as_the_update_that_was_captured_in_it_and_the_capture_does_not(trained: Trained) -> None:
    with trained.paper.capture() as graph:
        trained.optimizer.step()
    assert trained.updates() == 0 and not trained.gate.updating and trained.gate.is_shut
    aside = Lane("aside", 0)

    def replayed_aside() -> None:
        with trained.paper.in_lane(aside):
            graph.replay()

    assert trained.hook.lanes() == {0: ()}
    with held(trained.gate, replayed_aside):
        assert trained.updates() == 0
        trained.gate.open(1)
    assert trained.updates() == 1 and trained.gate.updating and trained.hook.lanes() == {0: (aside,)}
    trained.gate.reach(boundary(2), shut=True)
    with held(trained.gate, graph.replay):
        trained.gate.open(2)
    assert trained.updates() == 2, "each of them"


def test_a_graph_without_an_update_passes(trained: Trained) -> None:
    calls: list[int] = []
    with trained.paper.capture() as graph:
        trained.paper.put(0, lambda: calls.append(1))
        OnPaper(trained.paper, [nn.Parameter(torch.zeros(1))]).step()  # a probe's
    with trained.paper.capture():
        trained.optimizer.step()
    trained.passes(graph)
    assert calls and trained.hook.lanes() == {0: ()}


def test_a_graph_that_was_captured_before_the_training_was_opened_may_hold_an_update() -> None:
    paper, weight = Paper(in_step=True), nn.Parameter(torch.zeros(4))
    with paper.capture() as graph:
        OnPaper(paper, [weight]).step()
    trained = Trained(paper, weight)
    trained.requires_the_gate(graph)
    trained.hook.remove()


def test_an_update_that_another_thread_enqueues_into_the_capture_is_in_it(trained: Trained) -> None:
    """As autograd's threads do."""

    def in_backward() -> None:
        with trained.paper.capturing(graph):
            trained.optimizer.step()

    with trained.paper.capture() as graph:
        assert ended(begun(in_backward)) and not trained.gate.updating
    trained.requires_the_gate(graph)


def test_an_update_that_no_optimizer_makes_is_captured_as_well(trained: Trained) -> None:
    with trained.paper.capture() as graph:
        trained.hook.enter_update()
        trained.paper.put(0, partial(descend, trained.weight))
    trained.requires_the_gate(graph)


def test_a_graph_that_is_captured_into_another_is_replayed_with_that(trained: Trained) -> None:
    with trained.paper.capture() as inner:
        trained.optimizer.step()
    with trained.paper.capture() as outer:
        inner.replay()
    assert not trained.gate.updating
    trained.requires_the_gate(outer)


def test_a_graph_that_is_captured_anew_is_what_it_was_captured_as_last(trained: Trained) -> None:
    with trained.paper.capture() as graph:
        trained.optimizer.step()
    graph.capture_begin()
    graph.capture_end()
    trained.passes(graph)
    graph.capture_begin()
    with trained.paper.capturing(graph):
        trained.optimizer.step()
    graph.capture_end()
    trained.requires_the_gate(graph)


def test_a_hook_that_was_removed_holds_no_graph_and_the_class_is_watched_once(trained: Trained) -> None:
    with trained.paper.capture() as graph:
        trained.optimizer.step()
    watched = [getattr(PaperGraph, name) for name in ("capture_begin", "capture_end", "replay")]
    OptimizerHook(trained.gate, [trained.weight], device=trained.paper).remove()
    assert [getattr(PaperGraph, name) for name in ("capture_begin", "capture_end", "replay")] == watched
    trained.hook.remove()
    trained.passes(graph)
    assert trained.updates() == 1
    with trained.paper.capture():
        trained.optimizer.step()


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_read_at_a_boundary_is_behind_the_updates_of_all_lanes_and_before_their_next(policy: str) -> None:
    paper, gate, read = Paper(policy, 3, cards=2), gate_at(1), []
    weights = [paper.place(nn.Parameter(torch.zeros(6)), card) for card in (0, 1)]
    hook = OptimizerHook(gate, weights, device=paper)
    aside = Lane("aside", 0)

    def update(value: float) -> None:
        with paper.in_lane(aside):
            hook.enter_update()
            for weight in weights:
                paper.write(weight, value)

    for value in range(1, 6):
        update(value)
        with hook.joined():
            for card, weight in enumerate(weights):
                paper.put(card, partial(lambda weight: read.append(weight.tolist()), weight))
        assert hook.lanes() == {card: (paper.lane(card),) for card in (0, 1)}
    hook.remove()
    paper.finish()
    assert sorted(read) == sorted([[float(value)] * 6 for value in range(1, 6)] * 2)


def test_training_on_the_host_watches_no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Untouched:
        def replay(self) -> None: ...

        capture_begin = capture_end = replay

    before, paper = dict(vars(Untouched)), Paper()
    monkeypatch.setattr(paper, "graph_class", lambda: Untouched)
    OptimizerHook(gate_at(1), [paper.place(nn.Parameter(torch.zeros(4)), None)], device=paper).remove()
    assert dict(vars(Untouched)) == before


def test_the_graphs_of_cuda_are_made_replayed_and_kept_as_the_hook_expects() -> None:
    """Of the installed torch, without a GPU: in a class of Python, by these names, and from nowhere else."""
    kind = torch.cuda.CUDAGraph
    assert {"capture_begin", "capture_end", "replay"} <= vars(kind).keys() and kind.__weakrefoffset__
    assert list(inspect.signature(kind.replay).parameters) == ["self"]
    context, graphed = inspect.getsource(torch.cuda.graph), inspect.getsource(torch.cuda.make_graphed_callables)
    assert ".capture_begin(" in context and ".capture_end(" in context
    assert "with torch.cuda.graph(" in graphed and ".replay()" in graphed
    trees = Path(torch.__file__).with_name("_inductor").joinpath("cudagraph_trees.py").read_text()
    assert "torch.cuda.graph(" in trees and "self.graph.replay()" in trees
