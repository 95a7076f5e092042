"""Resuming a plain loop from checkpoints that are damaged, found out while their tensors arrive in live memory."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn, optim

from helpers.parts import same
from holdfast import Checkpointer
from holdfast.errors import CheckpointError, DamagedCheckpointError, NoCheckpointError
from holdfast.run.directory import RunDirectory
from holdfast.store import catalog, reading

WEIGHTS = "model.safetensors"


class Loop:
    """A model and its optimizer, under a checkpointer."""

    def __init__(self, root: Path, width: int = 6, *, strict: bool = True, resume: str | bool = "auto") -> None:
        self.model = nn.Linear(4, width)
        self.optimizer = optim.AdamW(self.model.parameters())
        self.said: list[str] = []
        self.ckpt = Checkpointer(
            root,
            model=self.model,
            optimizer=self.optimizer,
            strict=strict,
            resume=resume,
            say=self.said.append,
            dynamic_checkpoint={"enabled": False},
        )

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.model(torch.ones(2, 4)).square().sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.ckpt.step()
            self.ckpt.save(wait=True)

    def state(self) -> dict[str, torch.Tensor]:
        tensors = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}
        for name, parameter in self.model.named_parameters():
            tensors |= {f"{name}/{key}": value.clone() for key, value in self.optimizer.state[parameter].items()}
        return tensors


@pytest.fixture
def states(tmp_path: Path) -> list[dict[str, torch.Tensor]]:
    """The states of three checkpoints in `tmp_path`, of the steps 1 to 3."""
    saved = []
    loop = Loop(tmp_path)
    with loop.ckpt:
        loop.ckpt.resume()
        for _ in range(3):
            loop.train(1)
            saved.append(loop.state())
    return saved


def resumed(root: Path, **how: object) -> tuple[int, Loop]:
    loop = Loop(root, **how)  # type: ignore[arg-type]
    with loop.ckpt:
        step = loop.ckpt.resume()
    return step, loop


def flip(path: Path, place: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def cut_and_filled(path: Path) -> None:
    size = path.stat().st_size
    os.truncate(path, size - 8)
    os.truncate(path, size)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "last bit of the weights": (lambda path: flip(path / WEIGHTS), f"{WEIGHTS}: its bytes have changed"),
    "name in the header": (lambda path: flip(path / WEIGHTS, 12), f"{WEIGHTS}: its bytes have changed"),
    "length of the header": (lambda path: flip(path / WEIGHTS, 1), f"{WEIGHTS}: its bytes have changed"),
    "state of the optimizer": (lambda path: flip(path / "optimizer.safetensors"), "optimizer.safetensors: its bytes"),
    "zeros at the end": (lambda path: cut_and_filled(path / WEIGHTS), f"{WEIGHTS}: its bytes have changed"),
    "JSON": (lambda path: flip(path / "optimizer.json", 30), "optimizer.json: its bytes have changed"),
    "random state": (lambda path: flip(path / "random.json", 30), "random.json: its bytes have changed"),
    "no file": (lambda path: (path / WEIGHTS).unlink(), f"{WEIGHTS}: is missing"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_fault_15_a_resume_goes_on_from_the_newest_whole_checkpoint_whatever_it_has_read_before(
    tmp_path: Path, states: list[dict[str, torch.Tensor]], kind: str
) -> None:
    """Bits are flipped in every kind of file of the two newest checkpoints, or one is taken away."""
    damage, problem = DAMAGE[kind]
    damage(tmp_path / "checkpoint-3")
    damage(tmp_path / "checkpoint-2")
    step, loop = resumed(tmp_path)
    assert step == 1 and same(loop.state(), states[0])
    said = [line for line in loop.said if line.startswith(("skipped", "resumed"))]
    assert [line.split(": ")[0] for line in said] == [
        "skipped checkpoint-3",
        "skipped checkpoint-2",
        f"resumed from {tmp_path / 'checkpoint-1'}",
    ]
    assert all(problem in line for line in said[:2])


def test_what_goes_on_from_an_older_checkpoint_says_so_in_what_it_saves(
    tmp_path: Path, states: list[dict[str, torch.Tensor]]
) -> None:
    flip(tmp_path / "checkpoint-3" / WEIGHTS)
    loop = Loop(tmp_path)
    with loop.ckpt:
        assert loop.ckpt.resume() == 2
        loop.train(1)
    entries = {entry.path.name: entry.manifest for entry in catalog.entries(tmp_path)}
    new, old, superseded = entries["checkpoint-3"], entries["checkpoint-2"], catalog.entries(tmp_path)[-1]
    assert new is not None and old is not None and superseded is not None
    assert new.parent == old.attempt and new.run == old.run and same(loop.state(), states[2])
    assert '"event": "fell_back"' in RunDirectory.open(tmp_path).journal.path.read_text()


def test_a_named_checkpoint_that_is_damaged_is_refused_and_no_other_taken(
    tmp_path: Path, states: list[dict[str, torch.Tensor]]
) -> None:
    flip(tmp_path / "checkpoint-3" / WEIGHTS)
    loop = Loop(tmp_path, resume=str(tmp_path / "checkpoint-3"))
    with (
        pytest.raises(DamagedCheckpointError, match=r"model\.safetensors: its bytes have changed") as raised,
        loop.ckpt,
    ):
        loop.ckpt.resume()
    assert raised.value.exit_code == 3 and "overwritten in part" in (raised.value.hint or "")


def test_when_no_checkpoint_is_whole_the_error_says_that_the_live_state_is_worth_nothing(
    tmp_path: Path, states: list[dict[str, torch.Tensor]]
) -> None:
    for step in (1, 2, 3):
        flip(tmp_path / f"checkpoint-{step}" / WEIGHTS)
    with pytest.raises(NoCheckpointError, match=r"none of the 3 checkpoints .* is no state to train from"):
        resumed(tmp_path)


@pytest.mark.parametrize("kind", ["name in the header", "length of the header", "JSON", "random state"])
def test_damage_that_shows_before_the_tensors_changes_nothing(
    tmp_path: Path, states: list[dict[str, torch.Tensor]], kind: str
) -> None:
    DAMAGE[kind][0](tmp_path / "checkpoint-3")
    loop = Loop(tmp_path, resume=str(tmp_path / "checkpoint-3"))
    before = loop.state()
    with pytest.raises(DamagedCheckpointError), loop.ckpt:
        loop.ckpt.resume()
    assert same(loop.state(), before)


def test_a_model_that_does_not_fit_is_told_so_and_nothing_of_it_is_written(
    tmp_path: Path, states: list[dict[str, torch.Tensor]]
) -> None:
    loop = Loop(tmp_path, width=7)
    before = loop.state()
    with pytest.raises(CheckpointError, match=r"weight 'weight' is float32 \[6, 4\] in the checkpoint") as raised:
        loop.ckpt.resume()
    loop.ckpt.close()
    assert not isinstance(raised.value, DamagedCheckpointError) and same(loop.state(), before)


def test_what_does_not_fit_stays_as_it_is_though_a_damaged_checkpoint_was_read_first(
    tmp_path: Path, states: list[dict[str, torch.Tensor]]
) -> None:
    flip(tmp_path / "checkpoint-3" / "optimizer.safetensors")
    flip(tmp_path / "checkpoint-2" / WEIGHTS)
    loop = Loop(tmp_path, width=7, strict=False)
    before = loop.model.weight.detach().clone()
    with loop.ckpt:
        assert loop.ckpt.resume() == 1
    assert same(loop.model.weight.detach(), before)


def test_the_weights_arrive_in_the_memory_where_they_were(
    tmp_path: Path, states: list[dict[str, torch.Tensor]]
) -> None:
    loop = Loop(tmp_path)
    pointers = [parameter.data_ptr() for parameter in loop.model.parameters()]
    with loop.ckpt:
        loop.ckpt.resume()
    assert [parameter.data_ptr() for parameter in loop.model.parameters()] == pointers and same(loop.state(), states[2])


def test_a_training_that_goes_back_keeps_the_memory_of_its_optimizer(
    tmp_path: Path, states: list[dict[str, torch.Tensor]]
) -> None:
    _, loop = resumed(tmp_path)
    pointers = [tensor.data_ptr() for moments in loop.optimizer.state.values() for tensor in moments.values()]
    first = str(tmp_path / "checkpoint-1")
    with Checkpointer(tmp_path, model=loop.model, optimizer=loop.optimizer, resume=first, say=loop.said.append) as ckpt:
        assert ckpt.resume() == 1
    assert [tensor.data_ptr() for moments in loop.optimizer.state.values() for tensor in moments.values()] == pointers
    assert len(pointers) == 6 and same(loop.state(), states[0])


def test_state_that_a_checkpoint_has_otherwise_or_not_at_all_is_not_kept(
    tmp_path: Path, states: list[dict[str, torch.Tensor]]
) -> None:
    _, loop = resumed(tmp_path)
    for moments in loop.optimizer.state.values():
        moments.update(exp_avg=moments["exp_avg"].double(), extra=torch.ones(3))
    first = str(tmp_path / "checkpoint-1")
    with Checkpointer(tmp_path, model=loop.model, optimizer=loop.optimizer, resume=first, say=loop.said.append) as ckpt:
        ckpt.resume()
    assert same(loop.state(), states[0])


class Shadow:
    """An average that a loop keeps by hand, and what else a state may be made of."""

    def __init__(self) -> None:
        self.state: dict[str, torch.Tensor] = {
            "large": torch.arange(40_000.0),
            "turned": torch.arange(6.0).reshape(2, 3).t(),
            "coo": torch.eye(3).to_sparse(),
            "csr": torch.eye(3).to_sparse_csr(),
            "empty": torch.zeros(0, 3),
            "none sparse": torch.zeros(2, 2).to_sparse(),
        }

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.state

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.state = state


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_a_script_that_makes_its_tensors_elsewhere_by_default_resumes_as_any(tmp_path: Path) -> None:
    states: list[dict[str, torch.Tensor]] = []
    for _ in range(2):
        model, shadow = nn.Linear(4, 6), Shadow()
        optimizer = optim.AdamW(model.parameters())
        ckpt = Checkpointer(
            tmp_path, model=model, optimizer=optimizer, shadow=shadow, dynamic_checkpoint={"enabled": False}
        )
        if states:
            torch.set_default_device("meta")  # as others have "cuda"
            shadow.state = {}
        try:
            with ckpt:
                if not ckpt.resume():
                    model(torch.ones(2, 4)).square().sum().backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    ckpt.step()
                    ckpt.save(wait=True)
        finally:
            torch.set_default_device(None)
        moments = optimizer.state[model.weight]
        states.append({"weight": model.weight.detach(), **moments, **shadow.state})
    assert same(states[0], states[1])


def test_an_error_of_reading_itself_comes_out_of_resume(
    tmp_path: Path, states: list[dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(reading, "read", fail)
    with pytest.raises(MemoryError):
        resumed(tmp_path)


MEASURED = """
import resource, sys, torch
from torch import nn, optim
from holdfast import Checkpointer
from holdfast.loop import restore

