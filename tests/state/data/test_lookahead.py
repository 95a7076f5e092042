"""Loops that take batches before their steps use them."""

from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from holdfast.state.data.cursor import DataCursor

SAMPLES = 9
Loop = Callable[[Iterator[Any]], Iterator[list[int]]]
"""Goes through batches, and yields what a step used when it is at its boundary."""


class Run:
    """A loop over a loader, its boundaries, and what was said at them."""

    def __init__(self, loop: Loop, steps: int, *, accumulate: int | None = None, tree: Any = None) -> None:
        torch.manual_seed(1)
        self.cursor = DataCursor(DataLoader(list(range(SAMPLES)), shuffle=True))  # type: ignore[arg-type]
        if tree is not None:
            self.cursor.restore(tree, after_skip=lambda: None)
        self.cursor.begin_loop(1 if accumulate else None)
        self.used: list[list[int]] = []
        self.lines: list[tuple[int, str]] = []
        self.trees: list[Any] = []
        for step, used in enumerate(islice(loop(self.taken(accumulate)), steps), 1):
            self.used.append(used)
            self.lines += [(step, line) for line in self.cursor.reach()]
            self.trees.append(self.cursor.encode(self.cursor.record()))

    def taken(self, accumulate: int | None) -> Iterator[Any]:
        while self.cursor.epoch < 3:
            epoch = self.cursor.rest_of_epoch()
            while batches := list(islice(epoch, accumulate or 1)):
                self.cursor.take()
                yield [int(batch) for batch in batches]
        self.cursor.drain()


def one_by_one(batches: Iterator[list[int]]) -> Iterator[list[int]]:
    yield from batches


def in_twos(batches: Iterator[list[int]]) -> Iterator[list[int]]:
    while two := list(islice(batches, 2)):
        yield [sample for batch in two for sample in batch]


def accumulating(size: int, begun: int = 0) -> Loop:
    """A step for so many batches; at the end of an epoch for those that are left."""

    def loop(batches: Iterator[list[int]]) -> Iterator[list[int]]:
        left = SAMPLES - begun
        while True:
            yield [sample for batch in islice(batches, min(size, left)) for sample in batch]
            left = left - size if left > size else SAMPLES

    return loop


def ahead(count: int, per_step: int = 1) -> Loop:
    def loop(batches: Iterator[list[int]]) -> Iterator[list[int]]:
        queue = list(islice(batches, count))
        while queue:
            queue += islice(batches, per_step)
            yield [sample for batch in queue[:per_step] for sample in batch]
            del queue[:per_step]

    return loop


def as_lists(batches: Iterator[list[int]]) -> Iterator[list[int]]:
    looked_at = next(batches, None)
    while looked_at is not None:
        used, looked_at = looked_at, next(batches, None)
        yield used


@pytest.mark.parametrize(("loop", "accumulate"), [(one_by_one, None), (in_twos, None), (one_by_one, 3)])
def test_a_loop_that_uses_what_it_takes_hears_nothing(loop: Loop, accumulate: int | None) -> None:
    run = Run(loop, 100, accumulate=accumulate)
    assert run.lines == []
    assert sum(map(len, run.used)) == 3 * SAMPLES


@pytest.mark.parametrize(
    ("loop", "accumulate", "unused", "told_at"),
    [
        pytest.param(ahead(1), None, 1, 2, id="one ahead"),
        pytest.param(ahead(3), None, 3, 2, id="three ahead"),
        pytest.param(ahead(2, 2), None, 2, 2, id="two of two ahead"),
        pytest.param(as_lists, 2, 1, 1, id="a list ahead"),
    ],
)
def test_what_is_ahead_is_not_saved_as_used(loop: Loop, accumulate: int | None, unused: int, told_at: int) -> None:
    run = Run(loop, 100, accumulate=accumulate)
    assert [step for step, _ in run.lines] == [told_at]
    assert f"has taken {unused} more from batches() than its steps used" in run.lines[0][1]
    for step, tree in list(enumerate(run.trees, 1))[1:]:
        rest = Run(loop, 100, accumulate=accumulate, tree=tree).used
        if tree["consumed"]:  # what is ahead has begun an epoch otherwise, and another order is drawn for it
            assert rest == run.used[step:], step
        assert sorted(chain(*rest)) == sorted(chain(*run.used[step:])), step
    assert sum(map(len, run.used)) == 3 * SAMPLES


@pytest.mark.parametrize("size", range(5, 9))
def test_an_accumulation_that_the_end_of_an_epoch_cuts_short_is_not_taken_for_a_look_ahead(size: int) -> None:
    run = Run(accumulating(size), 6)
    assert run.lines == []
    for step, tree in enumerate(run.trees, 1):
        rest = Run(accumulating(size, tree["consumed"] % SAMPLES), 6 - step, tree=tree)
        assert rest.used == run.used[step:]


def test_a_loop_whose_steps_turn_out_to_be_uneven_is_told_that_what_it_took_counts() -> None:
    def uneven(batches: Iterator[list[int]]) -> Iterator[list[int]]:
        for size in (2, 1, 1, 3, 1, 1):
            yield [sample for batch in islice(batches, size) for sample in batch]

    run = Run(uneven, 6)
    assert [step for step, _ in run.lines] == [2, 4]
    assert "different numbers of batches after all" in run.lines[1][1]
    assert [tree["consumed"] for tree in run.trees] == [2, 2, 3, 7, 8, 9]
