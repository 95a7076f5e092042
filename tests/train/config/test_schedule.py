import math
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from holdfast.train.config.fields import DatasetConfig, TrainConfig
from holdfast.train.config.schedule import Schedule


def config(**keys: Any) -> TrainConfig:
    return TrainConfig(
        base_model="a/b", learning_rate=1.0, datasets=(DatasetConfig(path="a/b", type="alpaca"),), **keys
    )


EPOCH = Schedule("epoch", None)
NEVER = Schedule("no", None)

SAVING: list[tuple[dict[str, Any], Schedule]] = [
    ({}, EPOCH),
    ({"save_strategy": "epoch"}, EPOCH),
    ({"save_strategy": "no"}, NEVER),
    ({"save_strategy": "steps"}, Schedule("steps", 500)),
    ({"save_steps": 7}, Schedule("steps", 7)),
    ({"save_steps": 7, "save_strategy": "steps"}, Schedule("steps", 7)),
    ({"save_steps": 0.25}, Schedule("steps", 0.25)),
    ({"saves_per_epoch": 4}, Schedule("steps", 0.25)),
    ({"saves_per_epoch": 4, "num_epochs": 2.0}, Schedule("steps", 0.125)),
    ({"saves_per_epoch": 4, "num_epochs": 2.0, "save_strategy": "steps"}, Schedule("steps", 0.125)),
    # 1.0 would be every step to transformers.
    ({"saves_per_epoch": 1}, EPOCH),
    ({"saves_per_epoch": 1, "num_epochs": 0.5}, EPOCH),
    ({"saves_per_epoch": 1, "num_epochs": 4.0}, Schedule("steps", 0.25)),
]


@pytest.mark.parametrize(("keys", "schedule"), SAVING)
def test_when_checkpoints_are_saved(keys: dict[str, Any], schedule: Schedule) -> None:
    assert config(**keys).save_schedule == schedule


@pytest.mark.parametrize(("keys", "schedule"), SAVING)
def test_evaluation_follows_the_same_rules_where_data_is_held_out(keys: dict[str, Any], schedule: Schedule) -> None:
    keys = {key.replace("saves", "evals").replace("save", "eval"): value for key, value in keys.items()}
    assert config(**keys, val_set_size=0.1).eval_schedule == schedule
    assert config(**keys).eval_schedule == NEVER


def test_no_evaluations_per_epoch_turn_evaluation_off() -> None:
    assert config(evals_per_epoch=0, val_set_size=0.1).eval_schedule == NEVER


@given(st.integers(1, 1000), st.floats(0.01, 1000))
def test_saves_per_epoch_are_a_share_that_transformers_takes_for_one(saves: int, epochs: float) -> None:
    schedule = config(saves_per_epoch=saves, num_epochs=epochs).save_schedule
    assume(schedule != EPOCH)
    assert schedule.steps is not None
    assert 0 < schedule.steps < 1
    assert math.isclose(schedule.steps * saves * epochs, 1)


WARMUP: list[tuple[dict[str, Any], int | float]] = [
    ({}, 0),
    ({"warmup_ratio": 0.1}, 0.1),
    ({"warmup_ratio": 0.0}, 0),
    ({"warmup_steps": 10}, 10),
    ({"warmup_steps": 0}, 0),
]


@pytest.mark.parametrize(("keys", "warmup"), WARMUP)
def test_the_warmup_is_what_transformers_takes_for_warmup_steps(keys: dict[str, Any], warmup: float) -> None:
    assert config(**keys).warmup == warmup


@pytest.mark.parametrize(("size", "held_out"), [(0.0, 0), (0.1, 0.1), (1.0, 1), (200.0, 200)])
def test_what_is_held_out_is_a_share_or_a_number_of_examples(size: float, held_out: int | float) -> None:
    found = config(val_set_size=size).held_out
    assert (found, type(found)) == (held_out, type(held_out))


@pytest.mark.parametrize(("limit", "kept"), [(None, 4), (1, 1), (9, 9)])
def test_four_scheduled_checkpoints_are_kept_unless_said(limit: int | None, kept: int) -> None:
    assert config(save_total_limit=limit).scheduled_kept == kept


RESUME: list[tuple[dict[str, Any], str | bool | None]] = [
    ({}, None),
    ({"resume_from_checkpoint": "auto"}, "auto"),
    ({"resume_from_checkpoint": True}, True),
    ({"resume_from_checkpoint": False}, None),
    ({"resume_from_checkpoint": "out/checkpoint-5"}, "out/checkpoint-5"),
    ({"auto_resume_from_checkpoints": True}, "auto"),
    ({"auto_resume_from_checkpoints": False}, None),
    ({"auto_resume_from_checkpoints": False, "resume_from_checkpoint": "auto"}, "auto"),
]


@pytest.mark.parametrize(("keys", "resume"), RESUME)
def test_what_is_resumed(keys: dict[str, Any], resume: str | bool | None) -> None:
    assert config(**keys).resume == resume


@pytest.mark.parametrize(("seed", "used"), [(None, 42), (0, 0), (7, 7)])
def test_the_seed_is_42_unless_said(seed: int | None, used: int) -> None:
    assert config(seed=seed).random_seed == used
