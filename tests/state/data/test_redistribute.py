"""The data of an epoch, gone on with by processes of another number: no sample twice, none lost."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, RandomSampler, Sampler

from helpers.support import fuzzed
from holdfast.errors import CheckpointError
from holdfast.state.data.cursor import DataCursor
from holdfast.state.rng import state as rng_state

SAMPLES = 24
EPOCH = list(range(SAMPLES))

Make = Callable[[int, int], Any]
"""Makes the data of one rank of so many."""


class Backwards(Sampler[int]):
    """A sampler of the user's own."""

    def __iter__(self) -> Iterator[int]:
        yield from reversed(EPOCH)

    def __len__(self) -> int:
        return SAMPLES


class Slices(IterableDataset[int]):
    """A stream of which each rank has its own share, and that nobody can tell the length of."""

    def __init__(self, rank: int, size: int) -> None:
        self.slice = slice(rank, None, size)

    def __iter__(self) -> Iterator[int]:
        yield from EPOCH[self.slice]


class Knowing(Slices):
    """One that knows its position."""

    at = 0

    def __iter__(self) -> Iterator[int]:
        for self.at in range(self.at, SAMPLES):  # noqa: B020
            yield self.at
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"] + 1


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distributed(batch: int = 2, samples: int = SAMPLES, drop_last: bool = False, **options: Any) -> Make:
    def make(rank: int, size: int) -> DataLoader[int]:
        places = list(range(samples))
        sampler: Any = DistributedSampler(places, size, rank, seed=9, drop_last=drop_last)  # type: ignore[arg-type]
        return DataLoader(places, batch_size=batch, sampler=sampler, **options)  # type: ignore[arg-type]

    return make


def alone(batch: int | None = 2, **options: Any) -> Make:
    return lambda *_: DataLoader(EPOCH, batch_size=batch, **options)  # type: ignore[arg-type]


def sampled(batch: int = 2) -> Make:
    def make(*_: int) -> DataLoader[int]:
        return DataLoader(EPOCH, batch_sampler=BatchSampler(RandomSampler(EPOCH, generator=seeded()), batch, False))  # type: ignore[arg-type]

    return make


class Job:
    """The data of all ranks of one start, in this process."""

    def __init__(self, make: Make, size: int, saved: "Job | None" = None) -> None:
        self.data = [DataCursor(make(rank, size)) for rank in range(size)]
        self.notices = [self._resume(data, rank, saved.trees()) for rank, data in enumerate(self.data) if saved]
        self._epochs = [data.rest_of_epoch() for data in self.data]

    def _resume(self, data: DataCursor, rank: int, trees: list[Any]) -> list[str]:
        torch.manual_seed(1000)
        tree, random = trees[rank if rank < len(trees) else 0]
        return data.restore(
            tree,
            after_skip=lambda: rng_state.restore(random),
            saved_by=len(trees),
            processes=len(self.data),
        )

    def take(self, steps: int) -> list[int]:
        """Returns what all ranks see in so many steps of the epoch, in its order."""
        seen: list[int] = []
        for _ in range(steps):
            batches = [next(epoch, None) for epoch in self._epochs]
            assert len({batch is None for batch in batches}) == 1, "the ranks have lost step"
            if batches[0] is None:
                break
            columns = zip(*(torch.as_tensor(batch).reshape(-1).tolist() for batch in batches), strict=True)
            seen += [sample for column in columns for sample in column]
        return seen

    def epoch(self) -> list[int]:
        """Returns what they see in the rest of the epoch."""
        seen = self.take(10 * SAMPLES)
        self._epochs = [data.rest_of_epoch() for data in self.data]
        return seen

    def trees(self) -> list[Any]:
        text = json.dumps([(data.encode(data.record()), rng_state.record().encode()) for data in self.data])
        decoded: list[Any] = json.loads(text)
        return decoded

    @property
    def said(self) -> str:
        (said,) = {data.redistribution for data in self.data}
        return said


def in_order(rank: int, size: int) -> Any:
    return DataLoader(EPOCH, 2, sampler=DistributedSampler(EPOCH, size, rank, shuffle=False))  # type: ignore[arg-type]


def with_own_generator(*_: int) -> Any:
    return DataLoader(EPOCH, 2, shuffle=True, generator=seeded())  # type: ignore[arg-type]


