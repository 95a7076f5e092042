"""Hooks after a commit: in the training thread, in order, for every checkpoint, or named as not run."""

import signal
import threading
from pathlib import Path

import pytest

from helpers.loops import Loop
from helpers.support import line_of, process
from helpers.trainings import events
from helpers.waiting import wait_until
from holdfast.engine.on_published import OnPublished
from holdfast.errors import SaveError
from holdfast.log import RunLog
from holdfast.run.request import Answer


def answer(step: int) -> Answer:
    return Answer(saved=True, path=f"/run/checkpoint-{step}", step=step)


class Hooks:
    """Hooks of one training, and what was logged of them."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.seen: list[tuple[str, int]] = []
        self.published = OnPublished(RunLog(self.said.append))

    def add(self, name: str, error: Exception | None = None, *, raises: bool = False) -> None:
        def hook(answer: Answer) -> None:
            self.seen.append((name, answer.step))
            if error is not None:
                raise error

        self.published.add(hook, raises=raises)


@pytest.fixture
def hooks() -> Hooks:
    return Hooks()


def test_each_hook_sees_each_checkpoint_in_order_and_once(hooks: Hooks) -> None:
    hooks.add("first")
    hooks.add("second")
    hooks.published.publish(answer(1))
    hooks.published.publish(answer(2))
    assert hooks.seen == [], "not in the thread that publishes"
    hooks.published.run()
    hooks.published.run()
    assert hooks.seen == [("first", 1), ("second", 1), ("first", 2), ("second", 2)] and not hooks.said


def test_an_error_of_a_hook_is_logged_and_stops_neither_training_nor_the_next_hook(hooks: Hooks) -> None:
    hooks.add("broken", ValueError("no network"))
    hooks.add("next")
    hooks.published.publish(answer(1))
    hooks.published.publish(answer(2))
    hooks.published.run()
    assert hooks.seen == [("broken", 1), ("next", 1), ("broken", 2), ("next", 2)]
    assert hooks.said == [
        f"on_saved failed for /run/checkpoint-{step}: ValueError('no network'); training goes on" for step in (1, 2)
    ]


def test_an_error_that_is_the_trainings_own_is_raised_after_the_other_hooks(hooks: Hooks) -> None:
    hooks.add("a trainer's", KeyError("theirs"), raises=True)
    hooks.add("ours")
    hooks.published.publish(answer(1))
    hooks.published.publish(answer(2))
    with pytest.raises(KeyError, match="theirs"):
        hooks.published.run()
    assert hooks.seen == [("a trainer's", 1), ("ours", 1)]
    hooks.published.run_last(ValueError("of training"))
    assert hooks.seen[2:] == [("a trainer's", 2), ("ours", 2)]
    assert hooks.said == ["on_saved failed: KeyError('theirs')"], "another error is on its way by then"


def test_what_no_hook_will_see_is_named(hooks: Hooks) -> None:
    hooks.published.publish(answer(1))
    hooks.published.give_up()
    assert not hooks.said, "there is no hook"
    hooks.add("never run")
    hooks.published.give_up()
    assert hooks.said == ["on_saved: not run for /run/checkpoint-1: training did not come back in time"]
    assert not hooks.seen


@pytest.mark.parametrize("ending", ["its end", "a stop", "an error"])
def test_they_run_in_the_training_thread_for_the_last_save_too(tmp_path: Path, ending: str) -> None:
    loop = Loop(tmp_path / "run", save_steps=4, on_stop="return")
    seen: list[int] = []

    def hook(answer: Answer) -> None:
        assert threading.current_thread() is threading.main_thread() and Path(answer.path, "MANIFEST.json").exists()
        seen.append(answer.step)

    loop.ckpt._engine.on_published(hook)
    try:
        with loop.ckpt:
            for batch in loop.ckpt.batches(until=8):
                loop.update(batch)
                if loop.ckpt.step_count == 6 and ending != "its end":
                    if ending == "an error":
                        raise ArithmeticError
                    loop.ckpt.save(stop=True, wait=True)
    except ArithmeticError:
        assert ending == "an error"
    saved = [event["step"] for event in events(tmp_path / "run", "saved")]
    assert seen == saved and len(saved) == 2, loop.said


def test_an_error_of_a_last_hook_that_is_the_trainings_own_is_how_the_run_ended(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "run")

    def fail(answer: Answer) -> None:
        raise KeyError("theirs")

    loop.ckpt._engine.on_published(fail, raises=True)
    with pytest.raises(KeyError, match="theirs"), loop.ckpt:
        for batch in loop.ckpt.batches(until=3):
            loop.update(batch)
            if loop.ckpt.step_count == 3:
                loop.ckpt.save()
    (end,) = events(tmp_path / "run", "end")
    assert (end["outcome"], end["code"]) == ("failed: KeyError", 1)


def test_a_hook_of_the_last_save_that_asks_for_another_is_told_that_training_has_ended(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "run")
    told: list[str] = []

    def ask(answer: Answer) -> None:
        with pytest.raises(SaveError) as refused:
            loop.ckpt.save(wait=True)
        told.append(str(refused.value))

    with pytest.raises(ArithmeticError), loop.ckpt:
        for batch in loop.ckpt.batches(until=3):
            loop.update(batch)
            if loop.ckpt.step_count == 2:
                loop.ckpt._engine.on_published(ask)
                raise ArithmeticError
    assert told == ["step 0 was not saved: training has ended"]


HANGS = """
import sys, time
sys.path.insert(0, TESTS)
from helpers.loops import Loop
loop = Loop(sys.argv[1], say=None, stop_grace_seconds=3.0)
loop.ckpt._engine.on_published(lambda answer: print("the hook ran"))
with loop.ckpt:
    for batch in loop.ckpt.batches():
        loop.update(batch)
        if loop.ckpt.step_count == 3:
            print("ready", flush=True)
            time.sleep(1000)
"""


def test_a_loop_that_does_not_come_back_leaves_without_them_and_says_so(tmp_path: Path) -> None:
    program = HANGS.replace("TESTS", repr(str(Path(__file__).parents[1])))
    with process(program, tmp_path / "run") as started:
        while line_of(started) != "ready":
            pass
        started.send_signal(signal.SIGTERM)
        assert started.wait(60) == 75
        assert started.stdout is not None
        said = started.stdout.read().decode()
    wait_until(lambda: events(tmp_path / "run", "end"))
    assert "on_saved: not run for" in said and "checkpoint-3: training did not come back in time" in said
    assert "the hook ran" not in said
