"""A step that is broken off between its update and its end: what is saved of it, and what a resume does of it."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from helpers.full import in_full
from helpers.small_trainer import Stop, checkpoints, train, weights
from helpers.trainings import events
from helpers.waiting import wait_until

LOGS: dict[str, Any] = {"logging_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 4}


class Counts(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Counts the ends of updates. It comes before the one that raises."""

    def __init__(self) -> None:
        self.ends = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends += 1

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"ends": self.ends}}


class Raises(TrainerCallback):  # type: ignore[misc]
    def __init__(self, event: str, step: int) -> None:
        setattr(self, event, self._raise)
        self._at = step

    def _raise(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._at:
            raise LookupError("the tracker is gone")


def manifest(out: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / name / "MANIFEST.json").read_text())
    return content


def history(trainer: Any) -> list[dict[str, float]]:
    timed = ("per_second", "runtime")
    return [{key: row[key] for key in row if not key.endswith(timed)} for row in trainer.state.log_history]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train(tmp_path_factory.mktemp("whole") / "out", [Counts()], **LOGS)


# In the middle of an epoch, at a step that logs, evaluates and saves, at an epoch's end, at that of the training.
INSIDE = in_full("a step that logs, evaluates and saves, and the last of all, stay")


@pytest.mark.parametrize("step", [pytest.param(3, marks=INSIDE), 4, pytest.param(5, marks=INSIDE), 15])
def test_a_callback_that_raises_after_an_update_costs_nothing_and_is_called_again(
    tmp_path: Path, whole: Any, step: int
) -> None:
    out = tmp_path / "out"
    with pytest.raises(LookupError):
        train(out, [Counts(), Raises("on_step_end", step)], **LOGS)
    saved = manifest(out, f"checkpoint-{step}")
    assert (saved["boundary"]["face"], saved["version"]) == ("callbacks", 2)
    assert saved["requires"] == ["pending_callbacks"]
    counts = Counts()
    resumed = train(out, [counts], **LOGS)
    assert weights(resumed) == weights(whole) and history(resumed) == history(whole)
    assert counts.ends == resumed.state.global_step == 15
    assert resumed.state.best_global_step == whole.state.best_global_step


@pytest.mark.parametrize("event", ["on_log", "on_evaluate"])
def test_an_error_while_a_step_is_logged_or_evaluated_saves_its_boundary(
    tmp_path: Path, whole: Any, event: str
) -> None:
    with pytest.raises(LookupError):
        train(tmp_path / "out", [Raises(event, 4)], **LOGS)
    saved = manifest(tmp_path / "out", "checkpoint-4")
    assert saved["boundary"]["face"] == "update" and saved["version"] == 1
    resumed = train(tmp_path / "out", **LOGS)
    assert weights(resumed) == weights(whole) and history(resumed) == history(whole)


def test_a_stop_before_a_step_is_evaluated_leaves_that_to_the_resume(tmp_path: Path, whole: Any) -> None:
    out = tmp_path / "out"
    stopped = train(out, [Stop(4)], **LOGS)
    assert manifest(out, "checkpoint-4")["boundary"]["face"] == "update"
    assert [row["step"] for row in history(stopped) if "eval_loss" in row] == [2]
    resumed = train(out, **LOGS)
    assert weights(resumed) == weights(whole) and history(resumed) == history(whole)


def test_a_stop_that_meets_the_last_step_leaves_nothing_of_it_undone(tmp_path: Path) -> None:
    trainer = train(tmp_path / "out", [Stop(4)], max_steps=4, **LOGS)
    (end,) = events(tmp_path / "out", "end")
    assert (end["outcome"], end["code"]) == ("finished", 0)
    assert [row["step"] for row in history(trainer) if "eval_loss" in row] == [2, 4]


def test_an_error_of_on_save_saves_the_boundary_that_it_finds(tmp_path: Path, whole: Any) -> None:
    out = tmp_path / "out"
    with pytest.raises(LookupError):
        train(out, [Raises("on_save", 4)], **LOGS)
    newest = checkpoints(out)[-1]
    assert manifest(out, newest)["version"] == 1 and events(out, "saved")[-1]["doors"] == ["exception"]
    resumed = train(out, **LOGS)
    assert weights(resumed) == weights(whole) and history(resumed) == history(whole)


class AsksInOnSave(TrainerCallback):  # type: ignore[misc]
    """Waits in `on_save` for another save."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        out = Path(args.output_dir)
        if not any(event["doors"] == ["signal"] for event in events(out, "saved")):
            os.kill(os.getpid(), signal.SIGUSR1)
            wait_until(lambda: any(event["doors"] == ["signal"] for event in events(out, "saved")))


def test_a_save_that_is_asked_for_in_on_save_is_served_there(tmp_path: Path) -> None:
    train(tmp_path / "out", [AsksInOnSave()], save_steps=2)
    assert [event for event in events(tmp_path / "out", "saved") if event["doors"] == ["signal"]]


class Swaps(TrainerCallback):  # type: ignore[misc]
    """Puts other weights in the place of those that are trained, as for an evaluation, and breaks off."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            with torch.no_grad():
                model.line.weight.data.copy_(torch.zeros(1, 3))
            raise LookupError("no room for the average")


def test_weights_that_a_callback_has_moved_are_named_and_not_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    with pytest.raises(LookupError):
        train(out, [Swaps()], save_steps=2)
    assert checkpoints(out) == ["checkpoint-2"]
    assert "checkpoint failed step=3" in caplog.text and "error=line.weight: written outside" in caplog.text


class Hangs(TrainerCallback):  # type: ignore[misc]
    """Is asked to stop in a callback, and does not come back from it before something is saved."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
            wait_until(lambda: any(event["step"] == 5 for event in events(Path(args.output_dir), "saved")))


def test_a_stop_that_meets_a_callback_which_outlasts_its_grace_saves_what_was_before_it(
    tmp_path: Path, whole: Any
) -> None:
    out = tmp_path / "out"
    train(out, [Counts(), Hangs()], stop_grace_seconds=4.0, **LOGS)
    assert manifest(out, "checkpoint-5")["requires"] == ["pending_callbacks"]
    assert events(out, "end")[-1]["code"] == 75
    counts = Counts()
    resumed = train(out, [counts], **LOGS)
    assert weights(resumed) == weights(whole) and history(resumed) == history(whole) and counts.ends == 15


def test_an_error_between_the_weights_and_the_schedule_saves_nothing_and_names_the_last_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    with pytest.raises(LookupError):
        train(out, [Raises("on_optimizer_step", 5)], **LOGS)
    assert checkpoints(out) == ["checkpoint-4"]
    assert f"is not saved; the last checkpoint is {out / 'checkpoint-4'}" in caplog.text