KINDS: dict[str, tuple[Make, int]] = {
    "distributed": (distributed(), 4),
    "distributed, in order": (in_order, 4),
    "distributed, without the rest": (distributed(samples=26, drop_last=True), 4),
    "in order": (alone(), 1),
    "shuffled": (alone(shuffle=True), 1),
    "shuffled, no batches": (alone(batch=None, shuffle=True), 1),
    "own generator": (with_own_generator, 1),
    "sampler's generator": (sampled(), 1),
    "workers": (alone(shuffle=True, num_workers=1), 1),
    "workers kept": (alone(shuffle=True, num_workers=1, persistent_workers=True), 1),
}
ANEW = "the rest of the epoch is shared out anew"


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("name", KINDS)
def test_others_go_on_in_the_order_of_the_epoch(name: str, epoch: int) -> None:
    make, size = KINDS[name]
    torch.manual_seed(1)
    whole = Job(make, size)
    expected = [whole.epoch() for _ in range(epoch + 1)][-1]
    torch.manual_seed(1)
    job = Job(make, size)
    for _ in range(epoch):
        job.epoch()
    taken = job.take(2)
    samples = 26 if "rest" in name else SAMPLES
    others = Job(distributed(batch=3, samples=samples), 2, job)
    assert (others.said, others.notices) == (ANEW, [[], []])
    assert others.data[0].where == f"epoch {epoch}, {len(taken)} of its {samples} samples taken"
    seen = taken + others.epoch()
    assert seen[:SAMPLES] == expected
    assert sorted(seen) == list(range(samples)), "what those batches would have cut off fits into these"
    # And the epoch after it is their own.
    fresh = Job(distributed(batch=3, samples=samples), 2)
    for _ in range(epoch + 1):
        fresh.epoch()
    assert others.epoch() == fresh.epoch()


@fuzzed
@given(
    samples=st.integers(1, 40),
    starts=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=4),
)
def test_any_chain_of_starts_sees_each_sample_of_the_epoch(samples: int, starts: list[tuple[int, int, int]]) -> None:
    seen: list[int] = []
    job = None
    for size, batch, steps in starts:
        job = Job(distributed(batch, samples), size, job)
        if job.data[0].epoch:
            break
        seen += job.take(steps)
    assert job is not None
    size = len(job.data)
    seen += [] if job.data[0].epoch else job.epoch()
    counted = Counter(seen)
    assert sorted(counted) == list(range(samples))
    # What comes twice fills up the last step alone, of whichever start came to the end.
    assert len(seen) - samples < max(size for size, _, _ in starts)


def test_an_epoch_shared_out_anew_is_resumed_in_its_order_as_often_as_one_likes() -> None:
    torch.manual_seed(1)
    expected = Job(alone(shuffle=True), 1).epoch()
    torch.manual_seed(1)
    job = Job(alone(shuffle=True), 1)
    seen = job.take(1)
    for size in (2, 2, 2):
        job = Job(distributed(), size, job)
        assert job.said == (ANEW if len(seen) == 2 else "")
        job = Job(distributed(), size, job)  # saved once more before the first batch
        assert (job.said, job.notices) == ("", [[], []])
        seen += job.take(1)
    assert seen + job.epoch() == expected


@pytest.mark.parametrize("make", [alone(shuffle=True), with_own_generator, sampled()])
def test_another_batch_size_goes_on_in_the_order_and_the_next_epoch_is_as_ever(make: Make) -> None:
    def smaller(rank: int, size: int) -> Any:
        loader = make(rank, size)
        loader.batch_sampler.batch_size = 3
        return loader

    torch.manual_seed(1)
    whole = Job(make, 1)
    expected = [whole.epoch(), whole.epoch()]
    torch.manual_seed(1)
    job = Job(make, 1)
    seen = job.take(3)
    job = Job(smaller, 1, job)
    assert job.said == ANEW
    assert [seen + job.epoch(), job.epoch()] == expected


def test_kept_workers_serve_the_rest_of_the_epoch_and_the_next() -> None:
    torch.manual_seed(1)
    job = Job(distributed(num_workers=1, persistent_workers=True), 2)
    seen = job.take(2)
    others = Job(distributed(num_workers=1, persistent_workers=True), 1, job)
    assert sorted(seen + others.epoch()) == EPOCH
    assert sorted(others.epoch()) == EPOCH


