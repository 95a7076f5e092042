from collections.abc import Callable, Hashable, Iterator
from typing import Any

import pytest
import pytorch_optimizer
import torch
from torch import nn

from helpers.gates import begun, boundary, ended, gate_at, held
from helpers.paper import Lane, Paper
from holdfast.capture.boundary import Boundary
from holdfast.capture.optimizer_hook import OptimizerHook
from holdfast.state.optimizer_layers import with_inner


class OfOnesOwn(torch.optim.Optimizer):
    """Descends by the sign, and calls nothing of torch's own optimizers."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(parameter.grad.sign(), alpha=0.1)


class Trained:
    """A model with gradients, standing at a boundary."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(4, 2)
        self.gate = gate_at(1)
        self.hook = OptimizerHook(self.gate, self.model.parameters())
        self.loss().backward()

    def register(self, optimizer: Any) -> None:
        self.hook.remove()
        self.hook = OptimizerHook(self.gate, self.model.parameters(), with_inner(optimizer))

    def loss(self) -> Any:
        return (self.model(torch.ones(3, 4)) ** 2).mean()


@pytest.fixture
def trained() -> Iterator[Trained]:
    made = Trained()
    yield made
    made.hook.remove()


def plain(trained: Trained) -> Callable[[], object]:
    return torch.optim.SGD(trained.model.parameters(), lr=0.1).step


def fused(trained: Trained) -> Callable[[], object]:
    return torch.optim.AdamW(trained.model.parameters(), fused=True).step


def scheduled(trained: Trained) -> Callable[[], object]:
    optimizer = torch.optim.AdamW(trained.model.parameters())
    torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)  # it puts a step of its own in the optimizer's place
    return lambda: optimizer.step()


def lbfgs(trained: Trained) -> Callable[[], object]:
    optimizer: Any = torch.optim.LBFGS(trained.model.parameters(), max_iter=3)

    def closure() -> float:
        optimizer.zero_grad()
        loss = trained.loss()
        loss.backward()
        return float(loss.detach())

    return lambda: optimizer.step(closure)


def by_a_scaler(trained: Trained) -> Callable[[], object]:
    optimizer = torch.optim.SGD(trained.model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    optimizer.zero_grad()
    scaler.scale(trained.loss()).backward()
    return lambda: scaler.step(optimizer)


def of_ones_own(trained: Trained) -> Callable[[], object]:
    return OfOnesOwn(trained.model.parameters()).step


def of_some_of_them(trained: Trained) -> Callable[[], object]:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1)), trained.model.bias], lr=0.1).step


def with_a_group_added_later(trained: Trained) -> Callable[[], object]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    optimizer.step()  # it is known as a stranger's from now on
    assert not trained.gate.updating
    optimizer.add_param_group({"params": list(trained.model.parameters())})
    return optimizer.step


def around_another(trained: Trained) -> Callable[[], object]:
    return pytorch_optimizer.Lookahead(torch.optim.SGD(trained.model.parameters(), lr=0.1)).step  # type: ignore[no-any-return]


def first_half(trained: Trained) -> Callable[[], object]:
    optimizer = pytorch_optimizer.SAM(trained.model.parameters(), torch.optim.SGD, lr=0.1)
    trained.register(optimizer)
    return optimizer.first_step  # type: ignore[no-any-return]


def weights_for_an_evaluation(trained: Trained) -> Callable[[], object]:
    inner = pytorch_optimizer.ScheduleFreeWrapper(torch.optim.SGD(trained.model.parameters(), lr=0.1))
    outer = pytorch_optimizer.Lookahead(inner)
    inner.train()
    for _ in range(3):
        inner.step()
    trained.gate.reach(Boundary(1, "update", number=1), shut=False)
    trained.register(outer)
    return inner.eval  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "make",
    [
        plain,
        fused,
        scheduled,
        lbfgs,
        by_a_scaler,
        of_ones_own,
        of_some_of_them,
        with_a_group_added_later,
        around_another,
        first_half,
        weights_for_an_evaluation,
    ],
    ids=lambda make: make.__name__,
)
def test_every_optimizer_of_the_parameters_waits_before_it_changes_them(
    trained: Trained, make: Callable[[Trained], Callable[[], object]]
) -> None:
    step = make(trained)
    before = [parameter.detach().clone() for parameter in trained.model.parameters()]
    trained.gate.shut(-1)
    with held(trained.gate, step):
        assert all(map(torch.equal, before, trained.model.parameters()))
        trained.gate.open(1)
    assert trained.gate.updating
    assert not all(map(torch.equal, before, trained.model.parameters()))


def test_a_mode_that_is_set_already_leaves_no_boundary(trained: Trained) -> None:
    optimizer = pytorch_optimizer.ScheduleFreeWrapper(torch.optim.SGD(trained.model.parameters(), lr=0.1))
    optimizer.train()
    trained.register(optimizer)
    trained.gate.shut(-1)
    assert ended(begun(optimizer.train)) and not trained.gate.updating
    trained.hook.remove()
    assert ended(begun(optimizer.eval)) and not trained.gate.updating, "no training goes on any more"


