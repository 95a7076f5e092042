"""When scheduled saves happen, for each way to ask for them, beside a save on demand."""

import signal
from itertools import pairwise
from typing import Any

import pytest

from helpers.trainings import Training, events

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


def test_the_clock_asks_for_saves_that_count_as_scheduled(training: Training) -> None:
    process = training.start(save_minutes=0.005, save_total_limit=2)
    saved = training.wait_for_saves(4)
    process.send(signal.SIGTERM)
    assert process.wait() == 75, process.output
    assert {tuple(event["doors"]) for event in saved} == {("schedule",)}
    left = [training.manifest(path.name)["reasons"] for path in training.run.glob("checkpoint-*")]
    by_the_clock = [reasons for reasons in left if all(reason["door"] == "schedule" for reason in reasons)]
    assert len(left) == 2, "that of the stop is counted with them"
    asked = sorted(reason["asked_at"] for reasons in by_the_clock for reason in reasons)
    assert all(other - one > 0.25 for one, other in pairwise(asked)), "0.005 minutes are 0.3 s"


def test_every_so_many_steps_one_stays_beside_the_newest(training: Training) -> None:
    training.config["max_steps"] = 60
    assert training.start(save_strategy="steps", save_steps=10, save_total_limit=1, keep_every=20).wait() == 0
    deleted = [event["path"].rpartition("-")[2] for event in events(training.run, "deleted")]
    assert deleted == ["10", "30", "50"]
    assert {path.name for path in training.run.glob("checkpoint-*")} == {
        "checkpoint-20",
        "checkpoint-40",
        "checkpoint-60",
    }
