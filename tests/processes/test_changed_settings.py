"""`holdfast train`, resumed with another configuration than it was saved with."""

import json
from typing import Any

from helpers.trainings import Training

FIRST: dict[str, Any] = {
    "max_steps": 6,
    "save_strategy": "steps",
    "save_steps": 2,
    "logging_steps": 1,
    "lr_scheduler": "constant",
}


def rates(training: Training, step: int) -> list[float]:
    state = json.loads((training.run / f"checkpoint-{step}" / "trainer_state.json").read_text())
    return [line["learning_rate"] for line in state["log_history"] if "learning_rate" in line]


def about_settings(output: str) -> list[str]:
    return [line for line in output.splitlines() if "your configuration" in line]


def test_another_learning_rate_in_the_configuration_holds_or_is_kept_off_by_an_option(training: Training) -> None:
    before = training.config["learning_rate"]
    first = training.start(**FIRST)
    assert first.wait() == 0, first.output
    assert about_settings(first.output) == []

    longer: dict[str, Any] = {**FIRST, "max_steps": 8, "learning_rate": before / 4}
    kept = training.start("--resume", "out/checkpoint-4", "--keep-settings", **longer)
    assert kept.wait() == 0, kept.output
    why = "from the checkpoint, as resume_settings says; your configuration has"
    assert about_settings(kept.output) == [
        f"learning_rate: stays {before:.6g}, {why} {before / 4:.6g}",
        f"max_steps: stays 6, {why} 8",
    ]
    assert rates(training, 6) == [before] * 6

    followed = training.start("--resume", "out/checkpoint-4", **longer)
    assert followed.wait() == 0, followed.output
    assert about_settings(followed.output) == [
        f"learning_rate: {before:.6g} -> {before / 4:.6g}, from your configuration",
        "max_steps: 6 -> 8, from your configuration",
    ]
    assert rates(training, 8) == [before] * 4 + [before / 4] * 4
