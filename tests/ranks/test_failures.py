"""A rank that dies, stops, or goes its own way: nothing half is published, and nobody waits for ever."""

import json
import os
import signal
from pathlib import Path

import pytest

from helpers.full import in_full
from helpers.support import holdfast
from helpers.trainings import events
from helpers.waiting import wait_until
from ranks.conftest import Job, Ranks

# Stops at a place of the source until it is killed: the place is told by what is put before it.
HALT = """
import os, signal, sys
from {module} import {owner}
original = {owner}.{name}
def halting(self, *args, **kwargs):
    if os.environ["RANK"] == "{rank}" and "{when}" == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    found = original(self, *args, **kwargs)
    if os.environ["RANK"] == "{rank}":
        os.kill(os.getpid(), signal.SIGKILL)
    return found
{owner}.{name} = halting
"""

PLACES = {
    "before the agreement": ("holdfast.engine.follower", "Follower", "_take_part", "before", 1),
    "between agreement and write": ("holdfast.engine.follower", "Follower", "_write", "before", 1),
    "after its record": ("holdfast.engine.follower", "Follower", "_give", "after", 1),
    "the coordinator, before the rename": ("holdfast.store.commit", "Attempt", "publish", "before", 0),
    "the coordinator, after the rename": ("holdfast.store.commit", "Attempt", "publish", "after", 0),
}
LIMITS = {"rank_timeout_seconds": 2.0, "stop_grace_seconds": 10.0}


def resumed_ends_as_one_that_was_not(ranks: Ranks) -> None:
    job = ranks.start(settings={**LIMITS, "save_steps": 8})
    job.digests()
    assert holdfast("verify", ranks.run).returncode == 0


IN_ONE_RANK = in_full("a rank dies between agreement and write")
IN_RANK_0 = in_full("rank 0 dies before the rename")


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("before the agreement", marks=IN_ONE_RANK),
        "between agreement and write",
        pytest.param("after its record", marks=IN_ONE_RANK),
        "the coordinator, before the rename",
        pytest.param("the coordinator, after the rename", marks=IN_RANK_0),
    ],
)
def test_fault_37_38_what_is_published_is_whole_and_the_next_start_goes_on(ranks: Ranks, place: str) -> None:
    """SIGKILL of a rank before the agreement, before its write, after its record; of rank 0 around the rename."""
    module, owner, name, when, rank = PLACES[place]
    program = HALT.format(module=module, owner=owner, name=name, when=when, rank=rank)
    job = ranks.start(program=program, stand=[rank, 6], settings={**LIMITS, "save_steps": 4})
    # The scheduled save of step 4 meets it.
    assert job.processes[rank].wait() == -signal.SIGKILL, job.output
    other = job.processes[1 - rank]
    # As an elastic agent would: the others of a rank that died are told to end.
    if other.code is None:
        other.send(signal.SIGTERM)
    assert other.wait() is not None, other.output
    published = sorted(path.name for path in ranks.run.glob("checkpoint-*"))
    after = place.endswith("after the rename")
    # A rank whose record is there was part of a whole checkpoint, wherever it is now.
    if place != "after its record":
        assert published == (["checkpoint-4"] if after else []), job.output
    if published:
        assert holdfast("verify", ranks.run).returncode == 0
    resumed_ends_as_one_that_was_not(ranks)


@pytest.mark.parametrize(
    "asks", ["the clock", pytest.param("somebody, again and again", marks=in_full("the clock asks as often"))]
)
def test_fault_37_a_dead_rank_does_not_keep_the_other_from_ending_while_saves_are_asked_for(
    ranks: Ranks, asks: str
) -> None:
    """SIGKILL of one of two ranks, while saves are asked for more often than the other waits for it."""
    by_clock = {"save_minutes": 0.01} if asks == "the clock" else {}
    trigger = {"dynamic_checkpoint": {"enabled": True, "check_interval": 0}}
    job = ranks.start(until=2000, pause=0.05, settings={**LIMITS, **by_clock, **trigger})
    ranks.wait_for_step(3)
    job.processes[1].send(signal.SIGKILL)

    def has_ended() -> bool:
        if not by_clock:
            (ranks.run / "axolotl_checkpoint.save").touch()
        return job.processes[0].code is not None

    wait_until(has_ended, 60, f"the end of rank 0:\n{job.output}")
    assert job.processes[0].code not in (0, 75), job.output


