"""Before the first update: a save is answered with what there is, a stop saves nothing."""

from pathlib import Path
from typing import Any

import pytest

from helpers.loops import Loop, train
from helpers.support import holdfast
from helpers.trainings import events
from helpers.waiting import wait_until
from holdfast.errors import HoldfastError, SaveError, Stopped
from holdfast.run.directory import RunDirectory
from holdfast.run.inbox import Inbox
from holdfast.run.request import Answer, Request
from holdfast.store import catalog, pins


def asked_before_the_first_update(run: Path, *requests: Request, **changes: Any) -> tuple[Loop, list[Answer]]:
    """A training of which somebody asks while it stands before its first update; then it makes three."""
    loop, answers = Loop(run, **changes), []
    inbox = Inbox(RunDirectory.open(run))
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=loop.ckpt.resume() + 3):
            if not loop.losses:
                for request in requests:
                    inbox.submit(request)
                    answers.append(inbox.wait(request.id, 20, lambda: None))
            loop.update(batch)
    return loop, answers


def test_a_save_is_of_step_0_and_a_resume_of_it_goes_on_exactly(tmp_path: Path) -> None:
    loop, (answer,) = asked_before_the_first_update(tmp_path / "run", Request("command"))
    assert (answer.saved, answer.step, Path(answer.path).name) == (True, 0, "checkpoint-0")
    again = train(tmp_path / "run", 3, resume=answer.path)
    assert again.losses == loop.losses and again.digest() == loop.digest()


def test_training_itself_may_wait_for_a_save_of_step_0(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "run")
    with loop.ckpt:
        with pytest.raises(HoldfastError, match=r"before resume\(\)"):
            loop.ckpt.save(wait=True)
        loop.ckpt.resume()
        assert loop.ckpt.save("as it begins", wait=True).wait().step == 0


def test_after_a_resume_the_answer_is_what_was_resumed_from_and_it_counts_as_asked_for(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, 4, save_steps=2)
    _, (plain, labelled) = asked_before_the_first_update(
        run, Request("command"), Request("command", label="before new lr"), save_total_limit=1
    )
    assert (plain.path, plain.step) == (str(run / "checkpoint-4"), 4)
    assert labelled.saved and labelled.step == 4, "a label of its own: a new checkpoint of that step"
    assert holdfast("verify", run).returncode == 0
    new, superseded, _ = (entry.manifest for entry in catalog.entries(run))
    assert new is not None and superseded is not None and superseded.attempt in pins.asked_for(run / ".holdfast")
    assert (new.step, new.reasons[0]["label"], new.files) == (4, "before new lr", superseded.files)
    train(run, 8, save_steps=1, save_total_limit=1)
    assert sorted(entry.step for entry in catalog.entries(run)) == [4, 4, 8], "who asked is not forgotten"


def test_a_trigger_file_that_waits_at_a_resume_saves_nothing_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, 4, save_steps=4)
    (run / "axolotl_checkpoint.save").touch()
    loop = train(run, 9)
    assert not (run / "axolotl_checkpoint.save").exists() and not list(run.glob("superseded-*"))
    assert [event["step"] for event in events(run, "saved")] == [4]
    assert any("step=4" in line for line in loop.said)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_stop_from_python_ends_the_loop_and_saves_nothing(tmp_path: Path, resumed: bool) -> None:
    run = tmp_path / "run"
    if resumed:
        train(run, 4, save_steps=4)
    loop, seen = Loop(run), len(events(run, "saved"))
    with pytest.raises(Stopped) as left, loop.ckpt:
        for batch in loop.ckpt.batches(until=9):
            if not loop.losses:
                pending = loop.ckpt.save(stop=True)
                wait_until(lambda: loop.ckpt.stop_requested)
            loop.update(batch)
    assert left.value.code == (75 if resumed else 143) and len(events(run, "saved")) == seen
    assert events(run)[-1]["outcome"] == "stopped"
    if resumed:
        assert pending.wait().path == str(run / "checkpoint-4")
    else:
        with pytest.raises(SaveError, match="no step was taken yet"):
            pending.wait()
