"""Saves and stops that are asked for in the rest of an epoch's body, after what it has changed."""

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.epochs import STEPS, ByEpochs
from helpers.trainings import events
from helpers.waiting import wait_until
from holdfast import Stopped
from holdfast.run.directory import RunDirectory
from holdfast.run.inbox import Inbox
from holdfast.run.request import Answer, Request


class Killed(Exception):
    """Stands for the end of the process."""


def face(answer: Answer) -> tuple[int, str]:
    """The step and stage of a checkpoint."""
    manifest: dict[str, Any] = json.loads((Path(answer.path) / "MANIFEST.json").read_text())
    return answer.step, manifest["boundary"]["face"]


@pytest.fixture(scope="module")
def alone() -> ByEpochs:
    """The loop without Holdfast, uninterrupted."""
    return ByEpochs(None).train()


def test_what_the_body_asks_for_has_all_that_the_body_does(tmp_path: Path, alone: ByEpochs) -> None:
    """The best by a validation is what was validated: a resume from it goes on with the next epoch."""
    pending: list[Any] = []

    def ask(here: str, loop: ByEpochs) -> None:
        if here == "rest" and loop.epoch == 1:
            pending.extend([loop.ckpt.save("score 3", slot="best"), loop.ckpt.save("and for another reason")])
        if here == "end" and loop.epoch == 1:
            assert [each.answer for each in pending] == [None, None]
        if here == "top" and loop.epoch == 2:
            assert face(pending[0].wait(20)) == (2 * STEPS, "epoch_end") and pending[1].wait(20).saved
            raise Killed

    run = tmp_path / "run"
    loop = ByEpochs(run, at=ask, save_at_end=False)
    with pytest.raises(Killed):
        loop.train()
    assert len(events(run, "saved")) == 1 and pending[0].answer.slots == ("best",)
    resumed = ByEpochs(run).train()
    assert resumed.digest() == alone.digest() and resumed.validated == alone.validated[2:]


def test_the_last_body_s_own_save_and_that_of_the_end_are_one(tmp_path: Path) -> None:
    heard: list[tuple[int, tuple[str, ...], bool]] = []
    loop = ByEpochs(
        tmp_path / "run",
        at=lambda here, loop: loop.ckpt.save(slot="best") if here == "rest" and loop.epoch == 2 else None,
        on_saved=lambda answer: heard.append((answer.step, tuple(answer.slots), Path(answer.path).exists())),
    )
    loop.train()
    assert heard == [(3 * STEPS, ("best",), True)]


@pytest.mark.parametrize("way", ["wait=", "wait()"])
def test_one_that_the_body_waits_for_is_as_of_the_step_and_says_so(tmp_path: Path, alone: ByEpochs, way: str) -> None:
    def ask(here: str, loop: ByEpochs) -> None:
        if here == "rest":
            answer = loop.ckpt.save("x", wait=True).answer if way == "wait=" else loop.ckpt.save("x").wait(20)
            assert face(answer) == (loop.step, "update")
            if loop.epoch == 1:
                raise Killed

    loop = ByEpochs(tmp_path / "run", at=ask, save_at_end=False)
    with pytest.raises(Killed):
        loop.train()
    assert sum("is as of step 5, without what the body has done since" in line for line in loop.said) == 1
    assert ByEpochs(tmp_path / "run").train().digest() == alone.digest()


@pytest.mark.parametrize("way", ["an error", "a break"])
def test_one_whose_body_does_not_come_to_its_end_is_as_of_the_step(tmp_path: Path, way: str) -> None:
    loop = ByEpochs(tmp_path / "run", save_at_end=False)
    pending: Any = None
    try:
        with loop.ckpt:
            for _ in loop.ckpt.epochs(2):
                for rows, _ in loop.ckpt.batches():
                    loop.model(rows).sum().backward()
                    loop.optimizer.step()
                    loop.optimizer.zero_grad()
                    loop.ckpt.step()
                loop.swa.update_parameters(loop.model)
                pending = loop.ckpt.save(slot="best")
                if way == "a break":
                    break
                raise Killed
    except Killed:
        assert way == "an error"
    assert face(pending.answer) == (STEPS, "update")
    again = ByEpochs(tmp_path / "run")
    with again.ckpt:
        again.ckpt.resume()
        assert again.swa.n_averaged.item() == 0


