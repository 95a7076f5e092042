"""Storage that fails while several ranks train: saves are tried again, and a stop ends in all of them."""

import signal

from helpers.trainings import events
from helpers.waiting import wait_until
from ranks.conftest import Ranks

# Sealing what was staged fails as long as there is a file of that name beside the run directory.
FAILS = """
import errno
from pathlib import Path
from holdfast.store import commit
original = commit.Attempt.seal
def seal(self, *args):
    if Path("fails").exists():
        raise OSError(errno.EIO, "Input/output error")
    return original(self, *args)
commit.Attempt.seal = seal
"""


def test_fault_10_a_scheduled_save_that_fails_in_rank_0_is_tried_again_by_all(ranks: Ranks) -> None:
    """Sealing the staged files raises EIO in rank 0 until a try has failed twice."""
    (ranks.folder / "fails").touch()
    job = ranks.start(until=100_000, pause=0.02, program=FAILS, settings={"save_steps": 5, "save_total_limit": 2})
    wait_until(lambda: len(events(ranks.run, "failed")) >= 2, 90, job.output)
    (ranks.folder / "fails").unlink()
    wait_until(ranks.saved, 90, job.output)
    job.processes[1].send(signal.SIGTERM)
    assert job.wait() == [75, 75], job.output


def test_fault_10_a_stop_that_failed_at_first_is_saved_by_all_ranks_when_the_disk_works_again(ranks: Ranks) -> None:
    """Sealing the staged files raises EIO in rank 0 for the first two tries of the save that SIGTERM asks for."""
    (ranks.folder / "fails").touch()
    job = ranks.start(until=100_000, pause=0.02, program=FAILS, settings={"stop_grace_seconds": 60})
    ranks.wait_for_step(3)
    job.processes[1].send(signal.SIGTERM)
    wait_until(lambda: len(events(ranks.run, "failed")) >= 2, 90, job.output)
    (ranks.folder / "fails").unlink()
    assert job.wait() == [75, 75], job.output
    assert [answer["saved"] for answer in ranks.answers().values()] == [True]


def test_fault_10_a_stop_whose_save_fails_to_the_end_ends_every_rank_with_1(ranks: Ranks) -> None:
    """Sealing the staged files always raises EIO in rank 0, and SIGTERM is sent to one rank."""
    (ranks.folder / "fails").touch()
    job = ranks.start(until=100_000, pause=0.02, program=FAILS, settings={"stop_grace_seconds": 6})
    ranks.wait_for_step(3)
    job.processes[0].send(signal.SIGTERM)
    assert job.wait() == [1, 1], job.output
    assert [answer["saved"] for answer in ranks.answers().values()] == [False]
    assert len(events(ranks.run, "failed")) >= 2


# Making the directory of an attempt waits for as long as there is a file of that name beside the run directory.
HANGS = """
import time
from pathlib import Path
from holdfast.engine import watchdog
from holdfast.store import commit
watchdog._SECONDS = 0.5
original = commit.Attempt.__init__
def make(self, *args):
    while Path("hangs").exists():
        time.sleep(0.01)
    original(self, *args)
commit.Attempt.__init__ = make
"""


def test_fault_14_storage_that_hangs_in_rank_0_holds_no_rank_for_ever(ranks: Ranks) -> None:
    """Making the directory of an attempt does not come back in rank 0 for as long as a file is there."""
    (ranks.folder / "hangs").touch()
    job = ranks.start(until=100_000, pause=0.02, program=HANGS, settings={"save_steps": 5, "save_total_limit": 2})
    ranks.wait_for_step(40)
    (ranks.folder / "hangs").unlink()
    failed = wait_until(lambda: events(ranks.run, "failed"), 90, job.output)
    assert "training went on before the snapshot was whole" in failed[0]["error"]
    wait_until(ranks.saved, 90, job.output)
    job.processes[1].send(signal.SIGTERM)
    assert job.wait() == [75, 75], job.output
