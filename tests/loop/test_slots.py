"""`save(slot=)`: the checkpoint of a name takes the place of the one before it, and stays until the next takes its."""

import json
from pathlib import Path

import pytest

from helpers.loops import Loop
from helpers.support import holdfast
from holdfast.errors import ConfigError, SaveError
from holdfast.run.directory import RunDirectory
from holdfast.run.inbox import Inbox
from holdfast.run.request import Request
from holdfast.run.run import Run
from holdfast.store import catalog
from holdfast.store.retention import slots_held


def steps(run: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in run.glob("checkpoint-*"))


def holders(run: Path) -> dict[str, int]:
    """The step that has each slot."""
    entries = catalog.entries(run)
    held = slots_held(entries)
    return {slot: entry.step for entry in entries for slot in held.get(entry.path, [])}


def test_the_best_by_ones_own_measure_is_kept_and_no_other(tmp_path: Path) -> None:
    run = tmp_path / "run"
    loop = Loop(run, save_steps=4, save_total_limit=2, dynamic_checkpoint={"keep": 1})
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=20):
            loop.update(batch)
            step = loop.ckpt.step_count
            if step in (3, 6, 10):
                loop.ckpt.save(f"loss {step}", slot="best", wait=True)
                assert holders(run)["best"] == step
            if step in (5, 9, 12):
                loop.ckpt.save(slot="last.of-day_1", wait=True)
            if step in (2, 7):
                loop.ckpt.save("by hand", wait=True)
    assert holders(run) == {"best": 10, "last.of-day_1": 12}
    assert steps(run) == [7, 10, 12, 16, 20], "one by hand, two of the schedule, and the slots beside them"
    listed = holdfast("list", run).stdout
    assert [line.split()[8] for line in listed.splitlines()[1:]] == ["-", "-", "last.of-day_1", "best", "-"]
    rows = json.loads(holdfast("list", run, "--json").stdout)["checkpoints"]
    assert [row["slots"] for row in rows] == [[], [], ["last.of-day_1"], ["best"], []]
    assert ", label loss 10, slot best" in holdfast("inspect", run / "checkpoint-10").stdout
    pruned = holdfast("prune", run, "--keep-last", "1", "--labelled", "--yes")
    assert "stays: it has the slot best" in pruned.stdout and steps(run) == [10, 12, 20]


def test_a_checkpoint_that_is_wanted_otherwise_stays_when_its_slot_goes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    loop = Loop(run, save_steps=5, save_total_limit=3, keep_every=7)
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=12):
            loop.update(batch)
            step = loop.ckpt.step_count
            if step in (4, 5, 7, 8):
                loop.ckpt.save(slot="best", wait=True)
            if step == 4:
                loop.ckpt.save(wait=True)  # the same boundary: what is there is the answer
            if step == 5:
                loop.ckpt.save("beside", slot="second", wait=True)
    assert holders(run) == {"best": 8, "second": 5}
    assert steps(run) == [4, 5, 7, 8, 10]


def test_it_holds_over_resumes_and_what_a_crash_left_goes_with_the_next_save(tmp_path: Path) -> None:
    run = tmp_path / "run"
    loop = Loop(run, on_stop="return")
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=6):
            loop.update(batch)
            if loop.ckpt.step_count in (3, 5):
                (run / "checkpoint-3").rename(run / "kept") if loop.ckpt.step_count == 5 else None
                loop.ckpt.save(slot="best", wait=True)
    (run / "kept").rename(run / "checkpoint-3")  # as if nobody had come to remove it
    assert holders(run) == {"best": 5}
    resumed = Loop(run)
    with resumed.ckpt:
        for batch in resumed.ckpt.batches(until=9):
            resumed.update(batch)
            if resumed.ckpt.step_count == 7:
                resumed.ckpt.save(wait=True)
                assert steps(run) == [5, 7] and holders(run) == {"best": 5}
            if resumed.ckpt.step_count == 8:
                resumed.ckpt.save(slot="best", wait=True)
    assert steps(run) == [5, 7, 8], "5 is what the training was resumed from"


def test_before_the_first_update_of_a_resume_it_is_the_checkpoint_itself_once_more(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = Loop(run)
    with first.ckpt:
        for batch in first.ckpt.batches(until=3):
            first.update(batch)
    assert steps(run) == []
    loop = Loop(run, save_steps=2)
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=2):
            loop.update(batch)
    resumed = Loop(run)
    with resumed.ckpt:
        resumed.ckpt.resume()
        resumed.ckpt.save(slot="best", wait=True)
        assert holders(run) == {"best": 2}
        for batch in resumed.ckpt.batches(until=3):
            resumed.update(batch)


@pytest.mark.parametrize("slot", ["../best", "", "a b", ".hidden", "x" * 101, 3])
def test_what_is_no_name_is_refused_at_the_call(tmp_path: Path, slot: str) -> None:
    loop = Loop(tmp_path / "run")
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=1):
            loop.update(batch)
            if slot:
                with pytest.raises(ConfigError, match="is no name"):
                    loop.ckpt.save(slot=slot)
            with pytest.raises(ConfigError, match="the save of a stop"):
                loop.ckpt.save(slot="best", stop=True)


def test_one_that_a_crash_left_unanswered_is_not_served_for_another_boundary(tmp_path: Path) -> None:
    run = tmp_path / "run"
    Run.open(run).close("killed", 137)
    directory = RunDirectory.open(run)
    left = Request("python", slot="best", why="Checkpointer.save")
    Inbox(directory).submit(left)
    loop = Loop(run)
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=3):
            loop.update(batch)
    answer = Inbox(directory).answer_to(left.id)
    assert answer is not None and not answer.saved and "the process that asked for slot best has ended" in answer.error
    assert steps(run) == [] and not list((run / ".holdfast" / "requests").iterdir())


def test_what_is_written_past_the_gate_gives_the_slot_to_no_later_boundary(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "run")
    weight = next(loop.model.parameters())
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=6):
            loop.update(batch)
            if loop.ckpt.step_count == 3:
                weight.data.mul_(1.0001)  # no update is seen: the boundary is gone
                pending = loop.ckpt.save(slot="best")
    with pytest.raises(SaveError, match="a slot is of the boundary at which it was asked for"):
        pending.wait()
    assert steps(tmp_path / "run") == []
