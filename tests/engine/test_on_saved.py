"""`on_saved`: a user's function hears of each checkpoint, in the thread that trains, and stops nothing."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.loops import Loop
from helpers.small_trainer import small_trainer, weights
from holdfast import attach
from holdfast.errors import ConfigError
from holdfast.run.request import Answer


class Tracker:
    """Hears of checkpoints, and fails at some."""

    def __init__(self, *fails_at: int) -> None:
        self.fails_at = fails_at
        self.heard: list[tuple[int, tuple[str, ...], bool]] = []

    def __call__(self, answer: Answer) -> None:
        assert threading.current_thread() is threading.main_thread()
        is_there = (Path(answer.path) / "MANIFEST.json").exists() and answer.bytes > 0
        self.heard.append((answer.step, tuple(answer.labels), is_there))
        if answer.step in self.fails_at:
            raise ConnectionError("the tracker is away")


def test_a_loops_function_hears_of_all_and_its_error_changes_nothing(tmp_path: Path) -> None:
    tracker = Tracker(4)
    loops: list[Loop] = []
    both: list[dict[str, Any]] = [{"on_saved": tracker, "save_steps": 4}, {}]
    for settings in both:
        loop = Loop(tmp_path / f"run-{len(loops)}", **settings)
        loops.append(loop)
        with loop.ckpt:
            for batch in loop.ckpt.batches(until=9):
                loop.update(batch)
                if loop.ckpt.step_count == 6:
                    loop.ckpt.save("by hand")
                    loop.ckpt.save("twice")
    # Two that are asked for at once are one save.
    assert tracker.heard == [(4, (), True), (6, ("by hand", "twice"), True), (8, (), True)] or tracker.heard == [
        (4, (), True),
        (6, ("by hand",), True),
        (6, ("twice",), True),
        (8, (), True),
    ]
    path = tmp_path / "run-0" / "checkpoint-4"
    assert f"on_saved failed for {path}: ConnectionError('the tracker is away'); training goes on" in loops[0].said
    assert loops[0].digest() == loops[1].digest()


def test_a_trainers_function_hears_of_all_and_its_error_changes_nothing(tmp_path: Path) -> None:
    tracker = Tracker(5)
    settings: dict[str, Any] = {"save_steps": 5, "num_train_epochs": 2, "save_total_limit": 1}
    trainer = attach(small_trainer(tmp_path / "with", **settings), on_saved=tracker)
    trainer.train()
    plain = small_trainer(tmp_path / "without", **settings)
    plain.train()
    assert tracker.heard == [(5, (), True), (10, (), True)]
    assert weights(trainer) == weights(plain)


def test_what_cannot_be_called_with_an_answer_is_refused_before_training_begins(tmp_path: Path) -> None:
    refused: list[Any] = ["print", 3, lambda: None, lambda answer, other: None]
    for function in refused:
        with pytest.raises(ConfigError, match=r"^on_saved: "):
            Loop(tmp_path / "run", on_saved=function)
        with pytest.raises(ConfigError, match=r"^on_saved: "):
            attach(small_trainer(tmp_path / "trainer"), on_saved=function)
    assert not (tmp_path / "run").exists()
    Loop(tmp_path / "run", on_saved=print).ckpt.close()


def test_it_is_given_the_path_that_the_checkpoint_has_by_then(tmp_path: Path) -> None:
    """Another checkpoint of the same step has taken the first one's name, and of the second nothing is left."""
    heard: list[tuple[tuple[str, ...], str, bool]] = []

    def hear(answer: Answer) -> None:
        manifest = Path(answer.path) / "MANIFEST.json"
        is_its_own = manifest.exists() and answer.digest in manifest.read_text()
        heard.append((tuple(answer.labels), Path(answer.path).name.partition("-")[0], is_its_own))

    loop = Loop(tmp_path / "run", on_saved=hear)
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=3):
            loop.update(batch)
            for label in ("first", "second", "third") if loop.ckpt.step_count == 2 else ():
                loop.ckpt.save(label, slot="" if label == "first" else "best", wait=True)
                torch.rand(1)
    assert heard[:3] == [
        (("first",), "superseded", True),
        (("second",), "superseded", False),
        (("third",), "checkpoint", True),
    ]
