import json
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.support import fuzzed
from holdfast.ranks.agreement import Decision, Get, Offer, Put, Steps, decide
from holdfast.ranks.keys import offer_key
from ranks.simulated_rank import FOR_EVER, OPERATION_SECONDS, REACHING_SECONDS, SECONDS, Habits
from ranks.simulation import Fault, Simulation

explored = settings(fuzzed, derandomize=True, max_examples=60)

PACES = st.dictionaries(st.integers(0, 9), st.floats(0.7, 1.5), max_size=4)
HABITS = st.builds(Habits, ahead=st.sampled_from([1, 2, 8]), boundary_mode=st.booleans())


def faults_of(*kinds: str) -> st.SearchStrategy[list[Fault]]:
    fault = st.builds(Fault, st.sampled_from(kinds), st.integers(0, 9), st.floats(0, 12), st.floats(0.1, 20))
    return st.lists(fault, max_size=3)


def simulated(size: int, seed: int, *, faults: Sequence[Fault] = (), rounds: int = 4, **more: object) -> Simulation:
    """A run of it, with its agreements checked."""
    faults = [Fault(fault.kind, fault.rank % size, fault.at, fault.seconds) for fault in faults]
    simulation = Simulation(size, seed, rounds, faults=faults, **more)  # type: ignore[arg-type]
    waits = 2 * REACHING_SECONDS + longest_wait(simulation, 1.5)
    simulation.run(simulation.calm_at + (rounds + 1) * waits)
    for number in range(rounds):
        check(simulation, number)
    return simulation


def longest_wait(simulation: Simulation, pace: float) -> float:
    """The longest time that a gate may be shut without a decision: the others' time, and a few operations."""
    return (1.5 * SECONDS + 3 * OPERATION_SECONDS) * pace + sum(
        f.seconds for f in simulation.faults if f.kind == "stop"
    )


def check(simulation: Simulation, number: int) -> None:
    read = set()
    somebody_died = any(rank.dead for rank in simulation.ranks)
    for rank in simulation.ranks:
        seen = rank.rounds.get(number)
        if seen is None or rank.dead:
            continue
        assert seen.decided_at - seen.offered_at <= longest_wait(simulation, 1.5)
        assert seen.opened_at < FOR_EVER
        if seen.decision is None:
            continue
        read.add(seen.decision)
        if seen.taken is None:
            assert seen.decision.boundary is None or rank.ended or somebody_died
        else:
            assert seen.taken == seen.decision.boundary, f"rank {rank.rank} took another boundary"
    assert len(read) <= 1, f"ranks read different decisions: {read}"


def taken(simulation: Simulation, number: int) -> set[int | None]:
    return {rank.rounds[number].taken for rank in simulation.ranks}


@explored
@given(st.integers(2, 10), st.integers(), HABITS, PACES)
def test_undisturbed_ranks_always_agree_and_take_the_same_boundary(
    size: int, seed: int, habits: Habits, paces: dict[int, float]
) -> None:
    simulation = simulated(size, seed, habits=habits, paces=paces)
    for number in range(simulation.rounds):
        (boundary,) = taken(simulation, number)
        assert boundary is not None


@explored
@given(st.integers(2, 10), st.integers(), HABITS, PACES, faults_of("stop", "cut"))
def test_fault_39_40_stopped_and_cut_off_ranks_do_no_harm_and_are_back_when_it_is_over(
    size: int, seed: int, habits: Habits, paces: dict[int, float], faults: list[Fault]
) -> None:
    """A simulated store and 2 to 10 ranks on a simulated clock; random ranks are stopped or cut off at random times."""
    simulation = simulated(size, seed, habits=habits, paces=paces, faults=faults)
    (boundary,) = taken(simulation, simulation.rounds - 1)
    assert boundary is not None, "the last call comes when all is calm again"


@explored
@given(st.integers(2, 10), st.integers(), HABITS, faults_of("die", "die", "stop", "cut"))
def test_fault_37_38_ranks_that_die_do_no_harm(size: int, seed: int, habits: Habits, faults: list[Fault]) -> None:
    """The same simulation; random ranks die at random times, rank 0 among them."""
    simulated(size, seed, habits=habits, faults=faults)


