"""Handlers of signals that a script, a launcher or a framework has set beside Holdfast's, in real trainings."""

import signal
from pathlib import Path

import pytest

from helpers.trainings import Launcher, Process, answers, events
from helpers.waiting import wait_until

# Stands in the forward pass after a step, in one call, until a handler leaves it; tells what a handler meets.
TRAINING = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, TESTS)
from helpers.loops import Loop

def own(number, frame):
    saved = sorted(path.name for path in Path("run").glob("checkpoint-*"))
    print("own", signal.Signals(number).name, saved, flush=True)
    HANDLER

def stand(*_):
    if loop.ckpt.step_count >= STANDS_AFTER and not Path("go").exists():
        Path("stands").touch()
        time.sleep(60)

BEFORE
if not LATE:
    signal.signal(signal.NUMBER, own)
loop = Loop(Path("run"), say=lambda text: print(text, flush=True), stop_grace_seconds=GRACE)
loop.model[0].register_forward_pre_hook(stand)
with loop.ckpt:
    if LATE:
        signal.signal(signal.NUMBER, own)
    for batch in loop.ckpt.batches(until=100_000):
        loop.update(batch)
print("not reached")
"""


def start(
    launcher: Launcher,
    folder: Path,
    handler: str,
    number: signal.Signals = signal.SIGTERM,
    *,
    at: int = 3,
    grace: float = 25.0,
    late: bool = False,
    before: str = "",
) -> Process:
    """Starts the training, and sends it the signal when it stands."""
    program = TRAINING
    filled = {
        "TESTS": repr(str(Path(__file__).parents[1])),
        "HANDLER": handler,
        "STANDS_AFTER": str(at),
        "LATE": str(late),
    }
    for name, text in {**filled, "NUMBER": number.name, "GRACE": str(grace), "BEFORE": before}.items():
        program = program.replace(name, text)
    process = launcher.start(cwd=folder, program=program)
    wait_until(lambda: (folder / "stands").exists() or process.code is not None, 60, process.output)
    process.send(number)
    return process


def ended(run: Path) -> tuple[str, int]:
    """How the journal says that the last start ended."""
    last = events(run, "end")[-1]
    return last["outcome"], last["code"]


@pytest.mark.parametrize(
    ("number", "handler", "code", "late"),
    [
        (signal.SIGTERM, "sys.exit(3)", 3, False),
        (signal.SIGTERM, "raise SystemExit", 0, False),
        (signal.SIGTERM, "sys.exit(3)", 3, True),
        (signal.SIGINT, "raise KeyboardInterrupt", 130, False),
        (signal.SIGINT, "raise KeyboardInterrupt", 130, True),
        (signal.SIGUSR1, "sys.exit(4)", 4, False),
    ],
)
def test_a_handler_that_leaves_is_called_after_the_save_and_its_end_is_a_stop(
    launcher: Launcher, tmp_path: Path, number: signal.Signals, handler: str, code: int, late: bool
) -> None:
    """In the middle of a forward pass, whether it was set before the training began or in its block."""
    process = start(launcher, tmp_path, handler, number, late=late)
    assert process.wait(30) == (1 if number == signal.SIGINT else code), process.output
    (saved,) = events(tmp_path / "run", "saved")
    assert (saved["step"], saved["doors"]) == (3, ["signal"]) and "not reached" not in process.output
    assert ended(tmp_path / "run") == ("stopped", code)
    assert late or f"own {number.name} ['checkpoint-3']" in process.output
    assert all(answer["saved"] for answer in answers(tmp_path / "run").values())


# What stands is a loop that comes back when there is a file "go".
AWAKE = """
own_sleep = time.sleep
def until_it_goes(seconds):
    while not Path("go").exists():
        own_sleep(0.01)
time.sleep = until_it_goes
"""


def test_a_handler_that_only_takes_note_is_called_and_training_ends_as_a_stop_does(
    launcher: Launcher, tmp_path: Path
) -> None:
    process = start(launcher, tmp_path, "Path('go').touch()", before=AWAKE)
    assert process.wait(30) == 75, process.output
    assert process.output.count("own SIGTERM ['checkpoint-") == 1 and ended(tmp_path / "run") == ("stopped", 75)


HANGING_DISK = """
import threading
from holdfast.store import commit
commit.Attempt.seal = lambda *args, **kwargs: threading.Event().wait()
"""


def test_when_the_grace_is_over_a_handler_is_called_without_the_save(launcher: Launcher, tmp_path: Path) -> None:
    process = start(launcher, tmp_path, "sys.exit(3)", grace=2.0, before=HANGING_DISK)
    assert process.wait(20) == 143, process.output
    assert "own SIGTERM []" in process.output and "no checkpoint was saved within 2 s" in process.output


@pytest.mark.parametrize(("handler", "code"), [("sys.exit(5)", 5), ("Path('go').touch()", 143)])
def test_before_the_first_step_a_handler_is_called_at_once(
    launcher: Launcher, tmp_path: Path, handler: str, code: int
) -> None:
    process = start(launcher, tmp_path, handler, at=0)
    assert process.wait(20) == code, process.output
    assert "own SIGTERM []" in process.output and "nothing to save" in process.output
    assert ended(tmp_path / "run")[1] == code
