"""The protocol of streams and events, on a device of paper whose adversary picks the order. `docs/design.md` has it."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from capture.test_stream import File
from helpers.paper import POLICIES, CardLostError, Lane, Paper
from holdfast.capture import device_stream, slab_filling, slab_writers
from holdfast.capture.device_stream import DeviceStream
from holdfast.capture.hold import Hold, Holds
from holdfast.capture.slab_writers import SlabWriters
from holdfast.capture.staging import Pool
from holdfast.capture.tripwire import Fingerprint, WriteDetector
from holdfast.devices.arena import Arena
from holdfast.errors import DeviceLostError, TornError
from holdfast.store.digest import BLOCK_BYTES

SLABS = 6
SLAB_BYTES = 12 << 10
"""The files of the state here have more than half of it, so that each has a slab of its own, and one is for notes."""
_pools: dict[int, Pool] = {}


def pool_of(slabs: int) -> Pool:
    """A pool that each test finds whole: a block that was not given back is missed by the next."""
    if slabs not in _pools:
        pool = _pools[slabs] = Pool(Arena(slabs * BLOCK_BYTES, Paper()), BLOCK_BYTES)
        for _ in range(slabs):
            pool.add(pool.arena.make(BLOCK_BYTES))
        pool.block_bytes = SLAB_BYTES
    pool = _pools[slabs]
    free = [pool.try_take() for _ in range(slabs)]
    assert None not in free, "a slab was not given back"
    for block in free:
        assert block is not None
        pool.give(block)
    return pool


@dataclass
class Training:
    """Updates that are enqueued on two cards, and the snapshots of them."""

    paper: Paper
    pool: Pool
    has_host_tensors: bool = False
    lanes: list[Lane] = field(default_factory=list)
    holds: Holds = field(default_factory=Holds)

    def __post_init__(self) -> None:
        self.state = [self.paper.place(torch.zeros(2000), number % self.paper.cards) for number in range(SLABS - 2)]
        self.small = self.paper.place(torch.zeros(7), 0)
        self.host = self.paper.place(torch.zeros(3000), None)
        tensors = {f"t{number}": tensor for number, tensor in enumerate([*self.state, self.small])}
        self.detector = WriteDetector(tensors, device=self.paper)

    def update(self, value: float) -> None:
        """Writes all of the state, as two optimizers do; in one update the second has a lane of its own."""
        self.holds.wait_on_cards()
        for tensor in [*self.state[:2], self.small]:
            self.paper.write(tensor, value)
        with ExitStack() as aside:
            for lane in self.lanes if value == 3.0 else ():
                aside.enter_context(self.paper.in_lane(lane))
            self.holds.wait_on_cards()
            for tensor in self.state[2:]:
                self.paper.write(tensor, value)
        self.host.data.fill_(value)

    def boundary(self) -> Fingerprint:
        lanes = {card: {self.paper.lane(card), *self.lanes_on(card)} for card in self.detector.cards}
        marks = {card: list(map(self.paper.mark, used)) for card, used in lanes.items()}
        return Fingerprint([], [], b"", marks=marks)

    def lanes_on(self, card: int) -> list[Lane]:
        return [lane for lane in self.lanes if lane.card == card]

    def forward(self) -> None:
        for card in range(self.paper.cards):
            self.paper.put(card, lambda: None)

    def begin(self, boundary: Fingerprint) -> "Taken":
        """Enqueues as much of a snapshot as there is memory for, and lets training go on if that is all."""
        files = [File([b"head", tensor, self.small]) for tensor in self.state]
        files.append(File([self.host, b"tail"] if self.has_host_tensors else [b"tail"]))
        device_stream.follow(self.paper, boundary)
        stream = DeviceStream(
            files,
            self.paper,
            self.pool,
            threading.Event(),
            boundary,
            self.detector,
            {"t0": self.state[0]},
            lambda t: "the host's",
        )
        taken = Taken(self, stream, files)
        try:
            if stream.enqueue(waits=False):
                self.holds.add(stream.hold())
        except BaseException:
            stream.close()
            raise
        return taken


@dataclass
class Taken:
    """A snapshot on its way."""

    training: Training
    stream: DeviceStream
    files: Sequence[File]

    def write(self) -> None:
        """Begins to write; returns when training may go on."""
        self.stream.start(self.files)
        if not self.stream.is_enqueued:
            self.stream.enqueue(waits=True)
            self.training.holds.add(self.stream.hold())

    def is_of(self, value: float) -> bool:
        """Ends it, and tells whether it has nothing but the state of one update."""
        try:
            self.stream.finish()
        except TornError:
            return False
        finally:
            self.stream.close()
        return all(file.written == content_of(file, value) for file in self.files)


def content_of(file: File, value: float) -> bytes:
    pieces = [piece if isinstance(piece, bytes) else torch.full_like(piece, value) for piece in file.pieces]
    return File(pieces).content


def trained(policy: str, seed: int, slabs: int, has_host_tensors: bool = False) -> bool:
    """Trains three updates, each saved while the next is made; tells whether all snapshots were right."""
    training = Training(Paper(policy, seed, cards=2), pool_of(slabs), has_host_tensors)
    training.lanes = [Lane("side 0", 0), Lane("side 1", 1)]
    good = []
    training.update(1.0)
    for value in (1.0, 2.0, 3.0):
        boundary = training.boundary()
        taken = training.begin(boundary)
        training.forward()
        if not taken.stream.is_enqueued:
            taken.write()
            wrote = True
        else:
            wrote = False
        training.update(value + 1)
        training.forward()
        if not wrote:
            taken.write()
        good.append(taken.is_of(value))
    training.paper.finish()
    return all(good)


ORDERS = [(policy, seed) for policy in POLICIES for seed in range(4 if policy in ("random", "lazy") else 1)]


@pytest.mark.parametrize("has_host_tensors", [False, True])
@pytest.mark.parametrize("slabs", [SLABS + 1, 3])
def test_no_order_gives_a_wrong_snapshot(slabs: int, has_host_tensors: bool) -> None:
    assert [order for order in ORDERS if not trained(*order, slabs, has_host_tensors)] == []


def test_on_paper_what_nobody_has_kept_until_it_is_copied_is_copied_wrong() -> None:
    paper, kept = Paper("lazy"), torch.ones(8)
    targets = torch.zeros(8), torch.zeros(8), torch.zeros(8)
    paper.copy(0, torch.ones(8), targets[0])
    paper.copy(0, kept, targets[1])
    with paper.ours():
        paper.copy(0, torch.cat([kept]), targets[2])
    paper.finish()
    assert [torch.equal(target, kept) for target in targets] == [False, True, True]


def no_follow(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(device_stream, "follow", lambda device, boundary: None)


def no_hold(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Paper, "hold", lambda self, card, event: None)


def a_hold_of_the_first_card_alone(patch: pytest.MonkeyPatch) -> None:
    hold = Paper.hold
    patch.setattr(Paper, "hold", lambda self, card, event: hold(self, card, event) if card == 0 else None)


def a_mark_of_the_first_card_alone(patch: pytest.MonkeyPatch) -> None:
    follow = Paper.follow
    patch.setattr(Paper, "follow", lambda self, card, event: follow(self, card, event) if card == 0 else None)


def a_mark_of_the_present_lane_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Training, "lanes_on", lambda self, card: [])


def a_hold_for_one_update_alone(patch: pytest.MonkeyPatch) -> None:
    wait = Holds.wait_on_cards

    def once(self: Holds) -> None:
        wait(self)
        self._holds = []

    patch.setattr(Holds, "wait_on_cards", once)


def writers_that_do_not_wait(patch: pytest.MonkeyPatch) -> None:
    fill = slab_filling.SlabFilling.fill
    patch.setattr(
        slab_filling.SlabFilling, "fill", lambda self, slab, block: fill(self, slab, block)._replace(events=[])
    )


def a_hold_before_the_last_copy(patch: pytest.MonkeyPatch) -> None:
    end = DeviceStream._end_reading

    def too_early(self: DeviceStream) -> None:
        end(self)
        self._last = early[id(self)]

    begin = DeviceStream._begin
    early: dict[int, Any] = {}

    def noting(self: DeviceStream, *, waits: bool) -> bool:
        begun = begin(self, waits=waits)
        early[id(self)] = {card: self._device.event(card) for card in self._cards()}
        return begun

    patch.setattr(DeviceStream, "_begin", noting)
    patch.setattr(DeviceStream, "_end_reading", too_early)


def training_that_goes_on_before_all_is_enqueued(patch: pytest.MonkeyPatch) -> None:
    def nothing_more(self: Taken) -> None:
        if not self.stream.is_enqueued:
            self.training.update(9.0)
        write(self)

    write = Taken.write
    patch.setattr(Taken, "write", nothing_more)


MUTANTS: list[Callable[[pytest.MonkeyPatch], None]] = [
    no_follow,
    no_hold,
    a_hold_of_the_first_card_alone,
    a_mark_of_the_first_card_alone,
    a_mark_of_the_present_lane_alone,
    a_hold_for_one_update_alone,
    writers_that_do_not_wait,
    a_hold_before_the_last_copy,
    training_that_goes_on_before_all_is_enqueued,
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_each_rule_that_is_left_out_gives_a_wrong_one(mutant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)
    assert not all(trained(*order, slabs) for slabs in (SLABS + 1, 3) for order in ORDERS)


@pytest.fixture
def saved() -> Iterator[Callable[[Paper], Taken]]:
    """Takes a snapshot of a state of ones, up to where the gate would open."""
    begun = []

    def take(paper: Paper, slabs: int = SLABS + 1) -> Taken:
        training = Training(paper, pool_of(slabs))
        training.update(1.0)
        begun.append(training.begin(training.boundary()))
        return begun[-1]

    yield take
    for taken in begun:
        taken.stream.close()


def test_training_waits_for_nothing_once_all_is_enqueued(saved: Callable[[Paper], Taken]) -> None:
    paper = Paper("lazy", cards=2)
    taken = saved(paper)
    before = paper.waits
    for _ in range(3):
        taken.training.update(2.0)
        taken.training.holds.look()
    assert taken.stream.is_enqueued and paper.waits == before
    taken.write()
    assert taken.is_of(1.0)
    taken.training.holds.look()
    assert taken.training.holds._holds == []


def test_few_copies_are_under_way_while_training_computes_and_all_when_it_has_come_to_the_gate() -> None:
    paper = Paper("lazy", cards=1)
    training = Training(paper, pool_of(SLABS + 1))
    training.update(1.0)
    for training_waits, at_least, at_most in ((False, 2, 20), (True, 0, 0)):
        before, waits = paper.waits, threading.Event()
        if training_waits:
            waits.set()
        boundary = training.boundary()
        device_stream.follow(paper, boundary)
        files = [File([tensor]) for tensor in training.state]
        stream = DeviceStream(files, paper, training.pool, waits, boundary, training.detector, {}, lambda t: "t")
        assert stream.enqueue(waits=False)
        assert at_least <= paper.waits - before <= at_most
        stream.start(files)
        stream.finish()
        stream.close()


def test_a_write_past_the_gate_between_the_first_copy_and_the_last_is_seen_in_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paper = Paper("training first", cards=2)
    training = Training(paper, pool_of(SLABS + 1))
    training.update(1.0)
    end = DeviceStream._end_reading

    def write_past_the_gate(self: DeviceStream) -> None:
        paper.finish()
        training.update(2.0)
        end(self)

    monkeypatch.setattr(DeviceStream, "_end_reading", write_past_the_gate)
    taken = training.begin(training.boundary())
    taken.write()
    with pytest.raises(TornError) as torn:
        taken.stream.finish()
    taken.stream.close()
    assert set(torn.value.names) >= {"t0", "t1"}


def test_a_tensor_that_is_given_other_memory_while_it_is_copied_is_named(saved: Callable[[Paper], Taken]) -> None:
    paper = Paper("lazy", cards=2)
    training = Training(paper, pool_of(3))
    training.update(1.0)
    taken = training.begin(training.boundary())
    assert not taken.stream.is_enqueued
    training.state[1].data = torch.ones(2000)
    with pytest.raises(TornError, match="t1"):
        taken.write()
    taken.stream.close()


@pytest.mark.parametrize("free", [1 << 34, 0])
def test_nan_and_infinity_are_found_on_the_card_and_whole_numbers_and_empty_ones_spoil_nothing(
    free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a card that is full nothing is asked for, and the writers look at the bits."""
    paper = Paper("lazy", cards=1)
    paper.free = free
    if not free:
        monkeypatch.delattr(Paper, "enqueue")  # all that it is used for takes memory there
    tensors = {
        "plain": torch.ones(2000),
        "empty": torch.empty(0),
        "whole": torch.full((2000,), 7),
        "nan": torch.full((2000,), float("nan")),
        "half": torch.tensor([1.0, -float("inf")] * 1000, dtype=torch.float16),
        "pair": torch.tensor([complex(1, float("inf"))] * 1000),
        "eight": torch.tensor([1.0, float("nan")] * 1000).to(torch.float8_e5m2),
        "double": torch.full((2000,), 1e300, dtype=torch.float64),
        "none": torch.tensor(float("nan")),
        "scales": torch.ones(2000).to(torch.float8_e8m0fnu),
    }
    detector = WriteDetector(tensors, device=paper)
    boundary = detector.fingerprint({0: [paper.lane(0)]})
    files = [File(list(tensors.values()))]
    pool = pool_of(SLABS + 1)
    device_stream.follow(paper, boundary)
    stream = DeviceStream(files, paper, pool, threading.Event(), boundary, detector, tensors, lambda t: "t")
    assert stream.enqueue(waits=False)
    stream.start(files)
    stream.finish()
    stream.close()
    assert stream.not_finite == ["eight", "half", "nan", "none", "pair"]
    assert files[0].written == files[0].content


