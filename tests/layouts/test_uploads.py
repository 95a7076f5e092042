"""The reading of a checkpoint into the memory of cards: of paper, which run copies as late as the order allows."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim

from helpers import parts
from helpers.paper import POLICIES, CardLostError, Paper
from helpers.parts import same
from helpers.shards import committed, local, place
from holdfast import Checkpointer
from holdfast.errors import DamagedCheckpointError, HoldfastError
from holdfast.layouts import native, native_reading, pieces, uploads
from holdfast.layouts.uploads import Uploads
from holdfast.state.part import Stored
from holdfast.store import catalog, reading
from holdfast.store.digest import BLOCK_BYTES

MODEL = Stored({}, {"kind": "model", "frozen": [], "evaluating": [], "extra": {}})
# A ring of five is used again by ten blocks. Small tensors share a block; "d" begins in the middle of one.
SIZES = {"a": 5 * BLOCK_BYTES + 12, "b": 40, "c": 4, "d": 4 * BLOCK_BYTES, "e": 1000}


def content_of(name: str) -> torch.Tensor:
    chance = torch.Generator().manual_seed(len(name) + ord(name[0]))
    return torch.randint(-(1 << 31), 1 << 31, (SIZES[name] // 4,), dtype=torch.int32, generator=chance)


STATE = {name: content_of(name) for name in SIZES}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint")
    for image in native.images([("model", STATE, MODEL)], {}):
        (directory / image.path).write_bytes(parts.content(image))
    return directory


@pytest.fixture(autouse=True)
def small_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "RING_BLOCKS", reading.READERS + 1)


def zeros() -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in STATE.items()}


def read_into(live: dict[str, torch.Tensor], checkpoint: Path, device: Paper) -> None:
    stored, _ = parts.read(checkpoint, memory={"model": live}, device=device)
    assert {name: tensor.data_ptr() for name, tensor in stored["model"].tensors.items()} == {
        name: tensor.data_ptr() for name, tensor in live.items()
    }


def is_right(checkpoint: Path, policy: str, seed: int = 0) -> bool:
    """Reads onto two cards whose training has still to write what it began with, and tells if all is as saved."""
    live, device = zeros(), Paper(policy, seed, cards=2)
    for tensor in live.values():
        device.write(tensor, 7)
    read_into(live, checkpoint, device)
    is_there = same(live, STATE)
    device.finish()
    return is_there and same(live, STATE) and device.registered == []


@pytest.mark.parametrize("policy", POLICIES)
def test_what_was_saved_is_on_the_cards_at_the_end_in_whatever_order_they_work(checkpoint: Path, policy: str) -> None:
    assert is_right(checkpoint, policy)


def test_the_ring_s_memory_is_gone_when_it_is_closed() -> None:
    device = Paper("eager")
    ring = Uploads(device, "a checkpoint")
    ring.send(ring.take(), [])
    [(address, _)] = device.registered
    assert is_mapped(address)
    ring.close()
    del ring
    gc.collect()
    assert not is_mapped(address)


def is_mapped(address: int) -> bool:
    ranges = (line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines())
    return any(int(begin, 16) <= address < int(end, 16) for begin, end in ranges)


def test_a_block_that_is_read_into_before_its_copies_are_over_is_seen(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Uploads.take

    def at_once(self: Uploads) -> memoryview:
        with self._lock:
            self._under_way = type(self._under_way)((block, ()) for block, _ in self._under_way)
        return take(self)

    monkeypatch.setattr(Uploads, "take", at_once)
    assert not is_right(checkpoint, "lazy")


def test_an_end_before_the_copies_are_over_is_seen(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Uploads, "finish", lambda self: None)
    assert not is_right(checkpoint, "lazy")


def test_copies_that_do_not_come_behind_trainings_work_are_seen(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Uploads, "begin", lambda self: None)
    assert not is_right(checkpoint, "ours first")


def test_what_is_with_the_host_is_read_there_and_what_lies_otherwise_as_ever(checkpoint: Path) -> None:
    live, device = zeros(), Paper("lazy")
    device.place(live["a"], None)
    live["b"] = torch.zeros(10, 2, dtype=torch.int32)[:, 0]
    stored, _ = parts.read(checkpoint, memory={"model": live}, device=device)
    tensors = stored["model"].tensors
    assert same(dict(tensors), STATE)
    assert tensors["a"].data_ptr() == live["a"].data_ptr() and tensors["b"].data_ptr() != live["b"].data_ptr()


@pytest.fixture
def of_the_host(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of tensors that memory of the host is taken for."""
    names: list[str] = []
    new_memory = pieces.new_memory

    def noting(name: str, *given: Any) -> torch.Tensor:
        names.append(name)
        return new_memory(name, *given)

    monkeypatch.setattr(pieces, "new_memory", noting)
    return names


