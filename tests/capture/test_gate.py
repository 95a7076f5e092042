import threading
import time
from dataclasses import replace

import pytest

from helpers.gates import Taker, begun, boundary, ended, gate_at, held, never
from holdfast.capture.boundary import Boundary
from holdfast.capture.gate import Gate


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
    offers: list[tuple[int, bool, bool]] = []
    offering = begun(lambda: offers.append(gate.offer(-1)))
    with gate.blocked():
        assert ended(offering)
    assert offers == [(2, True, False)] and gate.is_shut


def test_training_that_is_held_at_its_last_boundary_is_not_waited_for() -> None:
    gate = gate_at(1)
    gate.only_when_blocked = True
    gate.leave()
    with held(gate, lambda: gate.reach(boundary(2), shut=True, last=True)):
        begun_at = time.monotonic()
        assert gate.offer(-1) == (2, False, False) and time.monotonic() - begun_at < 1
        gate.open(None)


def test_before_its_last_boundary_it_offers_the_next_at_once() -> None:
    gate = gate_at(1)
    gate.only_when_blocked = True
    assert gate.offer(-1) == (2, False, False)
    with gate.blocked():
        assert gate.offer(-1) == (1, True, False)
    gate.only_when_blocked = False
    gate.open(None)
    assert gate.offer(-1) == (1, False, False)


def test_who_stands_never_comes_to_a_later_boundary_that_was_agreed_on() -> None:
    gate = gate_at(1)
    with gate.blocked():
        taken: list[Boundary | None] = []
        assert ended(begun(lambda: taken.append(gate.take(2, never))))
    assert taken == [None] and not gate.is_shut


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


def test_the_end_of_the_batches_is_not_passed_while_ranks_agree() -> None:
    gate = gate_at(1)
    assert gate.offer(-1) == (1, False, False)
    with held(gate, gate.pass_batches):
        assert not gate.is_past
        taken = gate.take(1)
        assert taken is not None and not gate.is_past, "what a stop decides is told before it goes on"
        gate.decided()
    assert gate.is_past and gate.is_shut, "training goes on into the rest of the body while it is read"
    gate.open(1)
    assert gate.offer(-1) == (1, False, True)
    gate.open(None)
    gate.leave()
    gate.reach(boundary(2), shut=False)
    assert gate.offer(-1) == (2, False, False)


def test_the_end_of_the_batches_is_passed_on_the_way_to_a_later_boundary_that_was_agreed_on() -> None:
    gate = gate_at(1)
    gate.offer(-1)
    with held(gate, gate.pass_batches):
        taking = begun(lambda: gate.take(2))
    assert gate.is_past
    gate.leave()
    gate.reach(boundary(2), shut=False)
    assert ended(taking) and gate.is_shut


def test_another_record_of_a_boundary_waits_for_the_snapshot_of_it() -> None:
    gate = gate_at(1)
    gate.shut(-1)

    def renew() -> None:
        with gate.undisturbed() as here:
            assert here is not None
            gate.exchange(replace(here, revision=here.revision + 1))

    with held(gate, renew):
        assert gate.boundary is not None and gate.boundary.revision == 0
        gate.open(1)
    assert gate.boundary is not None and gate.boundary.revision == 1 and not gate.is_shut