@pytest.mark.parametrize("free", [1 << 34, 0])
def test_what_does_not_lie_in_order_is_put_in_order_on_the_card_or_without_room_there_on_the_host(free: int) -> None:
    paper = Paper("random", cards=1)
    paper.free = free
    pieces: list[bytes | torch.Tensor] = [
        torch.arange(20000.0).reshape(100, 200).T,
        torch.arange(24000.0).reshape(2, 30, 20, 20).to(memory_format=torch.channels_last),
        torch.arange(9000.0).to(torch.complex64).conj(),
        torch._neg_view(torch.arange(5000.0)),
        torch.arange(40000.0)[::2],
        torch.tensor(3.0),
        torch.arange(30.0).reshape(5, 6).T,
        torch.empty(0, 4),
        torch.arange(5000.0).bfloat16(),
    ]
    detector = WriteDetector({}, device=paper)
    files = [File(pieces)]
    stream = DeviceStream(
        files, paper, pool_of(SLABS + 1), threading.Event(), Fingerprint([], [], b""), detector, {}, lambda t: "t"
    )
    assert stream.enqueue(waits=False)
    stream.start(files)
    stream.finish()
    stream.close()
    assert files[0].written == files[0].content


def test_a_card_that_is_lost_before_all_is_copied_fails_the_save_and_is_not_touched_again(
    saved: Callable[[Paper], Taken],
) -> None:
    paper = Paper("lazy", cards=2)
    taken = saved(paper)
    paper.lose_after(3)
    taken.write()
    with pytest.raises(DeviceLostError, match="the paper has burnt"):
        taken.stream.finish()
    waits = paper.waits
    taken.training.holds.look()
    assert taken.training.holds._holds == [] and paper.waits == waits
    _pools.clear()  # what a lost card may still write to is not used again


