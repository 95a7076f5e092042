"""When scheduled saves happen, for each way to ask for them, beside a save on demand."""

from typing import Any

import pytest

from trainings import Training

# 120 rows in batches of 2: an epoch has 60 steps.
SCHEDULES: list[tuple[dict[str, Any], list[int]]] = [
    ({"save_steps": 25}, [25, 50, 60]),
    ({"saves_per_epoch": 2}, [30, 60]),
    ({"save_strategy": "epoch"}, [60]),
    ({}, [60]),
]


@pytest.mark.parametrize(("keys", "steps"), SCHEDULES, ids=[str(keys) for keys, _ in SCHEDULES])
def test_scheduled_saves_come_when_they_should_beside_one_on_demand(
    training: Training, keys: dict[str, Any], steps: list[int]
) -> None:
    for key in ("max_steps", "save_strategy"):
        del training.config[key]
    training.run.mkdir()
    training.trigger.touch()
    assert training.start(**keys).wait() == 0
    saved = [(event["step"], event["doors"]) for event in training.saved()]
    assert saved == [(5, ["trigger_file"]), *((step, ["schedule"]) for step in steps)]
