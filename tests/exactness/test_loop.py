"""A run that was interrupted, killed and resumed ends as one that never was: every weight, moment, draw and loss.

Pairs of the matrix run always; the whole of it with HOLDFAST_FULL=1 (`make test-full`).
"""

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.loops import Loop, train
from helpers.support import holdfast
from helpers.trainings import events
from helpers.waiting import wait_until
from holdfast.state.registry import Parts
from holdfast.state.rng.state import RngRecord

UNTIL = 24  # an epoch has 7 steps


def by_the_file(loop: Loop, run: Path) -> None:
    (run / "axolotl_checkpoint.save").touch()


def by_a_signal(loop: Loop, run: Path) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


def by_the_command(loop: Loop, run: Path) -> None:
    assert holdfast("save", run, "--wait").returncode == 0


def by_the_api(loop: Loop, run: Path) -> None:
    loop.ckpt.save(wait=True)


DOORS = [by_the_file, by_a_signal, by_the_command, by_the_api]
PLACES = {"first step": 1, "mid-epoch": 10, "epoch boundary": 7, "inside a step": 5, "inside an accumulation": 4}
Case = tuple[str, int, Callable[[Loop, Path], None], int]
WHOLE: list[Case] = list(itertools.product(PLACES, (0, 2), DOORS, (1, 3)))
PAIRS: list[Case] = [
    ("first step", 0, by_the_file, 1),
    ("first step", 2, by_a_signal, 3),
    ("mid-epoch", 2, by_the_file, 3),
    ("mid-epoch", 0, by_the_command, 1),
    ("epoch boundary", 0, by_a_signal, 1),
    ("epoch boundary", 2, by_the_api, 3),
    ("inside a step", 2, by_the_command, 1),
    ("inside a step", 0, by_the_api, 3),
    ("inside an accumulation", 0, by_the_file, 3),
    ("inside an accumulation", 2, by_the_api, 1),
]


def run_through(run: Path, place: str, workers: int, until: int, ask: Callable[[Loop], None] | None = None) -> Loop:
    """Trains; where `ask` is given it is called at its place of each step."""
    loop = Loop(run, workers=workers)
    accumulate = 2 if place == "inside an accumulation" else None
    if ask is not None and place.startswith("inside"):
        loop.in_the_middle = lambda: ask(loop)
    with loop.ckpt:
        for item in loop.ckpt.batches(until=until, accumulate=accumulate):
            first, *others = item if accumulate else [item]
            for rows, wanted in others:
                ((loop.model(rows) - wanted) ** 2).mean().backward()
            loop.update(first)
            if ask is not None and not place.startswith("inside"):
                ask(loop)
    return loop


def is_killed_after_a_save(run: Path, place: str, workers: int, step: int, door: Callable[[Loop, Path], None]) -> None:
    """In a child: asks at `step`, and kills itself in the step after, when the checkpoint was answered."""
    saved = len(events(run, "saved"))

    def ask(loop: Loop) -> None:
        if loop.ckpt.step_count == step:
            door(loop, run)
            requests = run / ".holdfast" / "requests"
            # Killed before its answer, it would be served once more by the next start.
            wait_until(lambda: len(events(run, "saved")) > saved and not list(requests.glob("*.json")))
        if loop.ckpt.step_count == step + 1:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            run_through(run, place, workers, UNTIL, ask)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("place", "workers", "door", "times"),
    WHOLE if os.environ.get("HOLDFAST_FULL") else PAIRS,
    ids=lambda one: getattr(one, "__name__", str(one)),
)
def test_it_ends_as_if_never_interrupted(
    tmp_path: Path, place: str, workers: int, door: Callable[[Loop, Path], None], times: int
) -> None:
    whole = run_through(tmp_path / "whole", place, workers, UNTIL)
    first = PLACES[place]
    for step in range(first, first + 4 * times, 4):
        is_killed_after_a_save(tmp_path / "cut", place, workers, step, door)
    assert events(tmp_path / "cut", "saved")[-1]["step"] == step
    rest = run_through(tmp_path / "cut", place, workers, UNTIL)
    assert rest.losses == whole.losses[step:]
    assert rest.digest() == whole.digest()


@pytest.mark.parametrize("left_out", ["nothing", "model", "optimizer", "scheduler", "ema", "data", "random"])
def test_the_proof_sees_when_any_one_thing_is_left_out(
    tmp_path: Path, left_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tmp_path / "whole", 12)
    train(tmp_path / "cut", 5, save_steps=5)
    loop = Loop(tmp_path / "cut", strict=False)
    state = loop.ckpt._state
    state.parts = Parts([part for part in state.parts if part.name != left_out])
    if left_out == "data":
        state.data = None
    if left_out == "random":
        monkeypatch.setattr(RngRecord, "restore", lambda *given: [])
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=12):
            loop.update(batch)
    equal = (loop.losses, loop.digest()) == (whole.losses[5:], whole.digest())
    assert equal == (left_out == "nothing")