def test_fault_39_a_stopped_rank_makes_an_abort_everywhere_and_training_goes_on_after_it(ranks: Ranks) -> None:
    """SIGSTOP of one of two ranks for as long as ranks wait for one another, then SIGCONT."""
    job = ranks.start(until=60, pause=0.05, settings=LIMITS)
    ranks.wait_for_step(3)
    job.processes[1].send(signal.SIGSTOP)
    failed = holdfast("save", ranks.run, "--wait")
    assert failed.returncode == 1
    assert "rank 1 gave no answer within 2 s" in failed.stdout + failed.stderr
    os.kill(job.processes[1].pid, signal.SIGCONT)
    saved = holdfast("save", ranks.run, "--wait")
    assert saved.returncode == 0, saved.stdout + saved.stderr + job.output
    job.digests()
    assert len(ranks.saved()) == 1 and len(events(ranks.run, "failed")) == 1


def test_fault_41_a_rank_whose_data_ends_earlier_makes_a_failed_save_and_no_hang(ranks: Ranks) -> None:
    """One of two ranks has three batches, the other hundreds."""
    # Without collectives, so that the other can go on at all.
    job = ranks.start(kind="apart", until=400, pause=0.02, short=[1, 3], settings={**LIMITS, "stop_grace_seconds": 2.0})
    ranks.wait_for_step(10)
    failed = holdfast("save", ranks.run, "--wait")
    assert failed.returncode == 1 and "ended unevenly" in failed.stdout + failed.stderr, job.output
    holdfast("stop", ranks.run)
    assert ended(job)


def test_fault_41_ranks_that_stand_on_different_steps_save_the_same_later_one(ranks: Ranks) -> None:
    """One of two ranks that share nothing stands after its third step while the other goes on."""
    job = ranks.start(kind="apart", until=400, pause=0.02, stand=[1, 3], settings=LIMITS)
    job.processes[1].wait_for("rank 1 stands")
    ranks.wait_for_step(10)
    assert holdfast("save", ranks.run).returncode == 0
    (agreed,) = wait_until(lambda: events(ranks.run, "agreed"), what=job.output)
    (ranks.folder / "go").touch()
    (saved,) = wait_until(ranks.saved, what=job.output)
    assert saved["step"] == agreed["boundary"] >= 10
    positions = [json.loads(Path(saved["path"], name).read_text()) for name in ("data.json", "data-00001.json")]
    assert len({(at["epoch"], at["consumed"]) for at in positions}) == 1, "rank 1 went on to the step of rank 0"
    holdfast("stop", ranks.run)
    assert job.wait() == [75, 75], job.output


def test_an_error_in_one_rank_is_preceded_by_a_save_of_all(ranks: Ranks) -> None:
    job = ranks.start(raises=[1, 5], settings=LIMITS)
    assert job.processes[1].wait() == 1
    assert "this rank has an error of its own" in job.processes[1].output
    (saved,) = wait_until(ranks.saved, what=job.output)
    assert saved["step"] == 5 and saved["doors"] == ["exception"]
    job.processes[0].send(signal.SIGTERM)
    job.processes[0].wait()
    resumed_ends_as_one_that_was_not(ranks)


def test_fault_42_a_second_job_on_a_live_run_is_refused_in_all_its_ranks(ranks: Ranks) -> None:
    """The same job of two ranks is started beside itself."""
    job = ranks.start(stand=[0, 2])
    job.processes[0].wait_for("rank 0 stands")
    second = ranks.start()
    assert second.wait() == [1, 1]
    assert all("RunBusyError" in p.output or "is training the run" in p.output for p in second.processes), second.output
    job.kill()


def test_ranks_that_see_different_directories_are_told_so_before_anything_is_trained(ranks: Ranks) -> None:
    apart = "import os\nos.chdir(os.environ['RANK']) if os.path.isdir(os.environ['RANK']) else None"
    (ranks.folder / "1").mkdir()
    job = ranks.start(program=apart, run="run")
    assert job.wait() == [1, 1]
    assert all("output_dir must be one directory for all ranks" in p.output for p in job.processes), job.output


def ended(job: Job) -> bool:
    return all(code is not None for code in job.wait())