def test_an_optimizer_of_other_parameters_passes(trained: Trained) -> None:
    probe = nn.Linear(4, 1)
    optimizer = torch.optim.AdamW(probe.parameters())
    probe(torch.ones(1, 4)).sum().backward()
    before = probe.weight.detach().clone()
    trained.gate.shut(-1)
    assert ended(begun(optimizer.step))
    assert not torch.equal(before, probe.weight) and not trained.gate.updating


def test_a_scaler_that_skips_comes_to_no_gate_but_to_that_of_the_step(trained: Trained) -> None:
    optimizer = torch.optim.SGD(trained.model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(trained.loss() * float("inf")).backward()
    trained.gate.shut(-1)
    assert ended(begun(lambda: scaler.step(optimizer))) and not trained.gate.updating
    with held(trained.gate, trained.gate.leave):
        trained.gate.open(1)


def test_a_hook_that_was_removed_holds_nobody(trained: Trained) -> None:
    trained.hook.remove()
    trained.gate.shut(-1)
    assert ended(begun(plain(trained))) and not trained.gate.updating


def test_the_lanes_of_updates_are_known_by_the_cards_that_they_are_on() -> None:
    paper, gate = Paper(in_step=True, cards=3), gate_at(1)
    weights = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    for weight, card in zip(weights, (0, 2, None), strict=True):
        weight.grad = torch.ones(2)
        paper.place(weight, card)
    hook = OptimizerHook(gate, weights, device=paper)
    aside = Lane("aside", 0)
    try:
        assert hook.lanes() == {0: (), 2: ()}
        with paper.in_lane(aside), paper.capture():
            torch.optim.SGD(weights).step()
        assert hook.lanes() == {0: (), 2: ()} and not gate.updating, "nothing is enqueued in a capture"
        with paper.in_lane(aside):
            torch.optim.SGD(weights[:1]).step()
        assert gate.updating and hook.lanes() == {0: (aside,), 2: ()}
        torch.optim.SGD(weights[2:]).step()
        assert hook.lanes() == {0: (aside,), 2: ()}
        torch.optim.SGD(weights).step()
        assert set(hook.lanes()[0]) == {aside, paper.lane(0)} and hook.lanes()[2] == (paper.lane(2),)
        between = Lane("between", 2)
        with paper.in_lane(between):
            hook.enter_update()
        assert between in hook.lanes()[2]
    finally:
        hook.remove()


def test_optimizers_in_backward_are_known_by_the_lanes_of_the_threads_that_call_them() -> None:
    """As autograd does for a card: in a thread of its own, with the lane that the forward pass had."""
    paper, gate = Paper(in_step=True), gate_at(1)
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))
    aside = Lane("aside", 0)
    hook = OptimizerHook(gate, model.parameters(), device=paper)
    weight: Any
    for weight in model.parameters():
        optimizer = torch.optim.SGD([weight], lr=0.1)
        weight.register_post_accumulate_grad_hook(lambda _, optimizer=optimizer: optimizer.step())

    def backward() -> None:
        with paper.in_lane(aside):
            model(torch.ones(1, 2)).sum().backward()

    try:
        before = [weight.detach().clone() for weight in model.parameters()]
        gate.shut(-1)
        with held(gate, backward):
            assert all(map(torch.equal, before, model.parameters()))
            gate.open(1)
        assert gate.updating and hook.lanes() == {0: (aside,)}
        assert not any(map(torch.equal, before, model.parameters()))
    finally:
        hook.remove()


class Watching(Paper):
    """Knows whether it was ever asked for a lane by code that is being compiled."""

    def __init__(self, *, in_step: bool) -> None:
        super().__init__(in_step=in_step)
        self.asked: set[bool] = set()

    def lane(self, card: int) -> Hashable:
        self.asked.add(torch.compiler.is_compiling())
        return super().lane(card)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
@pytest.mark.parametrize("whole", [False, True], ids=["the optimizer's step", "the whole step"])
def test_a_compiled_step_passes_each_time_and_nothing_of_the_hooks_is_compiled(whole: bool) -> None:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    gate, paper, model = gate_at(0), Watching(in_step=True), nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    hook = OptimizerHook(gate, model.parameters(), device=paper)

    def backward() -> None:
        model(torch.ones(3, 4)).sum().backward()

    def train() -> None:
        backward()
        optimizer.step()

    compiled = torch.compile(train if whole else optimizer.step, backend="eager")
    try:
        for number in range(1, 13):
            if not whole:
                backward()
            compiled()
            assert gate.updating
            gate.reach(boundary(number), shut=False)
    finally:
        hook.remove()
    assert paper.asked == {False}
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1 + whole, "the update is one graph, and made once"
