"""Loaders as accelerate prepares them, in a plain loop. The ranks of two are made in one process."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, IterableDataset

from helpers.samples import Augmented, Plain
from holdfast.state.data.cursor import DataCursor
from holdfast.state.rng import state as rng_state

SAMPLES = 14
BATCH = 3

Make = Callable[[], Any]


class Noisy(Augmented):
    """Samples with noise from a generator of their own."""

    def __init__(self) -> None:
        super().__init__(SAMPLES)
        self.generator = random.Random(3)

    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index) + self.generator.random()


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[torch.Tensor]:
        for index in range(SAMPLES):
            yield torch.tensor([index, random.random()], dtype=torch.float64)


def prepared(dataset: Any, rank: int = 0, ranks: int = 1, *, batch: int = BATCH, **options: Any) -> Any:
    """Prepares a loader: some options are torch's, the others accelerate's."""
    names = ("shuffle", "drop_last", "num_workers", "persistent_workers", "generator")
    own = {name: options.pop(name) for name in names if name in options}
    loader = DataLoader(dataset, batch_size=batch, **own)
    options = {"put_on_device": bool(options.get("dispatch_batches")), "device": torch.device("cpu"), **options}
    return prepare_data_loader(loader, num_processes=ranks, process_index=rank, **options)


EXACT: dict[str, Make] = {
    "in order": lambda: prepared(Augmented(SAMPLES)),
    "shuffled": lambda: prepared(Augmented(SAMPLES), shuffle=True),
    "seedable": lambda: prepared(Augmented(SAMPLES), shuffle=True, use_seedable_sampler=True, data_seed=3),
    "dropping the last": lambda: prepared(Augmented(SAMPLES), shuffle=True, drop_last=True),
    "first of two": lambda: prepared(Augmented(SAMPLES), 0, 2, shuffle=True),
    "second of two": lambda: prepared(Augmented(SAMPLES), 1, 2, shuffle=True),
    "of two, seedable": lambda: prepared(
        Augmented(SAMPLES), 1, 2, shuffle=True, use_seedable_sampler=True, data_seed=3
    ),
    "of two, uneven": lambda: prepared(Augmented(SAMPLES), 0, 2, shuffle=True, even_batches=False),
    "of two, split": lambda: prepared(Augmented(SAMPLES), 1, 2, batch=4, shuffle=True, split_batches=True),
    "own generator": lambda: prepared(Noisy(), 1, 2, shuffle=True),
    "own generator, dispatched": lambda: prepared(Noisy(), shuffle=True, dispatch_batches=True),
    "workers": lambda: prepared(Plain(SAMPLES), 1, 2, shuffle=True, num_workers=2),
    "workers kept": lambda: prepared(Plain(SAMPLES), shuffle=True, num_workers=2, persistent_workers=True),
    "stream": lambda: prepared(Stream()),
    "stream, first of two": lambda: prepared(Stream(), 0, 2, dispatch_batches=False),
    "dispatched": lambda: prepared(Augmented(SAMPLES), shuffle=True, dispatch_batches=True),
    "dispatched stream": lambda: prepared(Stream(), dispatch_batches=True),
}


def train(cursor: DataCursor, steps: int) -> list[Any]:
    def batches() -> Iterator[Any]:
        while True:
            yield from cursor.rest_of_epoch()

    seen = []
    for batch in islice(batches(), steps):
        dropout = random.random() + np.random.standard_normal() + torch.rand(()).item()
        seen.append((cursor.epoch, cursor.consumed, batch.tolist(), dropout))
    return seen


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def resumed(make: Make, tree: Any, random_state: Any, **options: Any) -> DataCursor:
    seed_all(9)
    cursor = DataCursor(make())
    tree = json.loads(json.dumps(tree, allow_nan=False))
    cursor.restore(tree, after_skip=lambda: rng_state.restore(random_state), **options)
    return cursor


@pytest.mark.parametrize("cut", [1, 3, 5, 8])
@pytest.mark.parametrize("name", EXACT)
def test_it_goes_on_as_if_nothing_had_happened(name: str, cut: int) -> None:
    seed_all(1)
    expected = train(DataCursor(EXACT[name]()), 12)
    seed_all(1)
    cursor = DataCursor(EXACT[name]())
    seen = train(cursor, cut)
    tree, random_state = cursor.encode(cursor.record()), rng_state.record().encode()
    train(cursor, 1)
    assert seen + train(resumed(EXACT[name], tree, random_state), 12 - cut) == expected


def test_skipped_samples_are_not_loaded() -> None:
    cursor = DataCursor(prepared(Plain(SAMPLES)))
    train(cursor, 3)
    tree, random_state = cursor.encode(cursor.record()), rng_state.record().encode()
    dataset = Plain(SAMPLES)
    train(resumed(lambda: prepared(dataset), tree, random_state), 1)
    assert dataset.loaded == [9, 10, 11, 12, 13]  # one batch, and the one ahead of it


@pytest.mark.parametrize("seedable", [False, True])
@pytest.mark.parametrize(
    ("then", "now", "twice"),
    [
        ((1, 3), (1, 5), 0),
        ((1, 3), (2, 2), 0),
        ((2, 2), (1, 3), 0),
        ((2, 2), (2, 3), 0),
        ((2, 1), (3, 3), 8),
    ],
)
def test_other_batches_and_other_ranks_go_on_in_the_order(
    then: tuple[int, int], now: tuple[int, int], twice: int, seedable: bool
) -> None:
    def cursors(ranks: int, batch: int) -> list[DataCursor]:
        made = []
        for rank in range(ranks):
            options = {"use_seedable_sampler": True, "data_seed": 3} if seedable else {"generator": torch.Generator()}
            made.append(DataCursor(prepared(Plain(SAMPLES), rank, ranks, batch=batch, shuffle=True, **options)))
        return made

    seed_all(1)
    seen: list[int] = []
    trees = []
    for cursor in cursors(*then):
        seen += [sample for _, _, batch, _ in train(cursor, 2) for sample in batch]
        trees.append((cursor.encode(cursor.record()), rng_state.record().encode()))
    taken = then[0] * then[1] * 2
    assert len(set(seen)) == taken
    for rank, cursor in enumerate(cursors(*now)):
        tree, random_state = trees[rank if rank < len(trees) else 0]
        go_on = partial(rng_state.restore, random_state)
        cursor.restore(tree, after_skip=go_on, saved_by=then[0], processes=now[0])
        assert ("twice" in cursor.redistribution) == bool(twice)
        steps = -(-(SAMPLES - taken) // (now[0] * now[1]))
        seen += [sample for epoch, _, batch, _ in train(cursor, steps) for sample in batch if epoch == 0]
    counts = Counter(seen)
    assert set(counts) == set(range(SAMPLES))
    assert counts.total() - SAMPLES == twice


def test_a_script_that_tells_the_epoch_itself_keeps_its_order() -> None:
    def make() -> Any:
        return prepared(Plain(SAMPLES), shuffle=True, use_seedable_sampler=True, data_seed=3)

    loader = make()
    cursor = DataCursor(loader)
    loader.set_epoch(7)
    order = [sample for _, _, batch, _ in train(cursor, 5) for sample in batch]
    expected = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(3 + 7)).tolist()
    assert order == expected
    assert not DataCursor(make()).record().requires
