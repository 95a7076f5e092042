"""A plain loop and its data: lines that it hears, and what is refused before anything is changed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Sampler

from holdfast import Checkpointer
from holdfast.errors import CheckpointError

SAMPLES = 12


class Backwards(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        yield from reversed(range(SAMPLES))

    def __len__(self) -> int:
        return SAMPLES


class Position:
    """The position of a loop in data of its own."""

    at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


def loader(batch: int = 2, **options: Any) -> DataLoader[Any]:
    return DataLoader(list(range(SAMPLES)), batch_size=batch, **options)  # type: ignore[arg-type]


class Run:
    """One start of a loop, which may look one batch ahead; its samples and lines."""

    def __init__(self, out: Path, until: int, data: Any = None, *, looks_ahead: bool = False, **options: Any) -> None:
        torch.manual_seed(1)
        model = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters())
        self.lines: list[str] = []
        self.samples: list[int] = []
        with Checkpointer(out, model=model, optimizer=optimizer, data=data, say=self.lines.append, **options) as ckpt:
            if data is None:
                for _ in range(ckpt.resume(), until):
                    self._train(ckpt, optimizer)
                ckpt.save(wait=True)
                return
            batches = ckpt.batches(until=until)
            ahead = [next(batches)] if looks_ahead else []
            for batch in batches:
                ahead.append(batch)
                self.samples += ahead.pop(0).tolist()
                self._train(ckpt, optimizer)
            ckpt.save(wait=True)

    def _train(self, ckpt: Checkpointer, optimizer: torch.optim.Optimizer) -> None:
        optimizer.step()
        ckpt.step()

    @property
    def of_data(self) -> list[str]:
        return [line for line in self.lines if line.startswith("data: ")]


def requires(out: Path, step: int) -> Any:
    return json.loads((out / f"checkpoint-{step}" / "MANIFEST.json").read_text()).get("requires")


def test_a_loop_that_looks_ahead_hears_it_once_and_goes_on_where_its_steps_were(tmp_path: Path) -> None:
    first = Run(tmp_path, 3, loader(shuffle=True), looks_ahead=True)
    assert len(first.of_data) == 1
    assert "the loop has taken 1 more from batches() than its steps used" in first.of_data[0]
    second = Run(tmp_path, 5, loader(shuffle=True), looks_ahead=True)
    assert len(set(first.samples + second.samples)) == 10
    assert requires(tmp_path, 3) is None


def test_what_is_inside_the_data_needs_a_reader_that_knows_it(tmp_path: Path) -> None:
    class Shuffled(Backwards):
        generator = None

        def __init__(self) -> None:
            self.mine = torch.Generator().manual_seed(3)

        def __iter__(self) -> Iterator[int]:
            yield from torch.randperm(SAMPLES, generator=self.mine).tolist()

    first = Run(tmp_path, 8, loader(sampler=Shuffled()))
    second = Run(tmp_path, 12, loader(sampler=Shuffled()))
    assert sorted(first.samples[SAMPLES:] + second.samples) == list(range(SAMPLES))
    assert requires(tmp_path, 8) == ["data"]
    assert first.of_data == second.of_data == []


def test_a_loop_without_data_hears_at_a_resume_that_the_position_is_not_saved(tmp_path: Path) -> None:
    line = "data: the position in it is not saved: give data= and take batches(), or give what knows it as a part"
    assert Run(tmp_path / "none", 2).of_data == []
    assert Run(tmp_path / "none", 4).of_data == [line]
    for out, part in (("position", {"position": Position()}), ("random", {"noise": torch.Generator()})):
        Run(tmp_path / out, 2, **part)
        assert Run(tmp_path / out, 4, **part).of_data == []


def test_a_position_that_is_only_there_or_only_here_is_named(tmp_path: Path) -> None:
    Run(tmp_path, 2, loader())
    assert Run(tmp_path, 4).of_data == [
        "data: the checkpoint has a position in it, and this loop has no data=: the loop begins where it likes"
    ]
    assert Run(tmp_path, 6, loader()).of_data == [
        "data: the checkpoint has no position in it: it begins with its first epoch"
    ]


def test_other_batches_go_on_in_the_order_or_are_refused_by_name(tmp_path: Path) -> None:
    first = Run(tmp_path / "known", 2, loader(shuffle=True))
    second = Run(tmp_path / "known", 3, loader(5, shuffle=True, drop_last=True))
    assert second.of_data == [
        "data: the rest of the epoch is shared out anew (3 of its samples are cut off, too few for a batch)"
    ]
    assert len(set(first.samples + second.samples)) == SAMPLES - 3

    Run(tmp_path / "unknown", 2, loader(sampler=Backwards()))
    with pytest.raises(CheckpointError, match=r"batch_size is 3 and was 2, and the order of a Backwards cannot be"):
        Run(tmp_path / "unknown", 4, loader(3, sampler=Backwards()))
    third = Run(tmp_path / "unknown", 4, loader(3, sampler=Backwards()), strict=False)
    assert any("the order of a Backwards cannot be computed again" in line for line in third.of_data)
