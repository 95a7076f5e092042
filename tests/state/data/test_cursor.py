"""The position in the data: going on after an interruption gives what an uninterrupted training would have seen."""

import gc
import json
import multiprocessing
import random
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, Sampler, Subset

from helpers.samples import Augmented, Plain
from holdfast.errors import CheckpointError, ConfigError, UnsupportedError
from holdfast.state.data.cursor import DataCursor
from holdfast.state.rng import state as rng_state

SAMPLES = 10
BATCH = 3
PER_EPOCH = 4
STEPS = 11
# Before the first batch, after it, in the middle, after a whole epoch, right after the next has begun, later.
CUTS = (0, 1, 2, PER_EPOCH, PER_EPOCH + 1, 2 * PER_EPOCH, 2 * PER_EPOCH + 2)

Make = Callable[[], Any]


class Counting(IterableDataset[int]):
    """A stream without a position of its own."""

    def __iter__(self) -> Iterator[int]:
        worker = torch.utils.data.get_worker_info()
        yield from range(worker.id if worker else 0, SAMPLES, worker.num_workers if worker else 1)


class Stream(IterableDataset[float]):
    """A stream that knows its position, which is that of its last sample until it begins anew."""

    def __init__(self) -> None:
        self.position: Any = {"at": 0, "rounds": [0]}
        self.goes_on_at = 0
        self.given = 0

    def __iter__(self) -> Iterator[float]:
        begin, self.goes_on_at = self.goes_on_at, 0
        self.position["rounds"][0] += begin == 0
        for index in range(begin, SAMPLES):
            self.position["at"] = index + 1
            self.given += 1
            yield index + random.random()

    def state_dict(self) -> Any:
        # Tuples, keys that are no texts, and numbers that JSON does not know come back as they were.
        return self.position | {"odd": (1, {2: float("inf")}), "drawn": random.Random(0).getstate()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state["odd"] == (1, {2: float("inf")})
        random.Random().setstate(state["drawn"])
        self.position = {"at": state["at"], "rounds": list(state["rounds"])}
        self.goes_on_at = state["at"]


class Drawing(Stream):
    """It draws from generators of its own, whose states are tensors and arrays."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)
        self.numpy = np.random.RandomState(3)

    def __iter__(self) -> Iterator[float]:
        for sample in super().__iter__():
            yield sample + torch.rand((), generator=self.generator).item() + self.numpy.standard_normal()

    def state_dict(self) -> Any:
        odd = [torch.tensor(-0.0, dtype=torch.bfloat16), torch.empty(0, 3), torch.tensor([[True], [False]]).T]
        state = {"torch": self.generator.get_state(), "numpy": self.numpy.get_state(), "odds": odd}
        return super().state_dict() | state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.generator.set_state(state["torch"])
        self.numpy.set_state(state["numpy"])
        assert [(odd.dtype, odd.shape) for odd in state["odds"]] == [
            (torch.bfloat16, ()),
            (torch.float32, (0, 3)),
            (torch.bool, (1, 2)),
        ]


class Rewinding(Stream):
    """The other kind: at its end its position is the beginning again."""

    def __iter__(self) -> Iterator[float]:
        self.position["at"] = self.goes_on_at
        while self.position["at"] < SAMPLES:
            self.position["at"] += 1
            self.given += 1
            yield self.position["at"] + random.random()
        self.position["at"] = self.goes_on_at = 0


class Knowing:
    """A loader that knows its position."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Iterator[int]:
        while self.at < PER_EPOCH:
            self.at += 1
            yield self.at
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


class Eager(Sampler[list[int]]):
    """A batch sampler that draws as soon as it is asked for an iterator."""

    def __init__(self, source: Any = None, batch: int = BATCH) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(SAMPLES))
        random.shuffle(order)
        return iter([order[at : at + self.batch] for at in range(0, SAMPLES, self.batch)])

    def __len__(self) -> int:
        return PER_EPOCH


class OfTheEpoch(Sampler[int]):
    """A sampler whose order depends on the epoch that it is told, as that of a distributed training does."""

    epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(self.epoch)).tolist()

    def __len__(self) -> int:
        return SAMPLES


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawing_late(workers: int) -> DataLoader[Any]:
    # It draws 32 indices at a time, from the loader's own generator.
    sampler = RandomSampler(
        Plain(SAMPLES), replacement=True, num_samples=BATCH * PER_EPOCH * 8, generator=(own := seeded())
    )
    return DataLoader(Plain(SAMPLES), batch_size=BATCH * 8, sampler=sampler, generator=own, num_workers=workers)