@pytest.mark.parametrize("batch", [2, 3])
def test_an_epoch_at_its_end_is_over_for_the_others_too(batch: int) -> None:
    job = Job(distributed(batch, drop_last=True), 4)
    job.take(SAMPLES // (4 * batch))
    others = Job(alone(), 1, job)
    assert others.said == "no batch was left of the epoch"
    assert others.data[0].epoch == 1
    assert sorted(others.epoch()) == EPOCH


def test_what_is_left_and_makes_no_whole_batch_is_no_epoch() -> None:
    job = Job(distributed(), 4)
    job.take(2)
    others = Job(alone(9, drop_last=True), 1, job)
    assert (others.said, others.data[0].epoch) == ("no batch was left of the epoch", 1)
    assert others.take(1) == EPOCH[:9]


def test_what_fills_up_the_last_step_is_said() -> None:
    job = Job(distributed(), 4)
    seen = job.take(2)
    others = Job(distributed(), 3, job)
    assert others.said == f"{ANEW} (1 of its samples twice, so that all processes have as many)"
    assert Counter(seen + others.epoch()).total() == SAMPLES + 1


def test_data_that_nobody_shares_out_is_the_same_for_every_process() -> None:
    job = Job(alone(), 1)
    job.take(2)
    others = Job(alone(), 2, job)
    assert others.said == "every process goes through the whole rest of the epoch"
    assert others.take(1) == [4, 4, 5, 5]


UNKNOWN = "the order of the data cannot be carried over"


@pytest.mark.parametrize(
    ("make", "others", "said", "first"),
    [
        (
            lambda rank, size: DataLoader(EPOCH, 2, sampler=Backwards()),  # type: ignore[arg-type]
            distributed(),
            f"{UNKNOWN}: every process goes on after 1 batches of its own",
            None,
        ),
        (
            lambda rank, size: DataLoader(Slices(rank, size), 2),
            lambda rank, size: DataLoader(Slices(rank, size), 2),
            f"{UNKNOWN}: every process goes on after 1 batches of its own, which are loaded and dropped",
            [4, 5, 6, 7],
        ),
        (
            lambda rank, size: DataLoader(Knowing(rank, size), 2),
            lambda rank, size: DataLoader(Knowing(rank, size), 2),
            f"{UNKNOWN}: the data goes on from the state that it had in one process",
            [4, 4, 5, 5],
        ),
    ],
    ids=["own sampler", "stream", "stream with a position"],
)
def test_where_the_order_is_unknown_others_go_about_as_far(make: Make, others: Make, said: str, first: Any) -> None:
    job = Job(make, 1)
    job.take(2)
    new = Job(others, 2, job)
    assert (new.said, new.notices) == (said, [[], []])
    assert len(taken := new.take(1)) == 4
    assert first in (None, taken)


def test_a_stream_that_ends_before_begins_the_next_epoch() -> None:
    job = Job(lambda rank, size: DataLoader(Slices(0, 1), 2), 4)
    job.take(8)
    others = Job(lambda rank, size: DataLoader(Slices(0, 1), 2), 1, job)
    assert others.epoch() == []
    assert others.epoch() == EPOCH


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "x"},
        {"samples": -1},
        {"samples": True},
        {"total": SAMPLES + 1},
        {"passed": SAMPLES + 1},
        {"processes": 0},
        {"batch": 0},
        {"seed": 1 << 63},
        {"generator": 1},
        {"generator": "no such"},
        {"generator": "numpy"},
    ],
    ids=str,
)
def test_what_is_no_order_is_refused(change: dict[str, Any]) -> None:
    job = Job(with_own_generator, 1)
    job.take(1)
    tree, _ = job.trees()[0]
    tree["begin"]["generators"]["numpy"] = "00" * 16  # a state, but none of a CPU's generator
    tree["order"] |= change
    with pytest.raises(CheckpointError, match="order of the data"):
        DataCursor(with_own_generator()).restore(tree, after_skip=lambda: None)


