"""Saves and stops before the first update, of several ranks."""

import json
import re

from helpers.support import holdfast
from helpers.waiting import wait_until
from ranks.conftest import Ranks

# Rank 1 begins when there is a file `begin`; each rank makes its first update when there is a file `go`.
BEGINS_LATE = """
import os, time
from pathlib import Path
from holdfast import Checkpointer
own, steps = Checkpointer.resume, Checkpointer.batches
def late(self):
    print("rank", os.environ["RANK"], "loads", flush=True)
    while os.environ["RANK"] == "1" and not Path("begin").exists():
        time.sleep(0.01)
    return own(self)
def waits(self, *args, **kwargs):
    for batch in steps(self, *args, **kwargs):
        while not Path("go").exists():
            time.sleep(0.01)
        yield batch
Checkpointer.resume, Checkpointer.batches = late, waits
"""


def test_a_save_before_the_first_update_is_of_step_0_once_all_have_begun_and_fails_when_one_does_not(
    ranks: Ranks,
) -> None:
    job = ranks.start(program=BEGINS_LATE, until=4, settings={"rank_timeout_seconds": 1.0})
    job.processes[0].wait_for("rank 0 loads")
    failed = holdfast("save", ranks.run, "--wait")
    assert failed.returncode == 1 and "rank 1 has not begun to train within 1 s" in failed.stderr, failed.stderr
    (ranks.folder / "begin").touch()
    wait_until(lambda: holdfast("save", ranks.run, "--wait").returncode == 0)
    (saved,) = ranks.saved()
    assert saved["step"] == 0 and ranks.manifest(0)["world_size"] == 2
    (ranks.folder / "go").touch()
    reference = job.digests()
    job = ranks.start(until=4, settings={"resume": str(ranks.run / "checkpoint-0")})
    assert job.digests() == reference


def test_after_a_resume_the_answer_is_the_checkpoint_and_a_stop_ends_all_ranks_with_its_code(ranks: Ranks) -> None:
    ranks.start(until=4, settings={"save_steps": 4}).digests()
    (ranks.folder / "begin").touch()
    job = ranks.start(program=BEGINS_LATE, until=8)
    job.processes[0].wait_for("resumed from")
    answer = json.loads(holdfast("save", ranks.run, "--wait", "--json").stdout)
    assert answer["saved"] and answer["path"].endswith("checkpoint-4")
    assert holdfast("stop", ranks.run, "--wait").returncode == 0
    assert job.wait() == [75, 75], job.output
    assert len(ranks.saved()) == 1 and len(re.findall("nothing is new since", job.output)) == 2