def test_a_body_that_runs_again_keeps_what_it_asks_for(tmp_path: Path, alone: ByEpochs) -> None:
    """Before the first boundary of a resumed start, too; and a stop meanwhile is saved at the step."""
    pending: list[Any] = []

    def kill(here: str, loop: ByEpochs) -> None:
        if here == "rest" and loop.epoch == 1:
            loop.ckpt.save(wait=True)
            raise Killed

    def ask(here: str, loop: ByEpochs) -> None:
        if here == "rest" and loop.epoch == 1:
            pending.append(loop.ckpt.save(slot="best"))

    with pytest.raises(Killed):
        ByEpochs(tmp_path / "run", at=kill).train()
    resumed = ByEpochs(tmp_path / "run", at=ask).train()
    assert resumed.digest() == alone.digest() and face(pending[0].answer) == (2 * STEPS, "epoch_end")


def test_a_stop_that_waits_for_the_end_of_a_body_has_its_grace_and_no_longer(tmp_path: Path) -> None:
    """Nothing is copied, and the average has moved: neither the state of the step is there nor the end of the body."""
    run, stands = tmp_path / "run", tmp_path / "stands"

    def stand(here: str, loop: ByEpochs) -> None:
        if here == "rest" and loop.epoch == 1:
            stands.touch()
            while True:
                signal.pause()

    if not (child := os.fork()):
        try:
            ByEpochs(run, at=stand, stop_grace_seconds=1.5, staging_memory=0).train()
        finally:
            os._exit(99)
    wait_until(stands.exists, 60)
    inbox = Inbox(RunDirectory.open(run))
    inbox.submit(waits := Request("command", why="a save that waits already"))
    wait_until(lambda: not inbox.answer_to(waits.id) and "waits for the end" in status_of(run)["body"], 20)
    inbox.submit(Request("command", stop=True, why="a test"))
    try:
        wait_until(lambda: os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT), 20)
    except AssertionError:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 1
    assert "no checkpoint was saved within 1.5 s of the stop" in events(run, "end")[-1]["outcome"]
    assert not events(run, "saved")


def status_of(run: Path) -> dict[str, Any]:
    """What `holdfast status` shows."""
    status: dict[str, Any] = json.loads((run / ".holdfast" / "status.json").read_text())
    return status


@pytest.mark.parametrize(("place", "ends"), [("top", 13), ("top", 10), ("rest", 15), ("rest", 10)])
def test_an_optimizer_that_begins_anew_with_each_epoch_is_saved_as_it_is(tmp_path: Path, place: str, ends: int) -> None:
    """Its moments are other tensors from then on. Until the next boundary the last one has the old ones."""

    def begin(here: str, loop: ByEpochs) -> None:
        steps = loop.step if loop.ckpt is None else loop.ckpt.step_count
        if here == place and (place == "rest" or steps == loop.epoch * STEPS):
            loop.optimizer.state.clear()

    def end(here: str, loop: ByEpochs) -> None:
        begin(here, loop)
        if here == ("step" if ends == 13 else place) and loop.step == ends:
            raise Killed

    run = tmp_path / "run"
    with pytest.raises(Killed):
        ByEpochs(run, at=end, save_on_exception=True, save_at_end=False).train()
    assert ByEpochs(run, at=begin).train().digest() == ByEpochs(None, at=begin).train().digest()


@pytest.mark.parametrize("block", [True, False])
def test_an_error_that_leaves_the_batches_is_not_taken_for_a_break(
    tmp_path: Path, alone: ByEpochs, monkeypatch: pytest.MonkeyPatch, *, block: bool
) -> None:
    """The rest of the epoch's batches are to come. Nobody has them by a name, so the error lets them go at once."""

    def fail(here: str, loop: ByEpochs) -> None:
        if here == "step" and loop.step == 7:
            raise Killed

    loop = ByEpochs(tmp_path / "run", at=fail, save_on_exception=True)
    if block:
        with pytest.raises(Killed):
            loop.train()
    else:
        monkeypatch.setattr(sys, "excepthook", lambda *error: None)
        try:
            loop.through()
        except Killed as error:
            sys.excepthook(Killed, error, error.__traceback__)
    assert not any("the loop left epoch" in line for line in loop.said)
    assert [event["step"] for event in events(tmp_path / "run", "saved")] == [7]
    resumed = ByEpochs(tmp_path / "run").train()
    assert resumed.digest() == alone.digest() and resumed.validated == alone.validated[1:]


