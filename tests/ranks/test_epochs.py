"""Ranks that go through epochs: where they leave is agreed on, wherever in the body of one each of them is."""

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from helpers.full import in_full
from helpers.trainings import events
from ranks.conftest import Job, Ranks

_HEARD = re.compile(r"rank (\d) hears True (\d+) (\S+)")
PROGRAM = "from ranks.epochs import run\nrun()"


def validated(job: Job) -> list[str]:
    """What the ranks printed of each epoch, in the order of epochs."""
    return sorted(re.findall(r"rank \d validated epoch .*", job.output), key=lambda line: line.split("epoch ")[1])


def begun(job: Job) -> list[int]:
    """The epochs whose bodies the ranks have begun, each by both or by none."""
    first, second = (re.findall(rf"rank {rank} begins epoch (\d)", job.output) for rank in (0, 1))
    assert first == second, job.output
    return [int(epoch) for epoch in first]


def stopped(ranks: Ranks, rank: int, **orders: Any) -> Job:
    """Starts both ranks, and sends SIGTERM to one when those that are to stand do so."""
    (ranks.folder / "go").unlink(missing_ok=True)
    # What must be there before they go on: the save, or that it was agreed on where it comes later.
    kind = "saved" if orders.get("settings") is None else "agreed"
    before = len(events(ranks.run, kind))
    job = ranks.start(program=PROGRAM, **orders)
    for standing, (place, _) in orders["stand"].items():
        job.processes[int(standing)].wait_for(f"rank {standing} stands at {place}")
    job.processes[rank].send(signal.SIGTERM)
    ranks.wait_for_events(kind, before + 1)
    (ranks.folder / "go").touch()
    assert job.wait() == [75, 75], job.output
    assert "is through" not in job.output
    return job


def test_a_stop_leaves_all_ranks_at_one_place_of_the_body_and_comes_to_the_same_end(ranks: Ranks) -> None:
    """None past the end of the batches, one of them, both, and what cannot be saved before the end of the body."""
    alone = ranks.start(program=PROGRAM, plain=True)
    # Both stand behind the last step: nobody is past the end of the batches, and nobody goes there.
    job = stopped(ranks, 0, stand={"0": ["last", 0], "1": ["last", 0]})
    assert begun(job) == [0] and not validated(job) and [event["step"] for event in ranks.saved()] == [4]
    # Rank 0 has gone past it, and waits in the validation for rank 1.
    job = stopped(ranks, 0, stand={"0": ["moved", 1], "1": ["last", 1]})
    assert begun(job) == [0, 1] and len(validated(job)) == 4
    assert [event["step"] for event in ranks.saved()] == [4, 8]
    # Both are in the validation, their averages have moved; what they ask for there is of the end of the body.
    job = stopped(ranks, 1, stand={"0": ["moved", 2], "1": ["moved", 2]}, slot={"2": [0, 1]})
    assert begun(job) == [1, 2] and len(validated(job)) == 4
    assert [event["step"] for event in ranks.saved()] == [4, 8, 12, 12]
    # Nothing is copied: what is saved is the end of the body, and all leave at the first step of the next.
    job = stopped(ranks, 0, stand={"0": ["moved", 3], "1": ["moved", 3]}, settings={"staging_memory": 0})
    assert begun(job) == [3, 4] and len(validated(job)) == 2
    assert [event["step"] for event in ranks.saved()] == [4, 8, 12, 12, 16]
    assert "a save waits for the end of the body" in job.output
    assert events(ranks.run)[-1]["outcome"] == "stopped"
    last = ranks.start(program=PROGRAM)
    assert last.digests()[0].split()[0] == "20"
    alone.wait()
    ends = [re.findall(r"rank \d ends \d+ (\w+)", each.output) for each in (alone, last)]
    assert len(ends[0]) == 2 and ends[0] == ends[1]
    assert validated(last) == validated(alone)[-2:]
    assert Path(ranks.saved()[-1]["path"]).name == "checkpoint-20"


@in_full("a stop in each of these places stays")
@pytest.mark.parametrize("place", ["last", "moved"])
def test_killed_in_a_body_after_a_save_there_they_come_to_the_same_end(ranks: Ranks, place: str) -> None:
    job = ranks.start(program=PROGRAM, stand={"0": [place, 1], "1": [place, 1]})
    for rank in (0, 1):
        job.processes[rank].wait_for(f"rank {rank} stands at {place}")
    job.processes[0].send(signal.SIGUSR1)
    ranks.wait_for_events("saved", 1)
    job.kill()
    assert [event["step"] for event in ranks.saved()] == [8]
    resumed, alone = ranks.start(program=PROGRAM), ranks.start(program=PROGRAM, plain=True)
    assert resumed.wait() == alone.wait() == [0, 0], resumed.output
    ends = [re.findall(r"rank \d ends \d+ (\w+)", each.output) for each in (alone, resumed)]
    assert len(ends[0]) == 2 and ends[0] == ends[1]
    assert validated(resumed) == validated(alone)[2:]


def test_what_all_ranks_ask_for_in_the_rest_of_a_body_is_of_its_end(ranks: Ranks) -> None:
    """What one of them asks for alone is answered too: nobody waits for the other's call."""
    job = ranks.start(program=PROGRAM, epochs=3, slot={"0": [0, 1], "1": [1], "2": [0, 1]})
    assert job.wait() == [0, 0], job.output
    heard = {(int(rank), int(step)): Path(path) for rank, step, path in _HEARD.findall(job.output)}
    assert set(heard) - {(1, 8)} == {(0, 4), (1, 4), (0, 12), (1, 12)}, job.output
    assert (1, 8) in heard or "call save() in all ranks" in job.output
    assert heard[0, 12] == heard[1, 12]
    assert json.loads((heard[0, 12] / "MANIFEST.json").read_text())["boundary"]["face"] == "epoch_end"
    alone = ranks.start(program=PROGRAM, epochs=3, plain=True)
    assert alone.wait() == [0, 0] and validated(job) == validated(alone)
