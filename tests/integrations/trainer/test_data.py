from collections.abc import Mapping
from typing import Any

import pytest
import torch
from accelerate.data_loader import DataLoaderShard, skip_first_batches
from torch.utils.data import Dataset, IterableDataset

from holdfast.integrations.trainer.data import PrefetchTracker
from holdfast.state.rng import state as rng_state

SAMPLES = 12
BATCH = 3


class Drawing(Dataset[torch.Tensor]):
    """Samples that draw from the global generator, as augmentations do."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.cat([torch.tensor([float(index)]), torch.rand(1)])


def loader() -> DataLoaderShard:
    return DataLoaderShard(Drawing(), batch_size=BATCH, shuffle=True)


@pytest.mark.parametrize("trained", range(1, SAMPLES // BATCH))
def test_the_batch_ahead_is_drawn_again_as_it_was_and_what_follows_goes_on(trained: int) -> None:
    torch.manual_seed(7)
    tracker = PrefetchTracker(data := loader())
    batches = iter(data)
    for _ in range(trained):
        next(batches)
    at_boundary, prefetch = rng_state.record(), tracker.record()
    assert prefetch is not None and prefetch.batches == trained + 1
    fetched = prefetch.encode(at_boundary)
    expected = [*batches, torch.rand(1)]

    torch.manual_seed(8)
    resumed = loader()
    tracker = PrefetchTracker(resumed)

    def set_random_state(others: Mapping[str, Any]) -> None:
        rng_state.restore({**at_boundary.encode(), **others})

    def go_on() -> None:
        tracker.cancel()
        rng_state.restore(at_boundary.encode())

    tracker.redraw(fetched, set_random_state, go_on)
    rest = [*skip_first_batches(resumed, trained), torch.rand(1)]
    assert len(rest) == len(expected)
    assert all(torch.equal(batch, other) for batch, other in zip(rest, expected, strict=True))


def test_a_generator_that_stands_as_at_the_boundary_is_left_out() -> None:
    tracker = PrefetchTracker(data := loader())
    next(iter(data))
    prefetch = tracker.record()
    assert prefetch is not None
    encoded = prefetch.encode(rng_state.record())
    assert list(encoded["before"]) == ["cpu"]


def test_a_loader_is_given_back_as_it_was() -> None:
    data = loader()
    own = data.batch_sampler
    tracker = PrefetchTracker(data)
    assert data.batch_sampler is not own and len(data.batch_sampler) == len(own)
    tracker.close()
    assert data.batch_sampler is own


def test_a_loader_that_cannot_skip_says_so_and_is_left_alone() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Any:
            return iter(range(SAMPLES))

    tracker = PrefetchTracker(data := DataLoaderShard(Stream(), batch_size=BATCH))
    assert "Stream" in tracker.why_not
    next(iter(data))
    assert tracker.record() is None
