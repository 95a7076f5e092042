"""A plain loop: the things that it leaves behind, and the settings that it refuses before it begins."""

import gc
import logging
import multiprocessing
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from helpers.loops import Loop, train
from helpers.trainings import events
from helpers.waiting import wait_until
from holdfast import Checkpointer
from holdfast.errors import CheckpointError, ConfigError, NoCheckpointError, SaveError
from holdfast.loop import passes
from holdfast.run.directory import RunDirectory
from holdfast.run.inbox import Inbox
from holdfast.run.request import Request
from holdfast.store import files
from holdfast.store.retention import RetentionPolicy


@contextmanager
def without_collection() -> Iterator[None]:
    """No cyclic garbage is collected, so that nothing ends because of that."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("how", ["the loop ends", "the batches are held", "an error"])
def test_no_worker_is_left_when_the_block_ends_in_the_middle_of_an_epoch(tmp_path: Path, how: str) -> None:
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters())
    rows: Any = list(range(20))
    data: DataLoader[int] = DataLoader(rows, num_workers=2)
    workers = []
    with without_collection():
        try:
            with Checkpointer(
                tmp_path, model=model, optimizer=optimizer, data=data, say=lambda _: None
            ) as checkpointer:
                batches = checkpointer.batches(until=5 if how == "the loop ends" else None)
                for _ in batches if how == "the loop ends" else (next(batches) for _ in range(5)):
                    optimizer.step()
                    checkpointer.step()
                workers = multiprocessing.active_children()
                if how == "an error":
                    raise ArithmeticError
        except ArithmeticError:
            assert how == "an error"
        assert not [worker for worker in multiprocessing.active_children() if worker in workers]
    assert checkpointer.step_count == 5
    assert len(workers) == 2


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"save_steps": "5"}, "save_steps: '5'"),
        ({"save_steps": 0}, "save_steps: 0"),
        ({"save_steps": True}, "save_steps: True"),
        ({"save_total_limit": "2"}, "save_total_limit: '2' is no number of checkpoints"),
        ({"keep_every": "x"}, "keep_every: 'x'"),
        ({"resume": 3}, 'resume: 3 is no checkpoint; give "auto"'),
        ({"say": "x"}, "say: a str is no function"),
        ({"say": lambda: None}, "say: it is called with a line of text alone"),
        ({"dynamic_checkpoint": {"check_interval": "5"}}, "dynamic_checkpoint.check_interval: expected a whole number"),
        ({"on_stop": "retrun"}, "on_stop"),
    ],
)
def test_a_setting_that_is_none_is_refused_by_its_name(setting: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=named):
        Checkpointer(tmp_path / "run", model=torch.nn.Linear(2, 2), **setting)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("root", "said"),
    [
        (None, "None is no path of a directory"),
        (5, "5 is no path of a directory"),
        (b"run", "b'run' is no path of a directory"),
        ("", "is empty; name a directory, or '.' for"),
        ("s3://bucket/run", r"an address \(s3://...\) is given, and a directory of this machine is meant"),
    ],
)
def test_what_is_no_directory_is_refused_and_an_empty_one_is_not_the_one_that_one_is_in(
    root: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"output_dir: {said}"):
        Checkpointer(root, model=torch.nn.Linear(1, 1))
    assert not list(tmp_path.iterdir())


def test_a_call_with_something_else_is_refused_by_name_and_nothing_is_asked_for(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "run")
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=1):
            loop.update(batch)
            for label in (5, None, b"text"):
                with pytest.raises(ConfigError, match=f"label: {label!r} is no text"):
                    loop.ckpt.save(label)  # type: ignore[arg-type]
            with pytest.raises(ConfigError, match="label: has 5000 bytes, and a label has at most 4096"):
                loop.ckpt.save("x" * 5000)
            for loss in ("x", [1.0], torch.zeros(2), np.zeros(2), torch.zeros(1, dtype=torch.complex64), 1j):
                with pytest.raises(ConfigError, match=r"loss: .* is no number"):
                    loop.ckpt.step(loss=loss)  # type: ignore[arg-type]
            assert loop.ckpt.step_count == 1
            for number in (None, 3, np.float32(1), np.ones(1), torch.ones(1, 1), torch.nn.Parameter(torch.ones(()))):
                loop.optimizer.step()
                loop.ckpt.step(loss=number)  # type: ignore[arg-type]
            for timeout in ("x", -1, float("nan"), True):
                with pytest.raises(ConfigError, match=r"timeout: .* is no number of seconds"):
                    loop.ckpt.save().wait(timeout)  # type: ignore[arg-type]


@pytest.mark.parametrize("every", [0, -1])
def test_to_keep_every_0th_checkpoint_is_refused(tmp_path: Path, every: int) -> None:
    with pytest.raises(ConfigError, match=rf"keep_every: {every} is no number of steps"):
        Checkpointer(tmp_path, keep_every=every)
    with pytest.raises(ConfigError, match=rf"keep_every: {every} is no number of steps"):
        RetentionPolicy(None, None, every=every)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(60)
def test_a_request_that_waits_for_a_training_that_is_over_is_answered_with_what_it_left(tmp_path: Path) -> None:
    train(tmp_path, 3, save_steps=3)
    inbox, request = Inbox(RunDirectory.open(tmp_path)), Request("command")
    inbox.submit(request)
    said = train(tmp_path, 3, resume="auto").said
    assert any("resumed from" in line for line in said)
    answer = inbox.answer_to(request.id)
    assert answer is not None and answer.path == str(tmp_path / "checkpoint-3")
    assert any(line.startswith("nothing to do: ") for line in said)
    assert [path.name for path in tmp_path.glob("*-3*")] == ["checkpoint-3"]


def test_no_thread_of_ours_is_left_when_the_block_has_ended(tmp_path: Path) -> None:
    """One that is still waking when the interpreter ends aborted the process (seen: 3 of 11, with code 134)."""
    loop = Loop(tmp_path / "run")
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=4):
            loop.update(batch)
            if loop.ckpt.step_count == 3:
                loop.ckpt.save(wait=True)
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("holdfast")] == []


def test_a_save_and_a_resume_are_news_and_a_save_that_fails_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "run", 2, save_steps=2, say=None)
    loop = Loop(tmp_path / "run", say=None)
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=4):
            loop.update(batch)
            if loop.ckpt.step_count == 3:
                with monkeypatch.context() as full:
                    full.setattr(files, "free_space", lambda root: (0, -1))
                    with pytest.raises(SaveError):
                        loop.ckpt.save(wait=True)
    lines = [(level, line) for name, level, line in caplog.record_tuples if name == "holdfast"]
    assert (logging.INFO, "checkpoint saved") in [(level, line[:16]) for level, line in lines]
    assert any(level == logging.INFO and line.startswith("resumed from") for level, line in lines)
    assert any(level == logging.ERROR and "the checkpoint needs" in line for level, line in lines)
    assert any(level == logging.WARNING and line.startswith("training goes on") for level, line in lines)


@pytest.mark.parametrize("at_boundaries", [False, True])
@pytest.mark.parametrize("waits", [False, True])
def test_a_save_that_training_asks_for_is_of_the_boundary_at_the_call(
    tmp_path: Path, waits: bool, at_boundaries: bool
) -> None:
    """What the loop changed before the call is in it, what it changed right after is not; and a resume goes on exactly.

    The random numbers that it drew before the call were drawn.
    """
    loop, exact = Loop(tmp_path / "run"), ""
    loop.ckpt._engine.gate.only_when_blocked = at_boundaries
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=12):
            loop.update(batch)
            if loop.ckpt.step_count == 6:
                torch.rand(5)
                loop.optimizer.param_groups[0]["weight_decay"] = 0.25
                pending = loop.ckpt.save("before the new weight decay", wait=waits)
                loop.optimizer.param_groups[0]["weight_decay"] = 0.5
    assert pending.wait(20).step == 6 and not pending.wait().note
    resumed = Loop(tmp_path / "run", resume=str(tmp_path / "run" / "checkpoint-6"))
    with resumed.ckpt:
        for batch in resumed.ckpt.batches(until=12):
            if resumed.ckpt.step_count == 6:
                assert resumed.optimizer.param_groups[0]["weight_decay"] == 0.25
                resumed.optimizer.param_groups[0]["weight_decay"] = 0.5
            resumed.update(batch)
    exact = loop.digest()
    assert resumed.digest() == exact


def test_a_save_that_is_asked_for_when_the_next_batch_is_there_lets_that_batch_come_again(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "run")
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=12):
            if loop.ckpt.step_count == 6:
                loop.ckpt.save("with a batch in hand", wait=True)
            loop.update(batch)
    resumed = train(tmp_path / "run", 12, resume=str(tmp_path / "run" / "checkpoint-6"))
    assert resumed.losses == loop.losses[6:] and resumed.digest() == loop.digest()


def test_two_calls_at_one_boundary_are_answered_each_with_its_own_state(tmp_path: Path) -> None:
    loop, pending = Loop(tmp_path / "run"), []
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=6):
            loop.update(batch)
            for decay in (0.25, 0.5) if loop.ckpt.step_count == 3 else ():
                loop.optimizer.param_groups[0]["weight_decay"] = decay
                pending.append(loop.ckpt.save(f"decay {decay}"))
    assert [one.wait(20).step for one in pending] == [3, 3]
    kept = {path.name.split("-")[0]: (path / "optimizer.json").read_text() for path in (tmp_path / "run").glob("*-3*")}
    assert (0.5).hex() in kept["checkpoint"]
    assert "superseded" not in kept or (0.25).hex() in kept["superseded"]


def test_weights_that_are_swapped_at_the_call_are_not_taken_for_those_that_are_trained(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "run")
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=6):
            loop.update(batch)
            if loop.ckpt.step_count == 3:
                kept = [parameter.detach().clone() for parameter in loop.model.parameters()]
                for parameter in loop.model.parameters():
                    parameter.data.zero_()
                pending = loop.ckpt.save("swapped")
                with pytest.raises(SaveError, match="written outside the optimizer"):
                    pending.wait()
                for parameter, own in zip(loop.model.parameters(), kept, strict=True):
                    parameter.data.copy_(own)


@pytest.mark.parametrize(
    ("given_as", "value", "line"),
    [
        ("save_step", 10, "save_step: there is no such setting, and an int is no part; did you mean save_steps?"),
        (
            "stop_grace",
            9.0,
            "stop_grace: there is no such setting, and a float is no part; did you mean stop_grace_seconds?",
        ),
        ("resum", False, "resum: there is no such setting, and a bool is no part; did you mean resume?"),
        (
            "save_limit",
            5,
            "save_limit: there is no such setting, and an int is no part; did you mean save_total_limit or"
            " save_rate_limit?",
        ),
        (
            "resume_from_checkpoint",
            True,
            "resume_from_checkpoint: there is no such setting, and a bool is no part; did you mean resume?",
        ),
        ("batches", DataLoader([1]), "has no state_dict and load_state_dict to save it by; did you mean data=?"),  # type: ignore[arg-type]
        (
            "weights",
            [1],
            "weights: a list has no state_dict and load_state_dict to save it by; in a dict it is saved as it is",
        ),
    ],
)
def test_a_setting_that_was_misspelled_is_named(tmp_path: Path, given_as: str, value: object, line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Checkpointer(tmp_path / "run", model=torch.nn.Linear(1, 1), **{given_as: value})  # type: ignore[arg-type]
    (problem,) = refused.value.problems
    assert problem.endswith(line)
    assert not (tmp_path / "run").exists()


def saved_steps(run: Path) -> list[int]:
    return [event["step"] for event in events(run, "saved")]


@pytest.mark.parametrize("how", ["until", "epochs", "a loader of its own", "left early", "told not to", "an error"])
def test_a_loop_that_ends_by_itself_leaves_its_last_step_once(tmp_path: Path, how: str) -> None:
    run = tmp_path / "run"
    loop = Loop(run, save_steps=4, save_at_end=how != "told not to", save_on_exception=False)
    try:
        with loop.ckpt:
            if how == "a loader of its own":
                loop.ckpt.resume()
                for batch in loop.data:
                    loop.update(batch)
            else:
                for batch in loop.ckpt.batches(epochs=1) if how == "epochs" else loop.ckpt.batches(until=7):
                    loop.update(batch)
                    if how == "left early" and loop.ckpt.step_count == 6:
                        break
                    if how == "an error" and loop.ckpt.step_count == 7:
                        raise ArithmeticError
    except ArithmeticError:
        assert how == "an error"
    expected = {"told not to": [4], "left early": [4, 6]}
    assert saved_steps(run) == expected.get(how, [4, 7])
    if how == "left early":
        assert train(run, 7).losses and saved_steps(run) == [4, 6], "this one was not to leave its last"
    elif how == "until":
        before = sorted(path.name for path in run.iterdir())
        again = train(run, 7, save_at_end=True)
        assert saved_steps(run) == [4, 7] and sorted(path.name for path in run.iterdir()) == before
        assert sum(line.startswith("nothing to do: ") for line in again.said) == 1
        assert len(train(run, 8, save_at_end=True).losses) == 1 and saved_steps(run) == [4, 7, 8]


def test_the_clock_goes_on_from_one_pass_through_the_data_to_the_next(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "run", save_minutes=0.1 / 60)
    with loop.ckpt:
        for epoch in (1, 2):
            for batch in loop.ckpt.batches(epochs=epoch):
                loop.update(batch)
            seen = len(saved_steps(tmp_path / "run"))
            loop.ckpt.save("between", wait=True)
            for batch in loop.ckpt.batches(until=loop.ckpt.step_count + 2):
                loop.update(batch)
                wait_until(lambda: loop.ckpt.step_count in saved_steps(tmp_path / "run"))
            assert len(saved_steps(tmp_path / "run")) > seen


def test_a_part_that_is_new_is_refused_and_stays_only_where_what_fits_is_taken(tmp_path: Path) -> None:
    train(tmp_path, 1, save_at_end=True)
    refused = Loop(tmp_path, extra={"mine": 1})
    with pytest.raises(CheckpointError, match="does not fit") as caught, refused.ckpt:
        refused.ckpt.resume()
    assert str(caught.value).splitlines()[1:] == ["  extra: not in the checkpoint"]
    taken = Loop(tmp_path, extra={"mine": 1}, strict=False)
    with taken.ckpt:
        taken.ckpt.resume()
    assert "extra: not in the checkpoint; it stays as it is" in taken.said


def test_a_resume_that_finds_nothing_says_what_can_be_given(tmp_path: Path) -> None:
    for resume, hint in ((True, "give 'auto': "), ("latest", "give the path of a checkpoint, True for")):
        with pytest.raises(NoCheckpointError) as caught:
            Loop(tmp_path / "run", resume=resume)
        assert str(caught.value.hint).startswith(hint)


@pytest.mark.parametrize("parts", ["none", "a generator", "a dict"])
def test_without_a_part_it_says_at_the_start_what_little_is_saved(tmp_path: Path, parts: str) -> None:
    said: list[str] = []
    part: Any = {"none": {}, "a generator": {"mine": torch.Generator()}, "a dict": {"mine": {}}}[parts]
    with Checkpointer(tmp_path / "run", data=[1], say=said.append, **part) as ckpt:
        for _ in ckpt.batches(epochs=1):
            ckpt.step()
    assert sum(line.startswith("no part was given: ") for line in said) == (parts == "none")


@pytest.mark.parametrize("how", ["an epoch", "many batches", "inside of epochs()", "a step in time"])
def test_a_loop_that_marks_no_step_hears_it_once(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "_MOST_WITHOUT_STEP", 20)
    loop = Loop(tmp_path / "run", data=range(100) if how == "many batches" else range(9))
    taken = 0
    heard_at: list[int] = []

    def take() -> None:
        nonlocal taken
        taken += 1
        if how == "a step in time" and taken == 9:
            loop.optimizer.step()
            loop.ckpt.step()
        heard_at.extend(taken for line in loop.said if "no step() yet" in line)

    with loop.ckpt:
        if how == "inside of epochs()":
            for _ in loop.ckpt.epochs(3):
                for _ in loop.ckpt.batches():
                    take()
        else:
            for _ in loop.ckpt.batches(until=10):
                take()
                if taken == 30:
                    break
    assert len([line for line in loop.said if "no step() yet" in line]) == (how != "a step in time")
    first = {"an epoch": 10, "inside of epochs()": 10, "many batches": 21, "a step in time": None}
    assert min(heard_at, default=None) == first[how]


def test_it_says_at_the_start_how_to_ask_stop_and_look(tmp_path: Path) -> None:
    said = train(tmp_path / "run", 1).said
    for wanted in ("to save at once:  touch ", "holdfast save ", "holdfast stop ", "holdfast status "):
        assert sum(f"{wanted}{tmp_path / 'run'}" in line for line in said) == 1, wanted