@explored
@given(st.integers(2, 10), st.integers(), HABITS, st.dictionaries(st.integers(0, 9), st.integers(1, 20), min_size=1))
def test_fault_41_a_rank_whose_data_has_ended_is_taken_where_it_stands_or_ends_the_agreement(
    size: int, seed: int, habits: Habits, ends: dict[int, int]
) -> None:
    """The same simulation; the data of random ranks ends at random boundaries."""
    simulation = simulated(size, seed, habits=habits, ends=ends)
    for number in range(simulation.rounds):
        for rank in simulation.ranks:
            decision = rank.rounds[number].decision
            assert decision is not None
            assert decision.boundary is not None or "ended unevenly" in decision.why


def test_ranks_that_ended_together_can_still_be_saved() -> None:
    simulation = simulated(4, 1, ends=dict.fromkeys(range(4), 1))
    assert [taken(simulation, number) for number in range(4)] == [{1}] * 4


@pytest.mark.parametrize("fault", [Fault("cut", 3, 0, 1000), Fault("die", 3, 0)], ids=lambda fault: fault.kind)
def test_without_one_rank_the_others_open_their_gates_are_told_who_it_was_and_train_on(fault: Fault) -> None:
    # A rank that is dead keeps the others from their collectives, whether somebody saves or not.
    habits = Habits(ahead=1 if fault.kind == "cut" else None)
    simulation = Simulation(8, 5, 2, faults=[fault], habits=habits)
    others = [rank for rank in simulation.ranks if rank.rank != 3]
    simulation.start()
    simulation.world.run(lambda: all(0 in rank.rounds for rank in others), 60)
    simulation.world.run(lambda: all(rank.rounds[0].opened_at < FOR_EVER for rank in others), 60)
    for rank in others:
        assert rank.rounds[0].decision == Decision(None, "rank 3 gave no answer within 5 s")
        assert rank.rounds[0].opened_at - rank.rounds[0].offered_at <= SECONDS + 1
    here = [rank.left for rank in others]
    simulation.world.run(lambda: all(rank.left > left + 3 for rank, left in zip(others, here, strict=True)), 60)


def test_fault_39_40_hundreds_of_ranks_agree_with_stopped_and_cut_off_ones_among_them() -> None:
    """The same simulation with 300 ranks, of which eight are stopped or cut off."""
    chance = random.Random(3)
    faults = [
        Fault(kind, chance.randrange(300), chance.uniform(0, 6), chance.uniform(0, 20)) for kind in ("stop", "cut") * 4
    ]
    simulation = simulated(300, 3, faults=faults, rounds=3)
    (boundary,) = taken(simulation, 2)
    assert boundary is not None


def test_a_gate_that_opens_before_the_decision_is_noticed() -> None:
    with pytest.raises(AssertionError, match=r"has left boundary|took another boundary"):
        for seed in range(20):
            simulated(6, seed, opens_early=True)


def test_a_rank_that_gives_up_without_claiming_is_noticed() -> None:
    def gives_up(number: int, rank: int, own: Offer, seconds: float) -> Steps:
        yield Put(offer_key(number, rank), own.encode())
        texts = yield Get((f"decision/{number}",), 0.1)
        return Decision(None, "alone") if texts is None else Decision(**json.loads(texts[0]))

    with pytest.raises(AssertionError, match="different decisions"):
        for seed in range(20):
            simulated(6, seed, join=gives_up)


@pytest.mark.parametrize(
    ("offers", "boundary"),
    [
        ([Offer(4)], 4),
        ([Offer(4), Offer(4)], 4),
        ([Offer(4), Offer(5), Offer(4)], 5),
        ([Offer(4), Offer(5, last=True)], 5),
        ([Offer(5, last=True), Offer(5, last=True)], 5),
        ([Offer(4, last=True), Offer(5)], None),
        ([Offer(4), Offer(5, last=True), Offer(6)], None),
    ],
)
def test_the_earliest_boundary_that_every_rank_can_give_is_decided(offers: list[Offer], boundary: int | None) -> None:
    assert decide(offers).boundary == boundary


def test_the_ranks_that_ended_too_early_are_named() -> None:
    offers = [Offer(7), Offer(6, last=True), Offer(7, last=True), Offer(5, last=True)]
    assert "rank 1, 3 stands" in decide(offers).why


def test_a_rank_past_the_end_of_the_batches_has_all_run_the_body_to_its_end() -> None:
    """One that was past an earlier end counts no more: the boundary that is saved is another."""
    assert not decide([Offer(4), Offer(4)]).past
    assert decide([Offer(4), Offer(4, past=True)]).past
    assert not decide([Offer(5), Offer(4, past=True)]).past
