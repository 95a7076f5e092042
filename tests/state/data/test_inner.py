"""Generators and states inside samplers, batch samplers and data sets."""

import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, ConcatDataset, DataLoader, Dataset, Sampler, Subset

from holdfast.errors import CheckpointError
from holdfast.state.data.cursor import DataCursor
from holdfast.state.data.inner import InnerState
from holdfast.state.rng import state as rng_state

SAMPLES = 12


class Shuffled(Sampler[int]):
    """It shuffles with a generator of its own, under a name of its own."""

    def __init__(self, generator: Any) -> None:
        self.mine = generator

    def __iter__(self) -> Iterator[int]:
        if isinstance(self.mine, torch.Generator):
            yield from torch.randperm(SAMPLES, generator=self.mine).tolist()
        elif isinstance(self.mine, random.Random):
            yield from self.mine.sample(range(SAMPLES), SAMPLES)
        else:
            yield from self.mine.permutation(SAMPLES).tolist()

    def __len__(self) -> int:
        return SAMPLES


class Buckets(Sampler[list[int]]):
    """A batch sampler that draws a bucket each time, and knows its state."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(3)

    def __iter__(self) -> Iterator[list[int]]:
        buckets = [list(range(begin, begin + 3)) for begin in range(0, SAMPLES, 3)]
        while buckets:
            yield buckets.pop(int(self.generator.integers(len(buckets))))

    def __len__(self) -> int:
        return SAMPLES // 3

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.generator.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.bit_generator.state = state["state"]


class Noisy(Dataset[float]):
    """Samples with noise from a generator of their own."""

    def __init__(self, generator: Any) -> None:
        self.generator = generator

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> float:
        draw = self.generator.random if hasattr(self.generator, "random") else partial(torch.rand, ())
        noise = draw(generator=self.generator) if isinstance(self.generator, torch.Generator) else draw()
        return index + float(noise)


class Collator:
    def __init__(self) -> None:
        self.random = random.Random(5)

    def __call__(self, batch: list[float]) -> list[float]:
        return [sample + self.random.random() for sample in batch]


def of(dataset: Any = None, **options: Any) -> DataLoader[Any]:
    samples: Any = dataset or list(range(SAMPLES))
    return DataLoader(samples, **{"batch_size": 3, **options})


LOADERS: dict[str, Callable[[], Any]] = {
    "numpy": lambda: of(sampler=Shuffled(np.random.default_rng(1))),
    "numpy, older": lambda: of(sampler=Shuffled(np.random.RandomState(1))),
    "python": lambda: of(sampler=Shuffled(random.Random(1))),
    "torch": lambda: of(sampler=Shuffled(torch.Generator().manual_seed(1))),
    "in a batch sampler": lambda: DataLoader(
        list(range(SAMPLES)),  # type: ignore[arg-type]
        batch_sampler=BatchSampler(Shuffled(random.Random(1)), 3, False),
    ),
    "that knows its state": lambda: DataLoader(list(range(SAMPLES)), batch_sampler=Buckets()),  # type: ignore[arg-type]
    "with workers": lambda: of(sampler=Shuffled(np.random.default_rng(1)), num_workers=1),
    "that knows its state, with workers": lambda: DataLoader(
        list(range(SAMPLES)),  # type: ignore[arg-type]
        batch_sampler=Buckets(),
        num_workers=1,
    ),
    "samples": lambda: of(Noisy(np.random.default_rng(2)), shuffle=True),
    "samples, older": lambda: of(Noisy(np.random.RandomState(2)), shuffle=True),
    "samples, python": lambda: of(Noisy(random.Random(2)), shuffle=True),
    "samples, torch": lambda: of(Noisy(torch.Generator().manual_seed(2)), shuffle=True),
    "samples, wrapped": lambda: of(
        Subset(ConcatDataset([Noisy(random.Random(2)), Noisy(np.random.default_rng(2))]), range(6, 18)), shuffle=True
    ),
    "collator": lambda: of(Noisy(random.Random(2)), collate_fn=Collator()),
    "collator in a partial": lambda: of(Noisy(random.Random(2)), collate_fn=partial(Collator())),
}


def train(cursor: DataCursor, steps: int) -> list[Any]:
    def batches() -> Iterator[Any]:
        while True:
            yield from cursor.rest_of_epoch()

    return [torch.as_tensor(batch).tolist() for batch in islice(batches(), steps)]


def resumed(make: Callable[[], Any], tree: Any, random_state: Any, **options: Any) -> tuple[DataCursor, list[str]]:
    cursor = DataCursor(make())
    tree = json.loads(json.dumps(tree, allow_nan=False))
    return cursor, cursor.restore(tree, after_skip=lambda: rng_state.restore(random_state), **options)


@pytest.mark.parametrize("cut", [1, 4, 6])
@pytest.mark.parametrize("name", LOADERS)
def test_the_order_and_what_samples_draw_go_on(name: str, cut: int) -> None:
    torch.manual_seed(1)
    expected = train(DataCursor(LOADERS[name]()), 10)
    torch.manual_seed(1)
    cursor = DataCursor(LOADERS[name]())
    seen = train(cursor, cut)
    position = cursor.record()
    assert position.requires
    tree, random_state = cursor.encode(position), rng_state.record().encode()
    train(cursor, 1)
    torch.manual_seed(2)
    cursor, notices = resumed(LOADERS[name], tree, random_state)
    assert seen + train(cursor, 10 - cut) == expected
    assert cursor.reach() == notices == []


@pytest.mark.parametrize(
    "loader", [of(), of(shuffle=True), of(shuffle=True, generator=torch.Generator()), of(num_workers=1)]
)
def test_loaders_of_torch_have_nothing_that_is_not_known(loader: Any) -> None:
    assert not InnerState(loader)
    cursor = DataCursor(loader)
    train(cursor, 2)
    assert not cursor.record().requires
    assert cursor.encode(cursor.record()).keys() <= {
        *("epoch", "consumed", "begin", "workers_kept", "state", "order", "loader")
    }


def test_what_samples_draw_in_workers_is_named_and_goes_on_when_it_is_replayed() -> None:
    def make() -> Any:
        return of(Noisy(np.random.default_rng(2)), num_workers=1)

    expected = train(DataCursor(make()), 4)
    cursor = DataCursor(make())
    train(cursor, 2)
    tree, random_state = cursor.encode(cursor.record()), rng_state.record().encode()
    assert resumed(make, tree, random_state)[1] == [
        "data: what samples draw in loader processes from dataset.generator does not go on as it would have"
    ]
    cursor, notices = resumed(make, tree, random_state, replay=True)
    assert (notices, train(cursor, 2)) == ([], expected[2:])


def test_a_sampler_that_does_not_come_to_its_state_is_named() -> None:
    class Moody(Buckets):
        seen = 0

        def state_dict(self) -> dict[str, Any]:
            return super().state_dict() | {"losses": self.seen}

    cursor = DataCursor(DataLoader(list(range(SAMPLES)), batch_sampler=(sampler := Moody())))  # type: ignore[arg-type]
    train(cursor, 2)
    sampler.seen = 7
    tree, random_state = cursor.encode(cursor.record()), rng_state.record().encode()
    cursor, _ = resumed(lambda: DataLoader(list(range(SAMPLES)), batch_sampler=Moody()), tree, random_state)  # type: ignore[arg-type]
    train(cursor, 1)
    assert cursor.reach() == [
        "data: batch_sampler came to another state than it had: its order may be another from here on"
    ]
    assert cursor.reach() == []


def test_what_is_only_here_or_only_there_is_named() -> None:
    cursor = DataCursor(LOADERS["numpy"]())
    train(cursor, 2)
    tree, random_state = cursor.encode(cursor.record()), rng_state.record().encode()
    _, notices = resumed(LOADERS["collator"], tree, random_state)
    assert sorted(notices) == [
        "data: the checkpoint has no state of collate_fn.random",
        "data: the checkpoint has no state of dataset.generator",
        "data: there is no sampler.mine any more",
    ]


def test_a_state_of_another_kind_is_refused_by_name() -> None:
    cursor = DataCursor(LOADERS["numpy"]())
    train(cursor, 2)
    tree, random_state = cursor.encode(cursor.record()), rng_state.record().encode()
    cursor, _ = resumed(LOADERS["python"], tree, random_state)
    with pytest.raises(CheckpointError, match=r"sampler\.mine, a Random, does not take the checkpoint's state"):
        train(cursor, 1)


def test_a_walk_ends_and_goes_nowhere_it_has_no_business() -> None:
    class Endless(Noisy):
        def __init__(self) -> None:
            super().__init__(random.Random(1))
            self.me, self.model, self.rows = self, torch.nn.Linear(1, 1), [{"r": random.Random(2)}] * 1_000
            self.everybodys = [torch.default_generator, random._inst, np.random.mtrand._rand]

    assert list(InnerState(of(Endless())).record()) == ["dataset.generator"]
