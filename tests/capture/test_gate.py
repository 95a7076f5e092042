import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import pytorch_optimizer
import torch
from torch import nn

from helpers.waiting import wait_until
from holdfast.capture.boundary import Boundary
from holdfast.capture.gate import Gate
from holdfast.capture.optimizer_hook import OptimizerHook
from holdfast.state.optimizer_layers import with_inner


def boundary(number: int) -> Boundary:
    return Boundary(number, "update", number=number)


def gate_at(number: int | None) -> Gate:
    """A gate whose training stands between a boundary and the next update, or before its first."""
    gate = Gate(threading.Event())
    if number is not None:
        gate.reach(boundary(number), shut=False)
    return gate


def never() -> bool:
    return False


def begun(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def ended(thread: threading.Thread) -> bool:
    thread.join(30)
    return not thread.is_alive()


class Taker:
    """The thread that takes snapshots, on its way to shut the gate."""

    def __init__(self, gate: Gate, after: int = -1) -> None:
        self.taken: list[Boundary | None] = []
        self._gate = gate
        self._thread = begun(lambda: self.taken.append(gate.shut(after)))

    def waits(self) -> bool:
        wait_until(lambda: self._gate._wanted)
        return True

    def result(self) -> Boundary | None:
        assert ended(self._thread)
        return self.taken[0]


@contextmanager
def held(gate: Gate, work: Callable[[], object]) -> Iterator[threading.Thread]:
    """Training in a thread of its own, up to the gate that holds it."""
    thread = begun(work)
    wait_until(lambda: gate.blocked_since is not None)
    yield thread
    assert ended(thread)


def test_an_update_waits_at_a_shut_gate_and_is_counted() -> None:
    gate = gate_at(1)
    taken = gate.shut(-1)
    assert taken is not None and taken.number == 1 and gate.is_shut
    assert not gate.training_waits.is_set(), "nobody waits yet"
    with held(gate, gate.enter_update) as training:
        assert gate.training_waits.is_set() and not gate.updating and training.is_alive()
        gate.open(1)
    assert gate.updating and not gate.is_shut and not gate.training_waits.is_set()
    assert gate.blocked_since is None and gate.blocked_seconds > 0


def test_the_beginning_of_a_step_waits_too_and_ends_the_boundary() -> None:
    gate = gate_at(1)
    gate.shut(-1)
    with held(gate, gate.leave):
        gate.open(1)
    assert gate.updating and gate.blocked_seconds > 0


def test_an_open_gate_holds_nobody() -> None:
    gate = gate_at(1)
    gate.enter_update()
    gate.leave()
    gate.reach(boundary(2), shut=False)
    assert gate.blocked_seconds == 0 and not gate.updating and gate.boundary is not None and gate.boundary.number == 2


@pytest.mark.parametrize("before_the_first", [True, False])
def test_who_comes_where_there_is_no_boundary_gets_the_next_and_training_cannot_slip_by(before_the_first: bool) -> None:
    gate = gate_at(None if before_the_first else 1)
    gate.enter_update()
    taker = Taker(gate)
    assert taker.waits() and not gate.is_shut
    gate.leave()
    gate.reach(boundary(2), shut=False)
    assert gate.is_shut, "the next update could begin before the other thread has woken"
    found = taker.result()
    assert found is not None and found.number == 2


def test_who_gives_up_leaves_the_gate_open_at_the_next_boundary() -> None:
    gate = gate_at(1)
    gate.enter_update()
    taker = Taker(gate)
    assert taker.waits()
    gate.end()
    assert taker.result() is None
    gate.reach(boundary(2), shut=False)
    assert not gate.is_shut
    gate.enter_update()
    assert gate.blocked_seconds == 0


def test_a_boundary_of_no_use_is_passed_over_unless_training_waits() -> None:
    gate = gate_at(4)
    taker = Taker(gate, after=4)
    assert taker.waits()
    gate.enter_update()
    gate.reach(boundary(5), shut=False)
    found = taker.result()
    assert found is not None and found.number == 5

    gate.open(5)
    with gate.blocked():
        found = gate.shut(5)
    assert found is not None and found.number == 5


def test_training_shuts_the_gate_at_a_boundary_that_is_to_be_saved() -> None:
    wake = threading.Event()
    gate = Gate(wake)
    gate.reach(boundary(1), shut=False)
    assert not wake.is_set()
    gate.leave()
    gate.reach(boundary(2), shut=True)
    assert wake.is_set() and gate.is_shut
    found = gate.shut(2)
    assert found is not None and found.number == 2, "a gate that is shut is shut for its own boundary"


def test_opening_for_an_earlier_boundary_leaves_a_later_one_shut() -> None:
    gate = gate_at(1)
    gate.shut(-1)
    gate.open(1)
    gate.leave()
    gate.reach(boundary(2), shut=True)
    gate.open(1)  # by who took 1, at the very end of his work
    assert gate.is_shut
    gate.open(2)
    assert not gate.is_shut


def test_who_must_not_leave_training_waiting_opens_it_whatever_it_is_shut_for() -> None:
    gate = gate_at(1)
    gate.reach(boundary(2), shut=True)
    with held(gate, gate.enter_update):
        gate.open(None)
    assert gate.updating


def test_in_the_mode_at_boundaries_training_stands_still_in_its_step_until_it_was_taken() -> None:
    gate = gate_at(1)
    gate.only_when_blocked = True
    taker = Taker(gate)
    assert taker.waits(), "the boundary was taken while training may be anywhere"
    gate.leave()
    with held(gate, lambda: gate.reach(boundary(2), shut=False)) as training:
        found = taker.result()
        assert found is not None and found.number == 2 and training.is_alive()
        gate.open(2)
    gate.leave()
    gate.reach(boundary(3), shut=False)
    assert not gate.is_shut, "nobody has asked"


def test_in_the_mode_at_boundaries_a_parked_training_can_be_taken_at_once() -> None:
    gate = gate_at(1)
    gate.only_when_blocked = True
    with gate.blocked():
        found = gate.shut(-1)
    assert found is not None and found.number == 1


def test_at_its_last_boundary_training_is_waited_for_until_it_is_blocked_and_offers_that_one() -> None:
    gate = gate_at(1)
    gate.only_when_blocked = True
    gate.leave()
    gate.reach(boundary(2), shut=False, last=True)
    offers: list[tuple[int, bool]] = []
    offering = begun(lambda: offers.append(gate.offer(-1)))
    with gate.blocked():
        assert ended(offering)
    assert offers == [(2, True)] and gate.is_shut


def test_training_that_is_held_at_its_last_boundary_is_not_waited_for() -> None:
    gate = gate_at(1)
    gate.only_when_blocked = True
    gate.leave()
    with held(gate, lambda: gate.reach(boundary(2), shut=True, last=True)):
        begun_at = time.monotonic()
        assert gate.offer(-1) == (2, False) and time.monotonic() - begun_at < 1
        gate.open(None)


def test_before_its_last_boundary_it_offers_the_next_at_once() -> None:
    gate = gate_at(1)
    gate.only_when_blocked = True
    assert gate.offer(-1) == (2, False)
    with gate.blocked():
        assert gate.offer(-1) == (1, True)
    gate.only_when_blocked = False
    gate.open(None)
    assert gate.offer(-1) == (1, False)


def test_who_stands_never_comes_to_a_later_boundary_that_was_agreed_on() -> None:
    gate = gate_at(1)
    with gate.blocked():
        taken: list[Boundary | None] = []
        assert ended(begun(lambda: taken.append(gate.take(2, never))))
    assert taken == [None] and not gate.is_shut


def where(found: list[int]) -> Callable[[], None]:
    """An errand that notes in which thread it is run."""
    return lambda: found.append(threading.get_ident())


def test_an_errand_is_run_by_training_while_it_is_held_in_its_step() -> None:
    gate = gate_at(1)
    gate.only_when_blocked = True
    taker = Taker(gate)
    assert taker.waits()
    found: list[int] = []
    with held(gate, lambda: gate.reach(boundary(2), shut=False)) as training:
        assert taker.result() is not None
        gate.run_on_training_thread(where(found))
        gate.run_on_training_thread(where(found))
        assert found == [training.ident, training.ident] and training.is_alive(), "an errand does not let it go"
        gate.open(2)


def test_an_errand_is_run_by_training_that_stands_and_asks_the_gate_meanwhile() -> None:
    gate = gate_at(1)
    ready: list[bool] = []
    found: list[int] = []
    told: list[bool] = []
    training = begun(lambda: told.append(gate.block_until(lambda: bool(ready))))
    assert gate.shut(1) is not None
    asked = threading.Event()

    def ask() -> None:
        gate.notice()
        asked.set()

    def errand() -> None:
        found.append(threading.get_ident())
        begun(ask)
        assert asked.wait(30), "nobody may ask the gate while an errand is run"

    gate.run_on_training_thread(errand)
    assert found == [training.ident] and training.is_alive()
    ready.append(True)
    gate.open(1)
    assert ended(training) and told == [True] and not gate.is_blocked


def test_what_an_errand_raises_is_raised_where_it_was_sent_from() -> None:
    gate = gate_at(1)
    gate.shut(-1)

    def errand() -> None:
        raise OSError("the disk is full")

    with held(gate, gate.enter_update):
        with pytest.raises(OSError, match="the disk is full"):
            gate.run_on_training_thread(errand)
        gate.open(1)
    assert gate.updating, "training did not go on"


def test_an_errand_waits_for_training_to_stand_at_the_shut_gate() -> None:
    gate = gate_at(1)
    gate.shut(-1)
    found: list[int] = []
    sender = begun(lambda: gate.run_on_training_thread(where(found)))
    assert not gate.block_until(never, 0.0) and not found, "its time was up before it began"
    with held(gate, gate.enter_update) as training:
        assert ended(sender) and found == [training.ident]
        gate.open(1)


def test_who_stands_longer_than_it_wants_to_is_told_so() -> None:
    gate = gate_at(1)
    assert not gate.block_until(never, 0.01) and gate.block_until(lambda: True, 0.0) and not gate.is_blocked


def test_a_parked_training_is_in_a_hurry_until_the_last_one_who_waits_goes_on() -> None:
    gate = gate_at(1)
    with gate.blocked():
        with gate.blocked():
            assert gate.is_blocked and gate.training_waits.is_set()
        assert gate.is_blocked
    assert not gate.is_blocked and not gate.training_waits.is_set()


def test_a_parked_training_in_the_middle_of_an_update_has_nothing_to_take() -> None:
    gate = gate_at(1)
    gate.enter_update()
    with gate.blocked():
        taker = Taker(gate)
        assert taker.waits()
        gate.end()
        assert taker.result() is None
    assert not gate.is_shut


def test_the_times_to_the_next_update_are_kept_without_those_in_which_it_was_held() -> None:
    gate = gate_at(1)
    gate.enter_update()
    gate.enter_update()  # a second optimizer of the same update
    assert len(gate.undisturbed_seconds) == 1 and gate.undisturbed_seconds[0] >= 0
    gate.reach(boundary(2), shut=True)
    with held(gate, gate.enter_update):
        gate.open(2)
    assert len(gate.undisturbed_seconds) == 1
    for number in range(3, 203):
        gate.reach(boundary(number), shut=False)
        gate.enter_update()
    assert len(gate.undisturbed_seconds) == 64


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


def test_a_save_that_training_asks_for_keeps_the_gate_shut_until_it_was_taken_too() -> None:
    gate = gate_at(1)
    taken = gate.shut(-1)
    assert taken is not None
    gate.renew(replace(taken, asked=("a request",), revision=1))  # the first snapshot is being taken
    assert gate.open(1) and gate.is_shut, "the first was shut for its boundary until now"
    gate.open(1)  # at the very end of the first
    assert gate.is_shut
    again = gate.shut(-1)
    assert again is not None and (again.number, again.revision, again.asked) == (1, 1, ("a request",))
    with held(gate, gate.enter_update):
        gate.open(1)
    assert gate.updating


def test_in_the_mode_at_boundaries_a_save_that_training_asks_for_is_taken_inside_the_call() -> None:
    gate = gate_at(1)
    gate.only_when_blocked = True
    with held(gate, lambda: gate.renew(boundary(1))) as training:
        assert gate.shut(-1) is gate.boundary and training.is_alive()
        gate.open(1)


def test_who_is_called_for_another_ranks_call_waits_until_training_has_made_its_own() -> None:
    gate, taken = gate_at(2), []
    gate.offer(-1)
    taker = begun(lambda: taken.append(gate.take(2, never, 2)))
    assert not gate.has_made_its_calls(2) and not taken
    gate.renew(replace(boundary(2), asked=("a request",)))
    assert ended(taker) and taken[0] is gate.boundary and taken[0] is not None and taken[0].asked
    assert gate.has_made_its_calls(2) and gate.has_made_its_calls(1) and not gate.has_made_its_calls(3)


def test_training_that_has_come_to_the_gate_makes_no_call_any_more() -> None:
    gate, taken = gate_at(2), []
    gate.offer(-1)
    taker = begun(lambda: taken.append(gate.take(2, never, 2)))
    with held(gate, gate.enter_update):
        assert ended(taker) and taken[0] is gate.boundary and gate.has_made_its_calls(2)
        gate.open(2)