@pytest.mark.parametrize("again", [False, True])
def test_a_save_in_the_handler_of_an_error_has_the_rest_of_the_batches_to_come(
    tmp_path: Path, alone: ByEpochs, *, again: bool
) -> None:
    def fail(here: str, loop: ByEpochs) -> None:
        if here == "step" and loop.step == 7:
            raise Killed

    def train() -> None:
        loop = ByEpochs(tmp_path / "run", at=fail, save_on_exception=False, save_at_end=False)
        with pytest.raises(Killed), loop.ckpt:
            try:
                loop.through()
            except Killed:
                assert loop.ckpt.save(wait=True).answer.step == 7
                raise

    if again:  # inside the handler of another
        try:
            raise ValueError
        except ValueError:
            train()
    else:
        train()
    resumed = ByEpochs(tmp_path / "run").train()
    assert resumed.digest() == alone.digest() and resumed.validated == alone.validated[1:]


def test_a_name_that_only_a_batch_gives_is_explained_in_a_body_without_batches(tmp_path: Path) -> None:
    def through(loop: ByEpochs, *, fails: bool) -> None:
        with loop.ckpt:
            for epoch in loop.ckpt.epochs(2):
                for rows, _ in loop.ckpt.batches():
                    loss = loop.model(rows).sum()
                    loss.backward()
                    loop.optimizer.step()
                    loop.optimizer.zero_grad()
                    loop.ckpt.step()
                if fails and epoch == 0:
                    loop.ckpt.save(wait=True)
                    raise Killed
                loss.item()

    run = tmp_path / "run"
    with pytest.raises(Killed):
        through(ByEpochs(run, save_at_end=False), fails=True)
    resumed = ByEpochs(run)
    with pytest.raises(UnboundLocalError):
        through(resumed, fails=False)
    explained = [line for line in resumed.said if "batches() was empty, as the batches of epoch 0 were taken" in line]
    assert len(explained) == 1 and "'loss'" in explained[0]


def test_status_says_of_which_body_training_is_in_the_rest(tmp_path: Path) -> None:
    shown: list[str] = []
    loop = ByEpochs(tmp_path / "run", 2, at=lambda here, loop: shown.append(loop.ckpt._engine.run.status.now.body))
    loop.train()
    rest = ["in the rest of epoch 0's body", "in the rest of epoch 1's body"]
    assert list(dict.fromkeys(shown)) == ["", *rest] and shown.count(rest[0]) == 2
    assert not loop.ckpt._engine.run.status.now.body


def test_batches_that_a_thread_loads_ahead_are_left_at_a_stop(tmp_path: Path) -> None:
    """The thread ends by itself, and the loop leaves where its body ends: what is there is no end of the epoch."""
    loop = ByEpochs(tmp_path / "run", stop_grace_seconds=60)

    def ahead() -> Iterator[Any]:
        batches: queue.Queue[Any] = queue.Queue(1)

        def load() -> None:
            for batch in loop.ckpt.batches():
                batches.put(batch)
            batches.put(None)

        threading.Thread(target=load, daemon=True).start()
        while (batch := batches.get(timeout=30)) is not None:
            yield batch

    def stop(here: str, loop: ByEpochs) -> None:
        if here == "step" and loop.step == 7:
            loop.ckpt.save(stop=True)

    loop.at = stop
    with pytest.raises(Stopped) as stopped, loop.ckpt:
        loop._through(loop.ckpt.epochs(loop.epochs), ahead)
    assert stopped.value.code == 75 and [event["step"] for event in events(tmp_path / "run", "saved")] == [7]
    assert not any("the loop left epoch" in line for line in loop.said) and loop.epoch == 1


def test_a_break_that_something_hides_is_named(tmp_path: Path) -> None:
    loop = ByEpochs(tmp_path / "run", 2, ended_by=lambda loop: loop.step == 3 and loop.epoch == 0)
    held: list[Any] = []

    def batches() -> Any:
        held.append(loop.ckpt.batches())
        return held[-1]

    with loop.ckpt:
        loop._through(loop.ckpt.epochs(2), batches)
    assert sum("batches() was still held" in line for line in loop.said) == 1
    assert loop.ckpt.step_count == 3 + STEPS
