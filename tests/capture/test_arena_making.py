"""The thread that makes the arena beside training, for a device that locks pages, refuses to, or takes its time."""

import errno
import fcntl
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from helpers.paper import Paper
from helpers.waiting import wait_until
from holdfast.capture import arena_making, staging_budget
from holdfast.capture.arena_making import Making
from holdfast.capture.staging import RING_SLABS, Pool
from holdfast.capture.staging_budget import StagingBudget
from holdfast.devices import arena as arena_module
from holdfast.devices.arena import Block
from holdfast.devices.cuda import device_in_use
from holdfast.store.digest import BLOCK_BYTES

SLAB = BLOCK_BYTES  # of a small state
RING = RING_SLABS * SLAB
STATE = 3 * SLAB - 5
ALL = RING + 3 * SLAB
NEVER = threading.Event()
WAITS = threading.Event()
WAITS.set()


@pytest.fixture(autouse=True)
def turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The turns of a host of one's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"holdfast-{os.getuid()}.lock"


@pytest.fixture
def long_rests(monkeypatch: pytest.MonkeyPatch) -> float:
    """Has it rest for longer than a test may take; returns the seconds."""
    monkeypatch.setattr(arena_making, "_PAUSES", 10_000)
    return 10_000 * Slow().seconds / 2


class Slow(Paper):
    """A driver that takes its time."""

    def __init__(self, seconds: float = 0.005) -> None:
        super().__init__()
        self.seconds = seconds

    def register(self, address: int, size: int) -> str:
        time.sleep(self.seconds)  # the driver's, and no synchronisation
        return super().register(address, size)


def no_memory(address: int, size: int) -> None:
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def budget_for(device: Paper, limit: int = 1 << 30) -> StagingBudget:
    return StagingBudget(limit, device, state_bytes=STATE)


def made(budget: StagingBudget) -> Making:
    making = budget.making
    assert making is not None
    return making


def take_all(pool: Pool) -> list[Block]:
    blocks = []
    while (block := pool.try_take()) is not None:
        blocks.append(block)
    return blocks


def test_the_ring_is_made_at_once_and_the_rest_when_the_state_is_known() -> None:
    device = Paper()
    budget = budget_for(device)
    wait_until(lambda: budget.bytes == RING)
    assert not made(budget).is_over, "a state is known when there is one"
    budget.state_known(STATE)
    wait_until(lambda: made(budget).is_over)
    now = made(budget)
    assert (now.bytes, now.wanted_bytes, now.is_locked, now.reason) == (ALL, ALL, True, "") and now.seconds > 0
    blocks = take_all(budget.pool)
    assert sorted((block.address, SLAB) for block in blocks) == sorted(device.registered), "none spans two of them"
    budget.close()