def test_a_card_that_is_lost_after_all_is_copied_costs_nothing(
    saved: Callable[[Paper], Taken], monkeypatch: pytest.MonkeyPatch
) -> None:
    paper = Paper("lazy", cards=2)
    taken = saved(paper)
    finish = SlabWriters.finish

    def lose(self: SlabWriters) -> None:
        paper.lost = True
        self.start(taken.files)
        finish(self)

    monkeypatch.setattr(SlabWriters, "finish", lose)
    assert taken.is_of(1.0)


def test_a_card_that_is_lost_before_a_writer_has_begun_ends_the_wait_for_memory(
    saved: Callable[..., Taken], monkeypatch: pytest.MonkeyPatch
) -> None:
    paper = Paper("lazy", cards=2)
    taken = saved(paper, 3)

    def burnt(card: int | None = None) -> None:
        raise CardLostError("the paper has burnt")

    monkeypatch.setattr(paper, "enter_thread", burnt)
    with pytest.raises(DeviceLostError, match="the paper has burnt"):
        taken.write()


def test_where_a_card_has_a_share_of_the_state_that_is_not_trained_there_is_a_stream_of_ours_before_memory_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Memory that is taken in no stream of ours may be given to somebody else while the card still works with it."""
    paper = Paper("lazy", cards=2)
    streams: set[int] = set()
    ours = paper.ours

    def entered() -> AbstractContextManager[None]:
        assert streams == {0, 1}
        return ours()

    monkeypatch.setattr(paper, "follow", lambda card, event: streams.add(card))
    monkeypatch.setattr(paper, "ours", entered)
    training = Training(paper, pool_of(SLABS + 1))
    training.begin(training.boundary()._replace(marks={0: [paper.mark(paper.lane(0))]})).stream.close()


def test_a_hold_that_a_driver_does_not_tell_of_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    paper, holds = Paper("eager"), Holds()
    holds.add(Hold(paper, {0: paper.event(0)}))

    def refuse(event: object) -> bool:
        raise RuntimeError("operation not permitted when stream is capturing")

    with monkeypatch.context() as patch:
        patch.setattr(paper, "is_over", refuse)
        holds.look()
    assert len(holds._holds) == 1
    holds.look()
    assert holds._holds == []


def test_what_the_host_has_of_the_state_is_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(Paper("lazy", cards=2), pool_of(SLABS + 1), has_host_tensors=True)
    training.update(1.0)
    end = DeviceStream._end_reading
    monkeypatch.setattr(DeviceStream, "_end_reading", lambda self: (training.host.data.fill_(2.0), end(self))[1])
    with pytest.raises(TornError, match="the host's"):
        training.begin(training.boundary())


def test_what_is_torn_is_not_written_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The samples tell of it when all is copied, and the disk has taken a little of it by then."""
    monkeypatch.setattr(slab_writers, "WRITERS", 1)
    training = Training(Paper("lazy", cards=2), pool_of(SLABS + 1))
    training.update(1.0)
    taken = training.begin(training.boundary())
    copied = threading.Event()
    for file in taken.files:
        file.before_write = lambda offset: copied.wait(30)
    monkeypatch.setattr(training.detector, "changed_on_card", lambda card, then, now: ["t0"])
    compare = DeviceStream._compare_samples

    def torn(self: DeviceStream) -> None:
        try:
            compare(self)
        finally:
            self._stopped.set()
            copied.set()

    monkeypatch.setattr(DeviceStream, "_compare_samples", torn)
    taken.stream.start(taken.files)
    with pytest.raises(TornError, match="t0"):
        taken.stream.finish()
    taken.stream.close()
    assert any(file.to_come for file in taken.files)
    pool_of(SLABS + 1)


def test_a_slab_whose_filling_fails_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(Paper("lazy", cards=2), pool_of(SLABS + 1))
    training.update(1.0)

    def fail(self: Any, slab: Any, block: Any) -> Any:
        raise MemoryError("for a launch")

    monkeypatch.setattr(slab_filling.SlabFilling, "fill", fail)
    with pytest.raises(MemoryError):
        training.begin(training.boundary())
    pool_of(SLABS + 1)