def kept(dataset: Any, **options: Any) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=2, persistent_workers=True, **options)


EXACT: dict[str, Make] = {
    "in order": lambda: DataLoader(Augmented(SAMPLES), batch_size=BATCH),
    "shuffled": lambda: DataLoader(Augmented(SAMPLES), batch_size=BATCH, shuffle=True),
    "dropping the last": lambda: DataLoader(Augmented(SAMPLES), batch_size=2, shuffle=True, drop_last=True),
    "no batches": lambda: DataLoader(Augmented(SAMPLES), batch_size=None, shuffle=True),
    "own generator": lambda: DataLoader(Augmented(SAMPLES), batch_size=BATCH, shuffle=True, generator=seeded()),
    "drawing late": lambda: drawing_late(0),
    "eager": lambda: DataLoader(Augmented(SAMPLES), batch_sampler=Eager()),
    "of the epoch": lambda: DataLoader(Augmented(SAMPLES), batch_size=BATCH, sampler=OfTheEpoch()),
    "stream": lambda: DataLoader(Counting(), batch_size=BATCH),
    "stream with a position": lambda: DataLoader(Stream(), batch_size=BATCH),
    "stream with generators": lambda: DataLoader(Drawing(), batch_size=BATCH),
    "stream that rewinds": lambda: DataLoader(Rewinding(), batch_size=BATCH),
    "stream in whole batches": lambda: DataLoader(Stream(), batch_size=5),
    "loader with a position": Knowing,
    "list": lambda: ["a", "b", "c", "d"],
    "workers": lambda: DataLoader(Plain(SAMPLES), batch_size=BATCH, shuffle=True, num_workers=2),
    "workers, own generator": lambda: DataLoader(
        Plain(SAMPLES), batch_size=BATCH, shuffle=True, generator=seeded(), num_workers=2
    ),
    "workers, drawing late": lambda: drawing_late(2),
    "workers, eager": lambda: DataLoader(Plain(SAMPLES), batch_sampler=Eager(), num_workers=2),
    "workers, stream": lambda: DataLoader(Counting(), batch_size=BATCH, num_workers=2),
    "workers kept": lambda: kept(Plain(SAMPLES)),
    "workers kept, own generator": lambda: kept(Plain(SAMPLES), generator=seeded()),
}


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def batches_of(data: DataCursor) -> Generator[Any]:
    """The batches from the position on, epoch after epoch, without end."""
    while True:
        yield from data.rest_of_epoch()


def train(data: DataCursor, steps: int) -> list[Any]:
    """Steps that draw random numbers themselves, and what each saw."""
    seen = []
    batches = batches_of(data)
    for _ in range(steps):
        batch = next(batches)
        dropout = random.random() + np.random.standard_normal() + torch.rand(()).item()
        content = batch.tolist() if isinstance(batch, torch.Tensor) else batch
        seen.append((data.epoch, data.consumed, content, dropout))
    return seen


def checkpoint(data: DataCursor) -> dict[str, Any]:
    return {"data": data.encode(data.record()), "random": rng_state.record().encode()}


def resumed(make: Make, tree: dict[str, Any], *, replay: bool = False) -> tuple[DataCursor, list[str]]:
    """Does with a checkpoint, which went through JSON, as a new process does."""
    tree = json.loads(json.dumps(tree, allow_nan=False))
    seed_all(999)
    data = DataCursor(make())
    notices = data.restore(tree["data"], replay=replay, after_skip=lambda: rng_state.restore(tree["random"]))
    # So that a boundary that is marked before the first batch is the same as the one that was saved.
    rng_state.restore(tree["random"])
    return data, notices


def interrupted(make: Make, *cuts: int, replay: bool = False) -> tuple[list[Any], dict[str, Any]]:
    seed_all(1)
    data = DataCursor(make())
    seen: list[Any] = []
    for cut in cuts:
        seen += train(data, cut - len(seen))
        tree = checkpoint(data)
        # What an interruption loses: the steps after the checkpoint.
        train(data, 1)
        data, _ = resumed(make, tree, replay=replay)
    seen += train(data, STEPS - len(seen))
    return seen, checkpoint(data)


@pytest.fixture(scope="module")
def uninterrupted() -> Callable[[str, Make], tuple[list[Any], dict[str, Any]]]:
    known: dict[str, tuple[list[Any], dict[str, Any]]] = {}

    def run(name: str, make: Make) -> tuple[list[Any], dict[str, Any]]:
        if name not in known:
            known[name] = interrupted(make)
        return known[name]

    return run


