import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import pytest
import torch

from helpers.parts import raw
from helpers.waiting import wait_until
from holdfast.capture.staging import RING_BLOCKS, Pool
from holdfast.capture.stream import Stream
from holdfast.capture.throttle import Throttle
from holdfast.devices.arena import Arena
from holdfast.errors import TornError
from holdfast.store.digest import BLOCK_BYTES


@dataclass
class File:
    """A file to be, and what has been written of it."""

    pieces: Sequence[bytes | torch.Tensor]
    path: str = "file"
    before_write: Callable[[int], object] = lambda offset: None
    on_sync: Callable[[], object] = lambda: None
    written: bytearray = field(init=False)
    digested: bytearray = field(init=False)
    to_come: int = field(init=False)
    synced: int = field(init=False, default=0)
    lock: Any = field(init=False, repr=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.to_come = len(self.content)
        self.written = bytearray(self.to_come)
        self.digested = bytearray(self.to_come)

    @property
    def content(self) -> bytes:
        return b"".join(piece if isinstance(piece, bytes) else raw(piece) for piece in self.pieces)

    @property
    def size(self) -> int:
        return len(self.content)

    def digest(self, parts: Sequence[memoryview], offset: int) -> list[int]:
        data = b"".join(parts)
        self.digested[offset : offset + len(data)] = data
        return [hash(data[:end]) for end in accumulate(map(len, parts))]

    def write(self, data: memoryview, offset: int) -> None:
        self.before_write(offset)
        self.written[offset : offset + len(data)] = data
        with self.lock:
            self.to_come -= len(data)

    def sync(self) -> None:
        assert self.to_come == 0, "synced before all of it was written"
        self.synced += 1
        self.on_sync()


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool that has all of its memory back in the end."""
    pool = Pool(Arena(64 * BLOCK_BYTES))
    yield pool
    training_waits = threading.Event()
    training_waits.set()
    for _ in range(pool.bytes // BLOCK_BYTES):
        assert pool.take(training_waits, threading.Event()) is not None, "a block was not given back"


def hurry_that_is(on: bool) -> threading.Event:
    training_waits = threading.Event()
    if on:
        training_waits.set()
    return training_waits


def stream_of(files: Sequence[File], pool: Pool, hurried: bool = False, **names: torch.Tensor) -> Stream:
    training_waits = hurry_that_is(hurried)
    return Stream(files, files, pool, training_waits, by_pointer(names))


def by_pointer(names: Mapping[str, torch.Tensor]) -> Callable[[torch.Tensor], str]:
    known = {tensor.data_ptr(): name for name, tensor in names.items()}
    return lambda tensor: known.get(tensor.data_ptr(), "a tensor")


def arrives(files: Sequence[File], pool: Pool, hurried: bool = False) -> bool:
    """Tells if the bytes of all files are written as they are, and digested as they are."""
    stream = stream_of(files, pool, hurried)
    stream.read()
    stream.finish()
    expected = [file.content for file in files]
    assert [bytes(file.digested) for file in files] == expected
    assert [file.synced for file in files] == [min(1, len(content)) for content in expected]
    return [bytes(file.written) for file in files] == expected


def random_bytes(size: int) -> torch.Tensor:
    torch.manual_seed(size)
    return torch.empty(size // 8 + 1, dtype=torch.int64).random_().view(torch.uint8)[:size]


SIZES = (0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES - 7)


@pytest.mark.parametrize("before", [b"", b"a head"])
@pytest.mark.parametrize("size", SIZES)
def test_a_file_of_any_size_arrives(pool: Pool, size: int, before: bytes) -> None:
    assert arrives([File([before, random_bytes(size)])], pool)


def test_bytes_that_are_no_tensor_may_be_longer_than_a_block(pool: Pool) -> None:
    assert arrives([File([random_bytes(BLOCK_BYTES + 5).numpy().tobytes(), b"end"])], pool)


def test_several_files_arrive_beside_each_other(pool: Pool) -> None:
    sizes = (5, 0, 2 * BLOCK_BYTES + 1, 300)
    files = [File([b"head", random_bytes(size), random_bytes(size + 1), b"", random_bytes(3)]) for size in sizes]
    assert arrives([*files, File([])], pool)


@pytest.mark.parametrize("hurried", [False, True])
def test_a_snapshot_larger_than_its_memory_arrives(pool: Pool, hurried: bool) -> None:
    assert arrives([File([random_bytes((RING_BLOCKS + 3) * BLOCK_BYTES + 11)])], pool, hurried)


def test_a_second_snapshot_of_the_same_form_has_what_is_there_then(pool: Pool) -> None:
    tensors = [random_bytes(size) for size in (300, BLOCK_BYTES, 70_000)]
    assert arrives([File([b"head", *tensors])], pool)
    for tensor in tensors:
        tensor.bitwise_not_()
    assert arrives([File([b"HEAD", *tensors])], pool)


def test_tensors_of_every_kind_arrive_in_the_order_of_their_indices(pool: Pool) -> None:
    turned = torch.randn(30, 20)
    pieces: list[torch.Tensor] = [
        torch.randn(()),
        torch.zeros(3, 0),
        torch.randn(7).to(torch.bfloat16),
        torch.randn(5) > 0,
        torch.randn(4, dtype=torch.complex64),
        torch.randn(4, dtype=torch.complex64).conj(),
        torch.randn(4, dtype=torch.complex64).conj().imag,  # negated when it is read
        turned.T,
        turned[3:, ::2],
        torch.arange(3).expand(4, 3),
        torch.randn(2, 3, 5, 4).to(memory_format=torch.channels_last),
        torch.nn.Parameter(torch.randn(6)),
    ]
    assert arrives([File([b"odd", *pieces])], pool)


def written_after_the_first_reading(change: Callable[[], object], *tensors: torch.Tensor) -> File:
    """A file whose last blocks find memory only when a first one is on the disk; by then, `change` has been called."""
    changed = threading.Event()

    def before_write(offset: int) -> None:
        if offset == 0:
            change()
            changed.set()
        assert changed.wait(30)

    return File(tensors, before_write=before_write)


@pytest.mark.parametrize("place", [0, BLOCK_BYTES - 65])
def test_a_write_between_the_two_readings_names_the_tensor(pool: Pool, place: int) -> None:
    tensor = random_bytes((RING_BLOCKS + 2) * BLOCK_BYTES)
    still = random_bytes(64)  # in the same block of memory
    file = written_after_the_first_reading(lambda: tensor.data[place].add_(1), still, tensor)
    stream = stream_of([file], pool, weight=tensor, still=still)
    with pytest.raises(TornError) as torn:
        stream.read()
    stream.close()
    assert torn.value.names == ("weight",)


def test_a_write_into_one_that_is_out_of_order_is_seen_too(pool: Pool) -> None:
    turned, still = torch.randn(30, 20).T, torch.randn(40)
    stream = stream_of([File([b"head", still, turned])], pool, turned=turned, still=still)
    turned.data[3, 4] += 1
    with pytest.raises(TornError) as torn:
        stream.read()
    stream.close()
    assert torn.value.names == ("turned",)


def test_one_whose_name_is_not_known_is_reported_all_the_same(pool: Pool) -> None:
    turned = torch.randn(30, 20).T
    stream = stream_of([File([turned])], pool)
    turned.data.mul_(2)
    with pytest.raises(TornError, match=r"^a tensor: written outside"):
        stream.read()
    stream.close()


def test_what_is_copied_while_training_stands_still_is_not_read_again(pool: Pool) -> None:
    tensor = random_bytes((RING_BLOCKS + 2) * BLOCK_BYTES)
    file = written_after_the_first_reading(lambda: tensor[0].add_(1), tensor)
    stream = stream_of([file], pool, hurried=True)
    stream.read()
    stream.finish()


def test_what_is_read_after_training_has_gone_on_is_read_again(pool: Pool) -> None:
    tensor, training_waits = random_bytes((RING_BLOCKS + 1) * BLOCK_BYTES), hurry_that_is(True)
    more = random_bytes(RING_BLOCKS * BLOCK_BYTES)  # it finds memory only when all of the first is on the disk

    def before_write(offset: int) -> None:
        if offset == 0:
            training_waits.clear()  # no memory has come back before that, so the last chunk is read live
            on.set()
        assert on.wait(30)
        if offset == RING_BLOCKS * BLOCK_BYTES:
            tensor[offset].add_(1)
            changed.set()
        elif offset > RING_BLOCKS * BLOCK_BYTES:
            assert changed.wait(30)

    on, changed = threading.Event(), threading.Event()
    file = File([tensor, more], before_write=before_write)
    stream = Stream([file], [file], pool, training_waits, by_pointer({"weight": tensor, "more": more}))
    with pytest.raises(TornError) as torn:
        stream.read()
    stream.close()
    assert torn.value.names == ("weight",)


class Watched(torch.Tensor):
    """A tensor that tells when its bytes are about to be copied."""

    on_copy: Callable[[], object]

    def data_ptr(self) -> int:
        self.on_copy()
        return super().data_ptr()


def test_what_was_being_copied_when_training_went_on_is_read_again(pool: Pool) -> None:
    training_waits = hurry_that_is(True)
    tensor = random_bytes(BLOCK_BYTES)
    watched = tensor.as_subclass(Watched)
    watched.on_copy = training_waits.clear
    more = random_bytes(RING_BLOCKS * BLOCK_BYTES)  # the last of it finds memory when the first block has been written
    changed = threading.Event()

    def before_write(offset: int) -> None:
        if offset == 0:
            tensor[5].add_(1)
            changed.set()
        assert changed.wait(30)

    file = File([watched, more], before_write=before_write)
    stream = Stream([file], [file], pool, training_waits, by_pointer({"weight": tensor}))
    with pytest.raises(TornError):
        stream.read()
    stream.close()


@pytest.mark.parametrize("spare", [0, -2])
def test_on_few_processors_the_writers_wait_for_the_readers_as_long_as_there_is_memory(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, spare: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    blocks, taken = RING_BLOCKS + 4, []
    pool.grow((blocks + spare) * BLOCK_BYTES)
    file = File([random_bytes(blocks * BLOCK_BYTES)], before_write=lambda offset: taken.append(stream._next_read))
    stream = stream_of([file], pool, hurried=True)
    stream.read()
    stream.finish()
    assert min(taken) == blocks + spare and bytes(file.written) == file.content


def test_the_writers_keep_to_their_pace(pool: Pool) -> None:
    file = File([random_bytes(4 * BLOCK_BYTES)])
    begun = time.monotonic()
    stream = Stream([file], [file], pool, hurry_that_is(False), by_pointer({}), throttle=Throttle(10 * BLOCK_BYTES))
    stream.read()
    stream.finish()
    assert time.monotonic() - begun >= 0.3
    assert bytes(file.written) == file.content


@pytest.mark.parametrize("hurried", [False, True])
@pytest.mark.parametrize("bad", [0, RING_BLOCKS + 1])
def test_a_disk_that_takes_no_more_is_an_error_and_the_memory_comes_back(pool: Pool, bad: int, hurried: bool) -> None:
    full = OSError(28, "No space left on device")

    def before_write(offset: int) -> None:
        if offset == bad * BLOCK_BYTES:
            raise full

    file = File([random_bytes((RING_BLOCKS + 4) * BLOCK_BYTES)], before_write=before_write)
    stream = stream_of([file], pool, hurried)
    with pytest.raises(OSError) as raised:
        stream.read()
        stream.finish()
    stream.close()
    assert raised.value is full
    assert arrives([File([random_bytes(5)])], pool), "the next save is as good as ever"


def test_a_sync_that_fails_is_an_error(pool: Pool) -> None:
    def fail() -> None:
        raise OSError(5, "Input/output error")

    stream = stream_of([File([b"fine"]), File([b"lost"], on_sync=fail), File([b"fine too"])], pool)
    with pytest.raises(OSError, match="Input/output error"):
        stream.read()
        stream.finish()
    stream.close()


class Unreadable(torch.Tensor):
    """A tensor whose memory is gone."""

    def data_ptr(self) -> int:
        raise MemoryError


def test_what_cannot_be_copied_is_an_error_and_the_memory_comes_back(pool: Pool) -> None:
    stream = stream_of(
        [File([random_bytes(2 * BLOCK_BYTES), torch.ones(1 << 20).as_subclass(Unreadable), random_bytes(9)])], pool
    )
    with pytest.raises(MemoryError):
        stream.read()
    stream.close()


def test_one_that_is_closed_half_way_gives_its_memory_back(pool: Pool) -> None:
    stream = stream_of([File([random_bytes(2 * BLOCK_BYTES)])], pool)
    stream.read()
    stream.close()
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("holdfast-write")]


class SlowDisk:
    """Takes nothing until it is let go."""

    def __init__(self, blocks: int) -> None:
        self._go = threading.Event()
        self.file = File([random_bytes(blocks * BLOCK_BYTES)], before_write=lambda offset: self._go.wait(30))

    def let_go(self) -> None:
        self._go.set()


def test_the_reserve_is_used_when_training_comes_to_the_gate_and_not_before(pool: Pool) -> None:
    pool.grow((RING_BLOCKS + 4) * BLOCK_BYTES)
    disk, training_waits = SlowDisk(RING_BLOCKS + 3), threading.Event()
    stream = Stream([disk.file], [disk.file], pool, training_waits, by_pointer({}))
    reading = threading.Thread(target=stream.read, daemon=True)
    reading.start()
    reading.join(0.3)
    assert reading.is_alive(), "more than the ring was used while nobody waited"
    training_waits.set()
    reading.join(30)
    assert not reading.is_alive(), "the disk takes nothing, and there is memory enough"
    assert not stream.streamed
    disk.let_go()
    stream.finish()
    assert bytes(disk.file.written) == disk.file.content


@pytest.mark.parametrize(("hurried", "more", "streamed"), [(True, 1, True), (True, 0, False), (False, 1, False)])
def test_it_is_said_when_training_had_to_wait_for_the_disk(
    pool: Pool, hurried: bool, more: int, streamed: bool
) -> None:
    file = File([random_bytes((RING_BLOCKS + more) * BLOCK_BYTES)])
    stream = stream_of([file], pool, hurried)
    if streamed:
        file.before_write = lambda offset: wait_until(lambda: stream.streamed)
    stream.read()
    stream.finish()
    assert stream.streamed is streamed
