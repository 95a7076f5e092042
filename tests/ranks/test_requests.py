"""Whoever asks, in whatever rank: all ranks save one boundary together, and everybody is answered."""

import re
import signal

import pytest

from helpers.support import holdfast
from helpers.trainings import events
from helpers.waiting import wait_until
from ranks.conftest import Ranks


def test_fault_22_fifty_requests_from_random_ranks_are_each_answered(ranks: Ranks) -> None:
    """Four ranks ask at random steps, some while a save runs."""
    job = ranks.start(4, until=120, ask_every=8)
    job.digests()
    asked = [int(n) for n in re.findall(r"asked (\d+), answered", job.output)]
    answered = [int(n) for n in re.findall(r"answered (\d+)", job.output)]
    assert asked == answered and sum(asked) >= 50
    found = ranks.answers()
    assert len(found) == sum(asked) and all(answer["saved"] for answer in found.values())
    for event in ranks.saved():
        assert ranks.manifest(event["step"])["world_size"] == 4
    assert holdfast("verify", ranks.run).returncode == 0


@pytest.mark.parametrize("door", ["trigger file", "command", "signal to rank 1"])
def test_a_request_is_served_while_another_rank_stands_in_an_evaluation(ranks: Ranks, door: str) -> None:
    job = ranks.start(stand=[1, 5])
    job.processes[1].wait_for("rank 1 stands")
    if door == "trigger file":
        (ranks.run / "axolotl_checkpoint.save").touch()
    elif door == "command":
        assert holdfast("save", ranks.run, "--wait").returncode == 0
    else:
        job.processes[1].send(signal.SIGUSR1)
    (saved,) = wait_until(ranks.saved, what=job.output)
    assert saved["step"] == 5
    (agreed,) = events(ranks.run, "agreed")
    assert agreed["boundary"] == 5 and agreed["why"] == ""
    (ranks.folder / "go").touch()
    job.digests()
    assert len(ranks.saved()) == 1


def test_status_shows_where_each_rank_stands(ranks: Ranks) -> None:
    job = ranks.start(stand=[1, 3])
    job.processes[1].wait_for("rank 1 stands")
    (other,) = wait_until(lambda: [one for one in ranks.status().get("ranks", []) if one["step"] == 3])
    assert (other["rank"], other["phase"], other["boundary"]) == (1, "training", 3) and other["age"] < 30
    shown = holdfast("status", ranks.run).stdout
    assert re.search(r"rank 1\s.*step 3", shown), shown
    job.kill()


@pytest.mark.parametrize("whom", ["one rank", "all, twice"])
def test_fault_29_a_stop_leaves_every_rank_at_the_same_later_step_with_one_checkpoint(ranks: Ranks, whom: str) -> None:
    """SIGTERM to the rank that is not the first; to all ranks twice."""
    job = ranks.start(until=100_000, pause=0.02, elastic=whom == "one rank")
    ranks.wait_for_step(3)
    for _ in range(1 if whom == "one rank" else 2):
        for process in job.processes[1:] if whom == "one rank" else job.processes:
            process.send(signal.SIGTERM)
    # torchrun starts again whatever ends with another code, so there a good stop is 0.
    assert job.wait() == ([0, 0] if whom == "one rank" else [75, 75]), job.output
    (saved,) = ranks.saved()
    left = {int(line.split()[1]) for rank in (0, 1) for line in _last_line(ranks, rank)}
    assert left == {saved["step"] + 1}
    assert events(ranks.run)[-1]["outcome"] == "stopped"


def _last_line(ranks: Ranks, rank: int) -> list[str]:
    return (ranks.folder / f"seen-{rank}.txt").read_text().splitlines()[-1:]


SEES_WHAT_IS_PUBLISHED = """
import os, threading
from pathlib import Path
from holdfast import Checkpointer

resume = Checkpointer.resume

def hooked(self):
    def see(answer):
        assert threading.current_thread() is threading.main_thread() and Path(answer.path, "MANIFEST.json").exists()
        print(f"rank {os.environ['RANK']} saw {answer.step}", flush=True)
    self._engine.on_published(see)
    return resume(self)

Checkpointer.resume = hooked
"""


def test_hooks_run_in_every_rank_for_each_checkpoint_the_last_one_too(ranks: Ranks) -> None:
    job = ranks.start(program=SEES_WHAT_IS_PUBLISHED, until=6, settings={"save_steps": 3})
    job.digests()
    assert [saved["step"] for saved in ranks.saved()] == [3, 6]
    for rank, process in enumerate(job.processes):
        assert re.findall(rf"rank {rank} saw (\d+)", process.output) == ["3", "6"], process.output