root, way, helpers = sys.argv[1:]
if way == "a card":
    sys.path.insert(0, helpers)
    from helpers.paper import Paper
    restore.device_in_use = lambda: Paper("lazy")
model = nn.Sequential(*(nn.Linear(4096, 2048, bias=False) for _ in range(3)))
optimizer = optim.AdamW(model.parameters())
parts, off = {"model": model, "optimizer": optimizer}, {"enabled": False}
with Checkpointer(root, **parts, say=lambda line: None, dynamic_checkpoint=off) as ckpt:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ckpt.resume()
    state = sum(t.nbytes for moments in optimizer.state.values() for t in moments.values())
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before - (state >> 10)) >> 10)
"""


def test_a_training_is_loaded_without_a_second_copy_of_it_on_the_host_and_through_a_small_ring_on_cards(
    tmp_path: Path,
) -> None:
    model = nn.Sequential(*(nn.Linear(4096, 2048, bias=False) for _ in range(3)))
    optimizer = optim.AdamW(model.parameters())
    off = {"enabled": False}
    with Checkpointer(tmp_path, model=model, optimizer=optimizer, dynamic_checkpoint=off) as ckpt:
        ckpt.resume()
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        ckpt.step()
        ckpt.save(wait=True)
    extra = {}
    for way in ("the host", "a card"):
        argv = [sys.executable, "-c", MEASURED, str(tmp_path), way, str(Path(__file__).parents[1])]
        extra[way] = int(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
    # MiB, beside a state of 288: the blocks of the readers or the ring, and what they import.
    assert extra["the host"] < 128 and extra["a card"] < 128, extra
