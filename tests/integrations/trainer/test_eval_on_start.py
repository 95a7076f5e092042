"""`eval_on_start`: a resumed training has it once in its log, as one that was never stopped."""

from pathlib import Path
from typing import Any

import pytest

from helpers.small_trainer import Stop, small_trainer, train

TIMES = ("runtime", "per_second")


def log(trainer: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if not k.endswith(TIMES)} for line in trainer.state.log_history]


@pytest.mark.parametrize("step", [0, 4, 5])
def test_a_resume_evaluates_at_the_start_where_training_is_at_its_start_alone(tmp_path: Path, step: int) -> None:
    settings: dict[str, Any] = {"eval_on_start": True, "eval_strategy": "steps", "eval_steps": 4, "num_train_epochs": 2}
    plain = small_trainer(tmp_path / "plain", **settings)
    plain.train()
    assert [line["step"] for line in plain.state.log_history if "eval_loss" in line] == [0, 4, 8, 10]
    if step:
        assert train(tmp_path / "run", [Stop(step)], **settings).state.global_step == step
    resumed = train(tmp_path / "run", **settings)
    assert log(resumed) == log(plain)
    assert resumed.args.eval_on_start
