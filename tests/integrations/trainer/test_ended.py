import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from helpers.full import in_full
from helpers.small_trainer import Stop, checkpoints, small_trainer, train, weights
from helpers.tampering import with_intent
from helpers.trainings import events
from holdfast.integrations.trainer import ended


class Worsening(Trainer):  # type: ignore[misc]
    """Is best at the second step, and from then on never as good."""

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        metrics = super().evaluate(*args, **kwargs)
        metrics["eval_loss"] = 1.0 if self.state.global_step == 2 else 2.0
        return metrics


BEST: dict[str, Any] = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_steps": 2,
    "load_best_model_at_end": True,
    "kind": Worsening,
}


def files(out: Path) -> dict[str, int]:
    kept = (path for path in out.rglob("*") if path.is_file() and ".holdfast" not in path.parts)
    return {str(path): path.stat().st_mtime_ns for path in kept if path.name != "events.jsonl"}


@pytest.mark.parametrize(
    "settings", [{"max_steps": 3}, {"num_train_epochs": 1}, {**BEST, "max_steps": 6, "eval_on_start": True}]
)
def test_a_run_that_has_ended_does_nothing_when_it_is_started_again(
    tmp_path: Path, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    first = train(out, **settings)
    before, journal = files(out), len(events(out))
    again = train(out, **settings)
    assert again.state.global_step == first.state.global_step == first.state.max_steps
    assert weights(again) == weights(first) and files(out) == before
    assert [event["event"] for event in events(out)][journal:] == ["start", "end"]
    assert events(out)[-1]["outcome"] == "finished"
    assert caplog.text.count("nothing is left to do") == 1
    assert again.state.best_model_checkpoint == first.state.best_model_checkpoint
    assert "_run_epoch" not in vars(again), "it could not train again"
    assert again.args.eval_on_start == first.args.eval_on_start
    assert sum("eval_loss" in row for row in again.state.log_history) == sum(
        "eval_loss" in row for row in first.state.log_history
    )


def test_more_steps_make_it_go_on(tmp_path: Path) -> None:
    train(tmp_path / "out", max_steps=3, lr_scheduler_type="constant")
    longer = train(tmp_path / "out", max_steps=7, lr_scheduler_type="constant")
    whole = train(tmp_path / "whole", max_steps=7, lr_scheduler_type="constant")
    assert longer.state.global_step == 7 and weights(longer) == weights(whole)


class Breaks(Worsening):
    """Ends by an error in the evaluation of its last step."""

    at = 6

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == self.at:
            raise LookupError("no more data")
        return super().evaluate(*args, **kwargs)


# In the middle of an epoch, and where the last one ends.
@pytest.mark.parametrize("steps", [pytest.param(6, marks=in_full("where the last epoch ends")), 10])
def test_ended_by_an_error_in_its_last_evaluation_it_does_that_and_no_further_step(tmp_path: Path, steps: int) -> None:
    out, settings = tmp_path / "out", {**BEST, "max_steps": steps}
    breaks = type("Breaks", (Breaks,), {"at": steps})
    with pytest.raises(LookupError):
        train(out, **{**settings, "kind": breaks})
    assert events(out, "saved")[-1]["step"] == steps
    resumed = train(out, **settings)
    whole = train(tmp_path / "whole", **settings)
    assert resumed.state.global_step == steps and weights(resumed) == weights(whole)
    evaluated = [row["step"] for row in resumed.state.log_history if "eval_loss" in row]
    assert evaluated == [row["step"] for row in whole.state.log_history if "eval_loss" in row]
    before = files(out)
    assert train(out, **settings).state.global_step == steps and files(out) == before


def test_early_stopping_ends_where_it_would_have_and_stays_ended_until_it_has_more_patience(tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole = train(tmp_path / "whole", [EarlyStoppingCallback(3)], **BEST)
    train(out, [EarlyStoppingCallback(3), Stop(5)], **BEST)
    assert events(out, "end")[-1]["outcome"] == "stopped"
    own = EarlyStoppingCallback(3)
    resumed = train(out, [own], **BEST)
    assert resumed.state.global_step == whole.state.global_step == 8
    assert own in resumed.callback_handler.callbacks and own.early_stopping_patience_counter == 3
    assert train(out, [EarlyStoppingCallback(3)], **BEST).state.global_step == 8
    patient = EarlyStoppingCallback(4)
    assert train(out, [patient], **BEST).state.global_step == 10 and patient.early_stopping_patience == 4


def test_the_end_deletes_nothing_that_was_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "out"
    train(out, [Stop(3)], **{**BEST, "save_total_limit": 1, "max_steps": 6})
    asked = checkpoints(out)
    trainer = train(out, **{**BEST, "save_total_limit": 1, "max_steps": 6})
    assert checkpoints(out) == sorted({*asked, "checkpoint-2", "checkpoint-6"})
    assert trainer.args.save_total_limit == 1


def test_the_best_checkpoint_is_looked_for_where_the_run_is_now(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path / "out", [Stop(7)], **BEST)
    whole = train(tmp_path / "whole", **BEST)
    moved = tmp_path / "moved"
    shutil.move(tmp_path / "out", moved)
    trainer = train(moved, **BEST)
    assert trainer.state.best_model_checkpoint == str(moved / "checkpoint-2")
    assert weights(trainer) == weights(whole)
    assert "does not exist anymore" not in caplog.text


def test_a_best_checkpoint_that_is_gone_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "out"
    train(out, [Stop(5)], **BEST)
    shutil.rmtree(out / "checkpoint-2")
    trainer = train(out, **BEST)
    assert trainer.state.best_model_checkpoint is None
    assert "checkpoint-2, the best so far, is not here" in caplog.text


def test_a_trainer_of_no_checkpoint_has_not_ended(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path / "out", max_steps=3)
    trainer.state.max_steps = 3
    assert not ended.has_ended(trainer)


class TooLarge(TrainerCallback):  # type: ignore[misc]
    """Is out of memory with more than two samples in a batch, at the end of the second step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.train_batch_size > 2 and state.global_step == 2:
            raise RuntimeError("CUDA out of memory.")


def test_a_second_beginning_with_smaller_batches_goes_on(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"auto_find_batch_size": True, "max_steps": 4, "save_steps": 1}
    trainer = train(tmp_path / "out", [TooLarge()], **settings)
    assert (trainer.state.global_step, trainer._train_batch_size) == (4, 2)
    plain = small_trainer(tmp_path / "plain", [TooLarge()], **settings)
    plain.train()
    assert weights(trainer) == weights(plain)
    assert [event["step"] for event in events(tmp_path / "out", "saved")] == [1, 1, 1, 2, 3, 4]  # 4, 3, 2 samples


def test_with_save_only_model_what_was_asked_for_can_be_resumed_from(tmp_path: Path) -> None:
    out = tmp_path / "out"
    train(out, [Stop(4)], save_only_model=True, save_steps=3)
    resumed = train(out, save_only_model=True, save_steps=3)
    assert weights(resumed) == weights(train(tmp_path / "whole", save_steps=3))
    full = [path.parent.name for path in sorted(out.glob("checkpoint-*/optimizer.pt"))]
    assert [event["step"] for event in events(out, "saved") if event["doors"] != ["schedule"]] == [
        int(name.partition("-")[2]) for name in full
    ]
    assert "checkpoint-3" in checkpoints(out) and len(full) == 1


def test_security_s24_the_best_is_loaded_from_this_run_wherever_a_state_says_that_it_lies(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A state that names another directory as the best; one of another run there at the resume, or since."""
    out, evil = tmp_path / "out", tmp_path / "evil" / "checkpoint-2"
    train(out, [Stop(5)], **BEST)
    whole = train(tmp_path / "whole", **BEST)
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", evil)
    state = json.loads((out / "checkpoint-5" / "trainer_state.json").read_text())
    with_intent(out / "checkpoint-5", "trainer_state.json", told_of(state, str(evil)))
    other = shutil.copytree(out, tmp_path / "other")
    trainer = train(out, **BEST)
    assert trainer.state.best_model_checkpoint == str(out / "checkpoint-2")
    assert weights(trainer) == weights(whole)
    shutil.rmtree(other / "checkpoint-2")
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", other / "checkpoint-2")
    assert train(other, **BEST).state.best_model_checkpoint is None
    (said,) = (line for line in caplog.messages if "the best so far" in line)
    assert said == "checkpoint-2, the best so far, is of another run: it cannot be loaded at the end"
    exchanging = Exchanging(tmp_path / "late" / "checkpoint-2", tmp_path / "whole" / "checkpoint-2")
    assert train(tmp_path / "late", [exchanging], **BEST).state.best_model_checkpoint is None
    assert sum(line == said for line in caplog.messages) == 2


class ExchangedAtTheEnd(Worsening):
    """Begins to load the best when another directory has its name."""

    def _load_best_model(self) -> None:
        here = Path(self.args.output_dir, "checkpoint-2")
        here.rename(here.with_name("aside"))
        shutil.copytree(here.with_name("checkpoint-4"), here)
        super()._load_best_model()


def test_security_s23_the_best_is_loaded_from_what_was_verified(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another directory takes the name of the best checkpoint between its verification and its loading at the end."""
    settings = {**BEST, "max_steps": 4}
    whole = train(tmp_path / "whole", **settings)
    with caplog.at_level(logging.DEBUG):
        trainer = train(tmp_path / "out", **{**settings, "kind": ExchangedAtTheEnd})
    assert weights(trainer) == weights(whole)
    assert trainer.state.best_model_checkpoint == str(tmp_path / "out" / "checkpoint-2")
    assert "_load_best_model" not in vars(trainer) and "/proc/self" not in caplog.text


def told_of(state: dict[str, Any], best: str) -> bytes:
    return json.dumps({**state, "best_model_checkpoint": best}).encode()


class Exchanging(TrainerCallback):  # type: ignore[misc]
    """Puts another checkpoint in the place of one, late in a training."""

    def __init__(self, path: Path, other: Path) -> None:
        self._path, self._other = path, other

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 9:
            shutil.rmtree(self._path)
            shutil.copytree(self._other, self._path)
