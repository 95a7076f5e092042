"""Writes past the gate in one rank alone: the save is tried again, where all ranks stand still."""

from helpers.trainings import events
from ranks.conftest import Ranks

# Rank 0 takes snapshots at boundaries from its first step on. At step 4 rank 1 swaps its weights, as for an evaluation,
# and rank 0 goes on with the save only then.
SWAPPED = """
import os, time
from pathlib import Path
from holdfast import Checkpointer
from holdfast.ranks.coordinator import Coordinator

step, stage = Checkpointer.step, Coordinator.stage

def stepping(self):
    step(self)
    if self.step_count == 1 and os.environ["RANK"] == "0":
        self._engine._saver.stand_still("for this test")
    if {rank_1} and os.environ["RANK"] == "1":
        self._parameters[0].data.add_(1)
        Path("swapped").touch()
        while self._engine.gate.is_shut:
            time.sleep(0.01)
        self._parameters[0].data.sub_(1)

def staging(self, *args, **more):
    limit = time.monotonic() + 60
    while not Path("swapped").exists() and time.monotonic() < limit:
        time.sleep(0.01)
    stage(self, *args, **more)

Checkpointer.step, Coordinator.stage = stepping, staging
"""


def test_a_rank_that_is_torn_for_the_first_time_after_rank_0_is_asked_again(ranks: Ranks) -> None:
    job = ranks.start(program=SWAPPED.format(rank_1="self.step_count == 4"), until=7, settings={"save_steps": 4})
    job.digests()
    (saved,) = ranks.saved()
    assert saved["step"] > 4, job.output
    assert not events(ranks.run, "failed")
    modes = [(event.get("rank", 0), event["mode"]) for event in events(ranks.run, "capture")]
    assert modes == [(0, "at a boundary"), (1, "at a boundary")]
    assert "rank 1: model.0.weight: written outside the optimizer's step" in job.output


# Rank 0 agrees on the second try when its training has reached the last boundary, and is not blocked at its end yet.
ON_ITS_WAY_TO_THE_END = """
from holdfast.engine.peers import RankZero

agree, calls = RankZero._agree, []

def agreeing(self, **asked):
    calls.append(asked)
    if len(calls) == 2:
        time.sleep(0.5)
    return agree(self, **asked)

RankZero._agree = agreeing
before = Checkpointer.step

def last(self):
    before(self)
    if self.step_count == 7 and os.environ["RANK"] == "0":
        time.sleep(1.0)

Checkpointer.step = last
"""


def test_a_rank_on_its_way_from_its_last_boundary_to_the_end_offers_that_one(ranks: Ranks) -> None:
    program = SWAPPED.format(rank_1="self.step_count == 4") + ON_ITS_WAY_TO_THE_END
    job = ranks.start(program=program, until=7, settings={"save_steps": 4})
    job.digests()
    assert not events(ranks.run, "failed"), job.output