Whole = Callable[[str, Make], tuple[list[Any], dict[str, Any]]]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", EXACT)
def test_it_goes_on_as_if_nothing_had_happened(name: str, cut: int, uninterrupted: Whole) -> None:
    seen, end = interrupted(EXACT[name], cut)
    expected, expected_end = uninterrupted(name, EXACT[name])
    assert seen == expected
    assert end == expected_end


@pytest.mark.parametrize("name", ["shuffled", "stream with a position", "workers kept"])
def test_it_may_be_interrupted_again_and_again(name: str, uninterrupted: Whole) -> None:
    assert interrupted(EXACT[name], 2, 3, 3, 6, 9) == uninterrupted(name, EXACT[name])


@pytest.mark.parametrize("name", [name for name in EXACT if name != "loader with a position"])
def test_replaying_is_exact_as_well(name: str, uninterrupted: Whole) -> None:
    assert interrupted(EXACT[name], PER_EPOCH + 2, replay=True) == uninterrupted(name, EXACT[name])


def with_workers() -> DataLoader[Any]:
    return DataLoader(Augmented(SAMPLES), batch_size=BATCH, shuffle=True, num_workers=2)


@pytest.mark.parametrize("cut", [2, PER_EPOCH, PER_EPOCH + 3])
def test_what_samples_draw_in_workers_is_exact_when_it_is_replayed(cut: int, uninterrupted: Whole) -> None:
    assert interrupted(with_workers, cut, replay=True) == uninterrupted("augmented in workers", with_workers)


def test_a_skip_with_workers_gives_the_same_samples_and_draws_others_in_them(uninterrupted: Whole) -> None:
    seen, end = interrupted(with_workers, 2)
    expected, expected_end = uninterrupted("augmented in workers", with_workers)
    assert seen != expected
    assert [[sample[0] for sample in batch] for _, _, batch, _ in seen] == [
        [sample[0] for sample in batch] for _, _, batch, _ in expected
    ]
    assert end == expected_end


def test_workers_that_outlive_an_epoch_are_replayed_within_their_first(uninterrupted: Whole) -> None:
    def make() -> DataLoader[Any]:
        return kept(Augmented(SAMPLES))

    seen, _ = interrupted(make, 2, replay=True)
    assert seen == uninterrupted("augmented in kept workers", make)[0]


def test_a_resumed_loader_keeps_its_workers() -> None:
    seed_all(1)
    data = DataCursor(kept(Plain(SAMPLES)))
    train(data, 2)
    tree = checkpoint(data)
    loader = kept(Plain(SAMPLES))
    data, _ = resumed(lambda: loader, tree)
    pids = []
    for _ in range(STEPS):
        train(data, 1)
        pids.append([worker.pid for worker in loader._iterator._workers])  # type: ignore[union-attr]
    assert data.epoch > 1
    assert pids == [pids[0]] * STEPS


def test_skipped_samples_are_not_loaded() -> None:
    dataset = Plain(SAMPLES)
    seed_all(1)
    data = DataCursor(DataLoader(Plain(SAMPLES), batch_size=BATCH))
    train(data, 3)
    data, _ = resumed(lambda: DataLoader(dataset, batch_size=BATCH), checkpoint(data))
    train(data, 1)
    assert dataset.loaded == [9]


def test_nothing_is_loaded_before_the_random_state_is_set() -> None:
    seed_all(1)
    data = DataCursor(DataLoader(Plain(SAMPLES), batch_size=BATCH))
    train(data, 2)
    dataset = Plain(SAMPLES)
    tree = checkpoint(data)["data"]
    data = DataCursor(DataLoader(dataset, batch_size=BATCH))
    loaded_then: list[int] = []
    data.restore(tree, after_skip=lambda: loaded_then.append(len(dataset.loaded)))
    assert next(batches_of(data)).tolist() == [6, 7, 8]
    assert loaded_then == [0]


def test_a_stream_with_a_position_is_not_gone_through_again() -> None:
    seed_all(1)
    data = DataCursor(DataLoader(Stream(), batch_size=BATCH))
    train(data, 3)
    stream = Stream()
    data, notices = resumed(lambda: DataLoader(stream, batch_size=BATCH), checkpoint(data))
    train(data, 1)
    assert (stream.given, notices) == (1, [])


def test_the_state_of_the_data_is_that_of_the_boundary() -> None:
    deep: dict[str, list[int]] = {"seen": []}

    class Deep(Knowing):
        def state_dict(self) -> Any:
            return {"deep": deep}

    data = DataCursor(Deep())
    train(data, 1)
    recorded = data.record()
    deep["seen"].append(1)
    assert recorded.state == {"deep": {"seen": []}}


