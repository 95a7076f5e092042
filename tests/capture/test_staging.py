import mmap
import threading

import pytest

from helpers.waiting import wait_until
from holdfast.capture.staging import RING_BLOCKS, Pool
from holdfast.capture.staging_budget import StagingBudget
from holdfast.devices.arena import Arena, Block
from holdfast.store.digest import BLOCK_BYTES

RING = RING_BLOCKS * BLOCK_BYTES


NEVER = threading.Event()


def training_waits(on: bool) -> threading.Event:
    event = threading.Event()
    if on:
        event.set()
    return event


class AfterOneLook(threading.Event):
    """Is set from the second look on: for a look at the pool that waits for nothing."""

    def is_set(self) -> bool:
        was_set = super().is_set()
        self.set()
        return was_set


def all_free(pool: Pool, *, hurried: bool) -> list[Block]:
    """Takes what can be taken."""
    blocks = []
    while (block := pool.take(training_waits(hurried), AfterOneLook())) is not None:
        blocks.append(block)
    return blocks


def test_a_pool_begins_as_a_small_ring_of_whole_pages() -> None:
    pool = Pool(Arena(RING + 8 * BLOCK_BYTES))
    assert pool.bytes == RING
    blocks = all_free(pool, hurried=False)
    assert len({block.address for block in blocks}) == RING_BLOCKS
    for block in blocks:
        assert len(block.view) == block.tensor.nbytes == BLOCK_BYTES and block.address % mmap.PAGESIZE == 0
        block.view[5] = 7
        assert block.tensor[5] == 7 and block.tensor.data_ptr() == block.address


def test_the_block_that_was_given_back_last_is_the_next_to_be_taken() -> None:
    pool = Pool(Arena(RING + 8 * BLOCK_BYTES))
    blocks = all_free(pool, hurried=False)
    pool.give(blocks[2])
    pool.give(blocks[0])
    assert pool.take(training_waits(False), NEVER) is blocks[0]  # its bytes are still in the processor's cache


def test_who_finds_none_waits_until_one_comes_back() -> None:
    pool = Pool(Arena(RING + 8 * BLOCK_BYTES))
    blocks, taken, looks = all_free(pool, hurried=False), [], threading.Event()

    class Stopped(threading.Event):
        def is_set(self) -> bool:
            looks.set()
            return False

    thread = threading.Thread(target=lambda: taken.append(pool.take(training_waits(False), Stopped())), daemon=True)
    thread.start()
    assert looks.wait(30) and not taken
    pool.give(blocks[0])
    thread.join(30)
    assert taken == [blocks[0]]


def test_who_waits_goes_on_when_the_save_is_given_up() -> None:
    pool = Pool(Arena(RING + 8 * BLOCK_BYTES))
    all_free(pool, hurried=True)
    taken, given_up = [], threading.Event()
    thread = threading.Thread(target=lambda: taken.append(pool.take(training_waits(False), given_up)), daemon=True)
    thread.start()
    given_up.set()
    thread.join(30)
    assert taken == [None]


def test_the_reserve_is_for_those_who_hurry() -> None:
    pool = Pool(Arena(RING + 8 * BLOCK_BYTES))
    pool.grow(RING + 3 * BLOCK_BYTES)
    ring = all_free(pool, hurried=False)
    assert len(ring) == RING_BLOCKS
    assert len(all_free(pool, hurried=True)) == 3
    pool.give(ring[0])
    assert all_free(pool, hurried=False) == [], "what comes back is the reserve's first"


def test_who_waits_for_the_ring_may_touch_the_reserve_once_training_waits() -> None:
    pool = Pool(Arena(RING + 8 * BLOCK_BYTES))
    pool.grow(RING + BLOCK_BYTES)
    all_free(pool, hurried=False)
    event, taken = training_waits(False), []
    thread = threading.Thread(target=lambda: taken.append(pool.take(event, NEVER)), daemon=True)
    thread.start()
    event.set()
    wait_until(lambda: taken)
    assert taken[0] is not None


def test_it_grows_to_what_is_wanted_and_never_shrinks() -> None:
    pool = Pool(Arena(RING + 8 * BLOCK_BYTES))
    for wanted, more in ((0, 0), (RING, 0), (RING + 1, 1), (RING + 3 * BLOCK_BYTES, 3), (BLOCK_BYTES, 3)):
        pool.grow(wanted)
        assert pool.bytes == RING + more * BLOCK_BYTES
    assert len({block.address for block in all_free(pool, hurried=True)}) == RING_BLOCKS + 3


def test_the_reserve_covers_what_the_disk_cannot_take_before_the_next_update() -> None:
    reserve = StagingBudget(limit=12 * BLOCK_BYTES)
    assert reserve.pool.bytes == RING
    size = 8 * BLOCK_BYTES
    reserve.grow(size, 8.0, [])
    reserve.grow(size, 0.0, [1.0])
    assert reserve.pool.bytes == RING, "nothing is known yet"
    reserve.grow(size, 8.0, [9.0])
    assert reserve.pool.bytes == RING, "the disk takes all of it in time"
    reserve.grow(size, 8.0, [6.0])
    assert reserve.pool.bytes == RING + 2 * BLOCK_BYTES


def test_the_shorter_steps_decide_and_not_the_shortest() -> None:
    reserve = StagingBudget(limit=100 * BLOCK_BYTES)
    reserve.grow(8 * BLOCK_BYTES, 8.0, [0.0, *[6.0] * 10, *[9.0] * 29])
    assert reserve.pool.bytes == RING + 2 * BLOCK_BYTES


@pytest.mark.parametrize("limit", [0, RING, RING + 2 * BLOCK_BYTES, RING + 3 * BLOCK_BYTES - 1])
def test_it_grows_no_further_than_its_limit(limit: int) -> None:
    reserve = StagingBudget(limit)
    reserve.grow(100 * BLOCK_BYTES, 1.0, [0.0])
    assert reserve.pool.bytes == max(limit // BLOCK_BYTES * BLOCK_BYTES, RING)


def test_without_a_limit_it_is_a_part_of_what_is_free() -> None:
    assert 0 < StagingBudget(None).limit < 1 << 50
