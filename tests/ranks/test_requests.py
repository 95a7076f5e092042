"""Whoever asks, in whatever rank: all ranks save one boundary together, and everybody is answered."""

import hashlib
import json
import re
import signal

import pytest

from helpers.full import FULL
from helpers.support import holdfast
from helpers.trainings import events
from helpers.waiting import wait_until
from ranks.conftest import Ranks

# The steps of a training in which each rank asks at every eighth or so.
STEPS, REQUESTS = (120, 50) if FULL else (48, 15)


def test_fault_22_fifty_requests_from_random_ranks_are_each_answered(ranks: Ranks) -> None:
    """Four ranks ask at random steps, some while a save runs."""
    job = ranks.start(4, until=STEPS, ask_every=8)
    job.digests()
    asked = [int(n) for n in re.findall(r"asked (\d+), answered", job.output)]
    answered = [int(n) for n in re.findall(r"answered (\d+)", job.output)]
    assert asked == answered and sum(asked) >= REQUESTS
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


@pytest.mark.parametrize("waits", [False, True])
def test_what_training_asks_for_in_all_ranks_is_of_the_boundary_at_the_call(ranks: Ranks, waits: bool) -> None:
    """Each rank's random state, and the learning rate, are those that it had at the call, and not a moment later."""
    job = ranks.start(calls=[0, 1], waits=waits)
    job.digests()
    assert [event["step"] for event in ranks.saved()] == [5, 10, 15, 20]
    for rank, name in enumerate(("random.json", "random-00001.json")):
        states = re.findall(rf"rank {rank} calls with (.+)", job.output)
        for step, state in zip((5, 10, 15, 20), states, strict=True):
            folder = ranks.run / f"checkpoint-{step}"
            text = str(json.loads((folder / name).read_text())["cpu"])
            assert hashlib.sha256(text.encode()).hexdigest() == state
            assert (step / 64).hex() in (folder / "optimizer.json").read_text()
            assert len(ranks.manifest(step)["reasons"]) == 1, "the calls of the ranks are one request"


def test_what_one_rank_asks_for_is_of_the_agreed_boundary_which_is_said(ranks: Ranks) -> None:
    job = ranks.start(calls=[1], pause=0.05)
    job.digests()
    saved = [event["step"] for event in ranks.saved()]
    notes = re.findall(r"asked at (\d+), saved (\d+); call save\(\) in all ranks", job.output)
    assert len(saved) == 4
    for asked, step in zip((5, 10, 15, 20), saved, strict=True):
        assert step == asked or (str(asked), str(step)) in notes, job.output


def test_a_rank_that_waits_for_a_save_of_its_own_while_another_is_further_hears_what_to_do(ranks: Ranks) -> None:
    """Without collectives the ranks run apart: rank 1 stands at its call while rank 0 has gone on."""
    job = ranks.start(kind="apart", calls=[1], waits=True, stand=[1, 4], until=12)
    job.processes[1].wait_for("rank 1 stands")
    ranks.wait_for_step(12)
    (ranks.folder / "go").touch()
    job.wait()
    assert re.search(r"asked at 5, and others were at 12; call save\(\) in all ranks", job.output), job.output


def test_a_slot_is_of_the_boundary_at_the_call_of_all_ranks(ranks: Ranks) -> None:
    settings = {"on_saved": "tell", "on_saved_all_ranks": True}
    job = ranks.start(calls=[0, 1], waits=True, slot="best", settings=settings)
    job.digests()
    assert [event["step"] for event in ranks.saved()] == [5, 10, 15, 20]
    assert [path.name for path in ranks.run.glob("checkpoint-*")] == ["checkpoint-20"]
    assert [reason["slot"] for reason in ranks.manifest(20)["reasons"]] == ["best"]
    for rank, process in enumerate(job.processes):
        told = re.findall(rf"rank {rank} hears of (\d+) \['called'\] \['best'\]", process.output)
        assert told == ["5", "10", "15", "20"], process.output


def test_a_slot_that_one_rank_asks_for_while_another_is_further_is_refused(ranks: Ranks) -> None:
    """Without collectives the ranks run apart: what was measured at 5 would be said of the weights of another step."""
    settings = {"on_saved": "tell"}
    job = ranks.start(kind="apart", calls=[1], slot="best", stand=[1, 4], until=12, settings=settings)
    job.processes[1].wait_for("rank 1 stands")
    ranks.wait_for_step(7)
    (ranks.folder / "go").touch()
    job.wait()
    assert "a slot is of the boundary at which it was asked for" in job.output, job.output
    steps = {event["step"] for event in ranks.saved()}
    assert not steps & {6, 7, 8, 9, 11, 12}, "no other boundary has it"
    assert "rank 1 hears" not in job.output


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


# A stop comes to rank 0 when the ranks have just agreed on the save of a boundary, for which nobody wanted to stop.
STOPPED_MEANWHILE = """
import os, signal, time
from holdfast.engine import peers

call = peers.Coordinator.call

def call_and_stop(self, offer, *, stop, **others):
    decision = call(self, offer, stop=stop, **others)
    if not stop and decision.boundary == 10:
        os.kill(os.getpid(), signal.SIGTERM)
        while not queue().stop_waits:
            time.sleep(0.001)
    return decision

def queue():
    return made[0]._queue

made, init = [], peers.RankZero.__init__

def noting(self, *args):
    made.append(self)
    init(self, *args)

peers.RankZero.__init__ = noting
peers.Coordinator.call = call_and_stop
"""


def test_a_stop_that_comes_while_ranks_agree_on_another_save_is_the_next_ones(ranks: Ranks) -> None:
    """Where they leave is a part of what they agree on: it was answered with that save, and nobody left."""
    job = ranks.start(until=100_000, pause=0.005, program=STOPPED_MEANWHILE, settings={"save_steps": 5})
    assert job.wait() == [75, 75], job.output
    (stopped,) = [event for event in ranks.saved() if "signal" in event["doors"]] or ranks.saved()[-1:]
    assert stopped["step"] >= 10 and "did not end" not in job.output
    assert events(ranks.run)[-1]["outcome"] == "stopped"


def test_hooks_run_in_every_rank_for_each_checkpoint_the_last_one_too(ranks: Ranks) -> None:
    job = ranks.start(program=SEES_WHAT_IS_PUBLISHED, until=6, settings={"save_steps": 3})
    job.digests()
    assert [saved["step"] for saved in ranks.saved()] == [3, 6]
    for rank, process in enumerate(job.processes):
        assert re.findall(rf"rank {rank} saw (\d+)", process.output) == ["3", "6"], process.output