@pytest.mark.parametrize("make", [EXACT["stream with a position"], EXACT["shuffled"], EXACT["workers kept"], Knowing])
def test_between_two_epochs(make: Make) -> None:
    def two_epochs(data: DataCursor) -> tuple[list[Any], dict[str, Any]]:
        return train(data, PER_EPOCH + 2), checkpoint(data)

    seed_all(1)
    data = DataCursor(make())
    # The epoch's end is seen before its last step is done, as when batches are collected for an accumulation.
    assert len(list(data.rest_of_epoch())) == PER_EPOCH
    tree = checkpoint(data)
    assert (tree["data"]["epoch"], tree["data"]["consumed"], tree["data"]["begin"]) == (1, 0, None)
    expected = two_epochs(data)
    data, _ = resumed(make, tree)
    assert two_epochs(data) == expected


def test_a_position_that_nobody_has_gone_to_yet_can_be_recorded_again() -> None:
    seed_all(1)
    data = DataCursor(EXACT["shuffled"]())
    train(data, 2)
    tree = checkpoint(data)
    data, _ = resumed(EXACT["shuffled"], tree)
    assert data.encode(data.record()) == tree["data"]


def test_what_is_closed_has_no_workers_although_its_batches_are_held() -> None:
    others = {child.pid for child in multiprocessing.active_children()}  # of tests before this
    data = DataCursor(DataLoader(Plain(SAMPLES), batch_size=1, num_workers=2))
    batches = batches_of(data)
    next(batches)
    mine = [child for child in multiprocessing.active_children() if child.pid not in others]
    gc.disable()  # it is not to be what ends them
    try:
        data.close()
        assert len(mine) == 2
        assert [child.exitcode for child in mine] == [0, 0]
    finally:
        gc.enable()
        batches.close()


def test_epochs_can_be_left_and_entered_again() -> None:
    data = DataCursor([1, 2, 3])
    assert next(batches_of(data)) == 1
    assert list(data.rest_of_epoch()) == [2, 3]
    assert (data.epoch, data.consumed) == (1, 0)
    assert next(batches_of(data)) == 1


def test_the_epoch_is_told_to_whatever_wants_to_know_it() -> None:
    calls: list[tuple[str, int]] = []

    class Told(Plain):
        def set_epoch(self, epoch: int) -> None:
            calls.append(("dataset", epoch))

    class Batches(BatchSampler):
        def set_epoch(self, epoch: int) -> None:
            calls.append(("batch sampler", epoch))

    loader: DataLoader[Any] = DataLoader(Told(SAMPLES), batch_sampler=Batches(sampler := OfTheEpoch(), BATCH, False))
    train(DataCursor(loader), PER_EPOCH + 1)
    assert calls == [("batch sampler", 0), ("dataset", 0), ("batch sampler", 1), ("dataset", 1)]
    assert sampler.epoch == 1


@pytest.mark.parametrize("data", [[], DataLoader(Plain(SAMPLES), batch_size=SAMPLES + 1, drop_last=True), iter(())])
def test_an_epoch_without_a_batch_is_an_error(data: Any) -> None:
    with pytest.raises(ConfigError, match=r"epoch 0 of the .* has no batch"):
        next(batches_of(DataCursor(data)))