def test_what_lies_otherwise_on_a_card_comes_through_the_host_a_little_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_the_host: list[str]
) -> None:
    state = {name: torch.rand(256, 64, generator=torch.Generator().manual_seed(ord(name))) for name in "abcd"}
    for image in native.images([("model", state, MODEL)], {}):
        (tmp_path / image.path).write_bytes(parts.content(image))
    monkeypatch.setattr(native_reading, "_TOGETHER_BYTES", 2 * state["a"].nbytes)
    live = {name: torch.zeros(64, 256).t() if name in "abd" else torch.zeros(256, 64) for name in state}
    turns: list[list[str]] = []
    read = pieces.PiecesReader.read

    def noting(self: pieces.PiecesReader, **how: Any) -> None:
        turns.append(of_the_host[sum(map(len, turns)) :])
        read(self, **how)

    monkeypatch.setattr(pieces.PiecesReader, "read", noting)
    read_into(live, tmp_path, Paper("lazy"))
    assert turns == [[], ["a", "b"], ["d"]]
    assert all(torch.equal(live[name], tensor) for name, tensor in state.items())


def test_where_a_card_has_no_memory_left_for_an_optimizers_state_it_goes_through_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_the_host: list[str]
) -> None:
    state = {name: torch.full((256, 64), float(ord(name))) for name in "ab"}
    for image in native.images([("model", state, MODEL)], {}):
        (tmp_path / image.path).write_bytes(parts.content(image))
    empty = torch.empty

    def full(*shape: Any, **how: Any) -> torch.Tensor:
        if isinstance(how.get("device"), torch.device):  # that of the tensor beside which it is to be
            raise torch.OutOfMemoryError("the paper is full")
        return empty(*shape, **how)

    beside = {name: torch.zeros(1) for name in state}
    monkeypatch.setattr(torch, "empty", full)
    stored, _ = parts.read(tmp_path, device=Paper("lazy"), neighbors=lambda part, rest: beside)
    assert same(dict(stored["model"].tensors), state) and of_the_host == ["a", "b"]


def test_tensors_of_every_kind_come_onto_cards(tmp_path: Path) -> None:
    kinds = ("bfloat16", "float8_e4m3fn", "float8_e8m0fnu", "bool", "complex64", "int8", "int64", "float16")
    state = {kind: torch.arange(64, dtype=torch.uint8).fmod(2).view(getattr(torch, kind)) for kind in kinds}
    state |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "sparse": torch.eye(3).to_sparse()}
    for image in native.images([("model", state, MODEL)], {}):
        (tmp_path / image.path).write_bytes(parts.content(image))
    live = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    stored, _ = parts.read(tmp_path, memory={"model": live}, device=Paper("lazy", cards=2))
    tensors = stored["model"].tensors
    assert same(dict(sorted(tensors.items())), dict(sorted(state.items())))
    assert {name for name, tensor in live.items() if name not in kinds and same(tensor, state[name])} == {
        "scalar",
        "empty",
    }
    assert all(same(live[name], state[name]) for name in kinds)


@pytest.mark.parametrize("rank", range(3))
def test_what_other_numbers_of_processes_have_cut_comes_to_the_cards_of_this_one(tmp_path: Path, rank: int) -> None:
    state = {name: torch.rand(11, 7, generator=torch.Generator().manual_seed(ord(name))) for name in "abc"}
    written = committed(tmp_path, [("model", state, MODEL)], {"a": (4, 1), "b": (2, 2)}, 4)
    manifest = catalog.read(written).manifest
    assert manifest is not None
    ranges = {name: place((11, 7), cut, rank) for name, cut in {"a": (3, 1), "b": (1, 3)}.items()}
    mine = {name: local(tensor, ranges[name]) if name in ranges else tensor for name, tensor in state.items()}
    live = {name: torch.zeros(tensor.shape) for name, tensor in mine.items()}
    stored, _ = parts.read(
        written,
        [file.path for file in manifest.files],
        tensors=manifest.tensors,
        places=lambda part, name, shape: ranges.get(name),
        memory={"model": live},
        device=Paper("lazy", cards=2),
    )
    assert same(live, mine) and same(dict(stored["model"].tensors), mine)