def test_all_of_it_may_be_used_whether_training_waits_or_not() -> None:
    budget = budget_for(Paper())
    budget.state_known(STATE)
    wait_until(lambda: made(budget).is_over)
    assert all(budget.pool.take(threading.Event(), NEVER) for _ in range(ALL // SLAB))
    assert budget.pool.try_take() is None and budget.pool.is_empty
    budget.close()


@pytest.mark.parametrize(
    ("state", "slab"), [(0, 1), (16 * BLOCK_BYTES, 1), (17 * BLOCK_BYTES, 2), (1 << 30, 16), (1 << 40, 16), (None, 16)]
)
def test_a_slab_is_a_few_blocks_and_of_a_small_state_fewer(
    state: int | None, slab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arena_module, "_populate", no_memory)
    budget = StagingBudget(0, Paper(), state_bytes=state)
    assert budget.pool.block_bytes == slab * BLOCK_BYTES
    budget.close()


@pytest.mark.parametrize(
    ("limit", "expected"), [(0, RING), (RING + SLAB, RING + SLAB), (RING + 2 * SLAB - 1, RING + SLAB)]
)
def test_it_is_no_larger_than_its_limit_but_for_the_ring(limit: int, expected: int) -> None:
    budget = budget_for(Paper(), limit)
    budget.state_known(STATE)
    wait_until(lambda: made(budget).is_over)
    assert budget.bytes == expected
    budget.close()


@pytest.mark.parametrize(("ranks", "parts"), [("4", 16), ("1", 4), ("0", 4), ("many", 4), ("", 4)])
def test_unset_the_limit_is_a_quarter_of_what_is_there_for_each_process_of_the_host(
    monkeypatch: pytest.MonkeyPatch, ranks: str, parts: int
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    monkeypatch.setattr(staging_budget, "available_memory", lambda: 1 << 30)
    budget = StagingBudget(None, Paper(), state_bytes=STATE)
    assert (budget.limit, StagingBudget(None).limit) == ((1 << 30) // parts, (1 << 30) // 4)
    budget.close()


def test_after_the_ring_it_rests_twenty_times_as_long_as_the_driver_took(monkeypatch: pytest.MonkeyPatch) -> None:
    device, rests = Slow(), list[float]()
    monkeypatch.setattr(Pool, "rest", lambda pool, seconds, ended: rests.append(seconds))
    budget = budget_for(device)
    budget.state_known(STATE)
    wait_until(lambda: made(budget).is_over)
    assert len(rests) == (ALL - RING) // SLAB and min(rests) >= 20 * device.seconds
    budget.close()


def test_while_a_save_waits_for_memory_it_does_not_rest(long_rests: float) -> None:
    budget = budget_for(Slow())
    wait_until(lambda: budget.bytes == RING)
    blocks = take_all(budget.pool)
    begun = time.monotonic()
    budget.state_known(STATE)
    while len(blocks) < ALL // SLAB:
        block = budget.pool.take(WAITS, NEVER)
        assert block is not None
        blocks.append(block)
    assert time.monotonic() - begun < long_rests, "not one of those that were due"
    budget.close()


def test_it_ends_soon_also_while_it_rests(long_rests: float) -> None:
    budget = budget_for(Slow())
    budget.state_known(STATE)
    wait_until(lambda: budget.bytes > RING)
    begun = time.monotonic()
    budget.close()
    assert time.monotonic() - begun < long_rests
    assert not [thread for thread in threading.enumerate() if thread.name == "holdfast-arena"]


def test_what_one_training_has_left_the_next_one_uses() -> None:
    device = Paper()
    budget = budget_for(device)
    budget.state_known(STATE)
    wait_until(lambda: made(budget).is_over)
    budget.close()
    registered = list(device.registered)
    other = budget_for(Paper())
    assert other.pool is not budget.pool
    other.close()
    again = budget_for(device)
    assert again.pool is budget.pool and made(again).bytes == ALL
    again.state_known(STATE + SLAB)
    wait_until(lambda: made(again).is_over)
    assert device.registered[:-1] == registered and again.bytes == ALL + SLAB
    again.close()


def test_a_driver_that_refuses_after_the_ring_ends_it_there() -> None:
    device = Paper()
    device.refuses_to_register_after = RING_SLABS + 1
    budget = budget_for(device)
    budget.state_known(STATE)
    wait_until(lambda: made(budget).is_over)
    now = made(budget)
    assert now.bytes == budget.pool.arena.bytes == RING + SLAB < now.wanted_bytes
    assert now.is_locked and "the paper takes no" in now.reason
    assert len(take_all(budget.pool)) == RING_SLABS + 1
    budget.close()


@pytest.mark.parametrize("after", [0, RING_SLABS - 1])
def test_a_driver_that_refuses_before_is_done_without(after: int) -> None:
    device = Paper()
    device.refuses_to_register_after = after
    budget = budget_for(device)
    budget.state_known(STATE)
    wait_until(lambda: made(budget).is_over)
    now = made(budget)
    assert now.bytes == ALL and not now.is_locked and "the paper takes no" in now.reason
    assert len(device.registered) == after
    budget.close()


def test_who_needs_memory_where_there_is_none_at_all_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena_module, "_populate", no_memory)
    budget = budget_for(Paper())
    with pytest.raises(OSError, match=r"no staging memory: .*Cannot allocate memory"):
        budget.pool.take(WAITS, NEVER)
    assert made(budget).is_over and made(budget).bytes == 0
    budget.close()


def test_memory_that_ends_in_between_leaves_what_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    wake = threading.Event()
    budget = StagingBudget(1 << 30, Paper(), state_bytes=STATE, wake=wake)
    wait_until(lambda: budget.bytes == RING)

    monkeypatch.setattr(arena_module, "_populate", no_memory)
    budget.state_known(STATE)
    wait_until(lambda: made(budget).is_over)
    assert made(budget).bytes == RING and "Cannot allocate memory" in made(budget).reason
    assert wake.wait(30), "there is something to tell"
    assert budget.pool.take(WAITS, NEVER) is not None
    budget.close()


@contextmanager
def another_process_has_a_turn(turns: Path) -> Iterator[None]:
    (is_held, holds), (ends, end) = os.pipe(), os.pipe()
    if not (pid := os.fork()):
        os.close(end)
        fcntl.flock(os.open(turns, os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)
        os.write(holds, b"1")
        os.read(ends, 1)
        os._exit(0)
    os.read(is_held, 1)
    try:
        yield
    finally:
        os.close(end)
        os.waitpid(pid, 0)
        for fd in (is_held, holds, ends):
            os.close(fd)


def test_the_processes_of_a_host_take_turns(turns: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries, take = list[bool](), arena_making._Turns._try

    def taking(of: arena_making._Turns) -> bool:
        tries.append(take(of))
        return tries[-1]

    monkeypatch.setattr(arena_making._Turns, "_try", taking)
    with another_process_has_a_turn(turns):
        budget = budget_for(Paper())
        budget.state_known(STATE)
        wait_until(lambda: len(tries) > RING_SLABS + 5)
        assert budget.bytes == RING, "the ring alone does not wait"
    wait_until(lambda: made(budget).is_over)
    assert budget.bytes == ALL
    budget.close()


def test_a_turn_ends_also_where_a_child_was_forked_meanwhile(turns: Path) -> None:
    (ends, end), taking = os.pipe(), arena_making._Turns()
    with taking.one(lambda: True):
        if not (pid := os.fork()):
            os.close(end)
            os.read(ends, 1)
            os._exit(0)
    with turns.open("r+") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(end)
    os.waitpid(pid, 0)
    os.close(ends)
    taking.close()


def test_a_save_that_waits_for_memory_waits_for_no_turn(turns: Path) -> None:
    with another_process_has_a_turn(turns):
        budget = budget_for(Paper())
        wait_until(lambda: budget.bytes == RING)
        take_all(budget.pool)
        budget.state_known(STATE)
        assert budget.pool.take(WAITS, NEVER) is not None
        budget.close()


def test_who_never_gives_a_turn_back_is_not_waited_for_again(turns: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena_making, "_TURN_SECONDS", 0.1)
    with another_process_has_a_turn(turns):
        budget = budget_for(Paper())
        budget.state_known(STATE)
        wait_until(lambda: budget.bytes == ALL)
        budget.close()


@pytest.mark.parametrize("place", ["link", "pipe", "directory"])
def test_what_else_has_the_name_of_the_turns_is_left_alone(turns: Path, tmp_path: Path, place: str) -> None:
    if place == "link":
        turns.symlink_to(tmp_path / "missing")
    elif place == "pipe":
        os.mkfifo(turns)
    else:
        turns.mkdir()
    budget = budget_for(Paper())
    budget.state_known(STATE)
    wait_until(lambda: budget.bytes == ALL)
    assert not (tmp_path / "missing").exists()
    budget.close()


def test_only_this_thread_goes_to_the_processors_next_to_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.sched_getaffinity(0)
    where: list[set[int]] = []

    class Placed(Paper):
        def register(self, address: int, size: int) -> str:
            where.append(os.sched_getaffinity(0))
            return super().register(address, size)

    def makes_a_ring() -> None:
        budget = budget_for(Placed())
        wait_until(lambda: budget.bytes == RING)
        budget.close()

    monkeypatch.setattr(arena_making, "processors_next_to", lambda address: frozenset({min(before), 100_000}))
    makes_a_ring()
    assert where[0] == {min(before)} and os.sched_getaffinity(0) == before
    monkeypatch.setattr(arena_making, "processors_next_to", lambda address: frozenset(before))
    os.sched_setaffinity(0, {max(before)})  # as `taskset` does: it goes to none of the others
    try:
        makes_a_ring()
    finally:
        os.sched_setaffinity(0, before)
    assert where[-1] == {max(before)}


@pytest.mark.cuda
def test_the_arena_of_a_card_is_locked() -> None:
    torch.cuda.init()  # type: ignore[no-untyped-call]
    device = device_in_use()
    budget = StagingBudget(1 << 30, device, card=0, state_bytes=64 << 20)
    budget.state_known(64 << 20)
    wait_until(lambda: made(budget).is_over)
    assert made(budget).is_locked and all(block.tensor.is_pinned() for block in take_all(budget.pool))
    budget.close()