def test_what_can_be_gone_through_once_has_no_second_epoch() -> None:
    batches = batches_of(DataCursor(iter([1, 2])))
    assert [next(batches), next(batches)] == [1, 2]
    with pytest.raises(ConfigError, match=r"epoch 1 of the list_iterator"):
        next(batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_data_of_another_size_begins_the_epoch_anew(workers: int) -> None:
    data = DataCursor(DataLoader(Subset(Plain(SAMPLES), range(9)), batch_size=1))
    train(data, 9 + 4)
    longer: DataLoader[Any] = DataLoader(Plain(SAMPLES), batch_size=BATCH, num_workers=workers)
    data, notices = resumed(lambda: longer, checkpoint(data))
    assert notices == ["data: the data set has 10 samples and had 9: epoch 1 begins anew"]
    assert [batch for _, _, batch, _ in train(data, 4)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert data.epoch == 1


def test_data_of_another_size_after_the_last_batch_of_an_epoch_begins_the_next() -> None:
    for through in (False, True):  # a loop hears of an epoch's end when it asks for more
        data = DataCursor(DataLoader(Subset(Plain(SAMPLES), range(9)), batch_size=3))
        seen = list(data.rest_of_epoch()) if through else train(data, 3)
        assert len(seen) == 3
        data, notices = resumed(lambda: DataLoader(Plain(SAMPLES), batch_size=3), checkpoint(data))
        assert notices == ["data: the data set has 10 samples and had 9"]
        assert [(epoch, batch) for epoch, _, batch, _ in train(data, 1)] == [(1, [0, 1, 2])]


def test_the_generator_of_a_loader_goes_on_between_two_epochs() -> None:
    def make() -> Any:
        generator = torch.Generator().manual_seed(5)
        return DataLoader(Plain(SAMPLES), batch_size=BATCH, shuffle=True, generator=generator)

    data = DataCursor(make())
    first = list(data.rest_of_epoch())
    saved, second = checkpoint(data), list(data.rest_of_epoch())
    again, notices = resumed(make, saved)
    assert data.epoch == 2 and not notices
    assert [batch.tolist() for batch in again.rest_of_epoch()] == [batch.tolist() for batch in second]
    assert [batch.tolist() for batch in first] != [batch.tolist() for batch in second]


@pytest.mark.parametrize("replay", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_data_that_has_become_too_short_is_refused(workers: int, replay: bool) -> None:
    data = DataCursor(DataLoader(Plain(SAMPLES), batch_sampler=Eager()))
    train(data, 3)
    shorter: DataLoader[Any] = DataLoader(Plain(SAMPLES), batch_sampler=Eager(Plain(SAMPLES), 5), num_workers=workers)
    data, _ = resumed(lambda: shorter, checkpoint(data), replay=replay)
    with pytest.raises(CheckpointError, match=r"after 3 batches of an epoch, and the data has 2"):
        next(batches_of(data))


def test_notices_tell_what_may_not_go_on_as_it_would_have() -> None:
    def notices_of(make: Make, then: Make | None = None, *, steps: int = 2, replay: bool = False) -> list[str]:
        data = DataCursor(make())
        train(data, steps)
        return resumed(then or make, checkpoint(data), replay=replay)[1]

    assert notices_of(EXACT["shuffled"]) == []
    assert notices_of(EXACT["workers"], replay=True) == []
    assert notices_of(EXACT["stream"]) == [
        "data: a Counting can only be gone through: 2 batches are loaded and dropped"
    ]
    assert notices_of(EXACT["list"]) == ["data: a list can only be gone through: 2 batches are loaded and dropped"]
    assert notices_of(EXACT["shuffled"], EXACT["own generator"]) == [
        "the checkpoint has no state of generator 'generator'"
    ]
    assert notices_of(Knowing, EXACT["list"])[0].startswith("data: the checkpoint has a state of the data, and")
    assert "outlive" in notices_of(EXACT["workers kept"], steps=PER_EPOCH + 1, replay=True)[0]


@pytest.mark.parametrize(
    ("state", "what"),
    [
        ({"cache": {"mean": torch.zeros(1).to_sparse()}}, r"data: state_dict\(\)/cache/mean is a tensor without plain"),
        ({"cache": torch.zeros(16 << 20, dtype=torch.uint8), "a": torch.zeros(1)}, r"has tensors of 16,777,220 bytes"),
        ({"rows": [1, object()]}, r"data: state_dict\(\)/rows/1"),
    ],
)
def test_a_state_that_has_no_form_is_named(state: Any, what: str) -> None:
    class Odd(Knowing):
        def state_dict(self) -> Any:
            return state

    data = DataCursor(Odd())
    train(data, 1)
    with pytest.raises(UnsupportedError, match=what):
        data.encode(data.record())


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": -1},
        {"epoch": True},
        {"consumed": 1.5},
        {"consumed": 0},
        {"begin": None},
        {"begin": "x"},
        {"begin": {}},
        {"workers_kept": 1},
        {"tensors": 1},
        {"tensors": {"x": {"dtype": "float32", "shape": [1], "bytes": "00"}}},
        {"tensors": {"x": {"dtype": "Tensor", "shape": [1], "bytes": "00"}}},
        {"tensors": {"x": {"dtype": "float32", "shape": [2], "bytes": "00000000"}}},
        {"order": {}},
    ],
    ids=str,
)
def test_a_tree_that_is_no_position_is_refused_and_changes_nothing(change: dict[str, Any]) -> None:
    data = DataCursor([1, 2, 3])
    train(data, 2)
    tree = data.encode(data.record()) | change
    with pytest.raises(CheckpointError):
        data.restore(tree, after_skip=lambda: None)
    assert next(batches_of(data)) == 3