def test_what_was_begun_with_another_seed_ends_in_its_order() -> None:
    def seeded_by(seed: int) -> Make:
        def make(rank: int, size: int) -> DataLoader[int]:
            sampler: Any = DistributedSampler(EPOCH, size, rank, seed=seed)  # type: ignore[arg-type]
            return DataLoader(EPOCH, batch_size=2, sampler=sampler)  # type: ignore[arg-type]

        return make

    whole = Job(seeded_by(9), 2).epoch()
    job = Job(seeded_by(9), 2)
    seen = job.take(3)
    assert seen + Job(seeded_by(4), 2, job).epoch() == whole


@pytest.mark.parametrize("told", [7, 100])
def test_a_script_that_calls_set_epoch_itself_keeps_its_order(told: int) -> None:
    def loader() -> Any:
        return distributed()(0, 1)

    def order_of(epoch: int) -> list[int]:
        sampler: Any = DistributedSampler(EPOCH, 1, 0, seed=9)  # type: ignore[arg-type]
        sampler.set_epoch(epoch)
        return list(sampler)

    data = loader()
    cursor = DataCursor(data)
    for epoch in range(2):
        data.sampler.set_epoch(told + epoch)
        seen = [int(sample) for batch in cursor.rest_of_epoch() for sample in batch]
        assert seen == order_of(told + epoch)
    data.sampler.set_epoch(told + 2)
    epoch_2 = cursor.rest_of_epoch()
    seen = [int(sample) for _ in range(3) for sample in next(epoch_2)]
    position = cursor.record()
    assert position.requires
    tree = json.loads(json.dumps(cursor.encode(position)))
    for size in (2, 4):  # in batches of the same size, and of another
        again = DataCursor(distributed(size)(0, 1))
        again.restore(tree, after_skip=lambda: None)
        assert seen + [int(sample) for batch in again.rest_of_epoch() for sample in batch] == order_of(told + 2)


@pytest.mark.parametrize("is_through", [True, False])
def test_set_epoch_holds_for_the_epoch_after_a_resume_at_the_end_of_one(is_through: bool) -> None:
    def epoch_of(cursor: DataCursor) -> list[int]:
        return [int(sample) for batch in cursor.rest_of_epoch() for sample in batch]

    data: Any = distributed()(0, 1)
    cursor = DataCursor(data)
    data.sampler.set_epoch(100)
    batches = cursor.rest_of_epoch()
    for _ in range(SAMPLES // 2):
        next(batches)
    if is_through:  # the loop has heard that there is no more
        assert next(batches, None) is None
    tree = json.loads(json.dumps(cursor.encode(cursor.record())))
    again: Any = distributed()(0, 1)
    resumed = DataCursor(again)
    resumed.restore(tree, after_skip=lambda: None)
    for script in (data, again):
        script.sampler.set_epoch(101)
    assert is_through or not epoch_of(cursor) + epoch_of(resumed)
    assert epoch_of(resumed) == [*data.sampler]


def test_a_script_that_tells_what_holdfast_would_tell_leaves_it_to_holdfast() -> None:
    data: Any = distributed()(0, 1)
    cursor = DataCursor(data)
    for epoch in range(3):
        data.sampler.set_epoch(epoch)
        assert len(list(cursor.rest_of_epoch())) == SAMPLES // 2
        next(cursor.rest_of_epoch(), None)
        assert not cursor.record().requires
        cursor = DataCursor(data := distributed()(0, 1))
        cursor.epoch = epoch + 1


@pytest.mark.parametrize(
    ("then", "now", "line"),
    [
        (
            alone(sampler=Backwards()),
            alone(4, sampler=Backwards()),
            "batch_size is 4 and was 2, and the order of a Backwards",
        ),
        (alone(2, shuffle=True), alone(4, shuffle=True), ""),
        (distributed(), distributed(4), ""),
        (alone(sampler=Backwards()), alone(sampler=Backwards()), ""),
    ],
)
def test_an_order_that_cannot_be_made_again_is_known_before_anything_is_changed(
    then: Make, now: Make, line: str
) -> None:
    job = Job(then, 1)
    job.take(2)
    said = DataCursor(now(0, 1)).other_order(job.trees()[0][0], 1, 1)
    assert said.startswith(f"data: {line}") if line else said == ""