@pytest.fixture
def damaged(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = checkpoint / "model.safetensors"
    place = path.stat().st_size // 2
    files = [parts.listed(checkpoint, entry.name) for entry in checkpoint.iterdir()]
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))
    monkeypatch.setattr(parts, "listed", lambda _, name: next(file for file in files if file.path == name))
    yield checkpoint
    with path.open("r+b") as file:
        file.seek(place)
        file.write(byte)


def test_of_a_block_that_is_damaged_nothing_comes_to_a_card(damaged: Path) -> None:
    live, device = zeros(), Paper("lazy")
    with pytest.raises(DamagedCheckpointError, match=r"model\.safetensors: its bytes have changed"):
        read_into(live, damaged, device)
    for name, tensor in live.items():
        differs = tensor != STATE[name]
        assert not tensor[differs].any()  # what did not arrive is as it was
    assert not device._pending and device.registered == []


class Watched(Paper):
    """Tells what is done with a card that is lost."""

    touched = 0

    def copy(self, *given: Any) -> None:
        self.touched += self.lost
        super().copy(*given)

    def wait(self, event: Any) -> None:
        self.touched += self.lost
        super().wait(event)

    def unregister(self, address: int) -> None:
        self.touched += self.lost


@pytest.mark.parametrize("after", [0, 3, 9])
def test_a_card_that_is_lost_ends_the_reading_and_is_not_touched_again(
    checkpoint: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "READERS", 1)
    device = Watched("lazy")
    device.lose_after(after)
    with pytest.raises(HoldfastError, match=r"a card was lost while .* was read into its memory") as raised:
        read_into(zeros(), checkpoint, device)
    assert isinstance(raised.value.__cause__, CardLostError) and "start the training again" in str(raised.value.hint)
    assert device.touched == 0


class Loop:
    """A model and its optimizer, under a checkpointer."""

    def __init__(self, root: Path, *, strict: bool = True) -> None:
        self.model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.optimizer = optim.AdamW(self.model.parameters())
        self.said: list[str] = []
        self.checkpointer = Checkpointer(
            root,
            model=self.model,
            optimizer=self.optimizer,
            say=self.said.append,
            dynamic_checkpoint={"enabled": False},
            strict=strict,
        )

    def train(self) -> None:
        self.model(torch.ones(2, 4)).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.checkpointer.step()
        self.checkpointer.save(wait=True)

    def state(self) -> dict[str, torch.Tensor]:
        tensors = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}
        for name, parameter in self.model.named_parameters():
            tensors |= {f"{name}/{key}": value.clone() for key, value in self.optimizer.state[parameter].items()}
        return tensors


@pytest.mark.parametrize("strict", [True, False])
def test_a_training_on_cards_takes_nothing_of_its_state_into_the_hosts_memory_when_it_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_the_host: list[str], strict: bool
) -> None:
    first = Loop(tmp_path)
    with first.checkpointer:
        first.checkpointer.resume()
        first.train()
    device = Paper("lazy", cards=2)
    device.refuses_to_register_after = 0
    monkeypatch.setattr("holdfast.loop.restore.device_in_use", lambda: device)
    second = Loop(tmp_path, strict=strict)
    with second.checkpointer:
        assert second.checkpointer.resume() == 1
        assert same(second.state(), first.state())
    # A step is a number that the optimizer counts on the host. Weights are not overwritten where some may be left out.
    weights = set() if strict else {name for name, _ in second.model.named_parameters()}
    assert {name for name in of_the_host if not name.endswith("/step")} == weights
    assert [line for line in second.said if "does not lock" in line] == [
        "read through memory that the driver does not lock, which is slow: the paper takes no 4,194,304 bytes more"
    ]
