"""A loop that ends by an exception, in real processes: the last boundary is saved, the exception stays as it is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.loops import train
from helpers.trainings import Launcher, events

UNTIL = 9
FAILS_AFTER = 4

# Fails in the step after FAILS_AFTER as its argument says. As a file, so that tracebacks show its lines.
PROGRAM = """
import json, multiprocessing, os, signal, sys, time
from pathlib import Path
import torch
sys.path.insert(0, TESTS)
from helpers.loops import Loop

kind, workers = sys.argv[1], int(sys.argv[2])
loop = Loop(Path("run"), workers=workers, say=print, save_on_exception=kind != "off")

def is_time():
    return loop.ckpt.step_count == FAILS_AFTER

def fail_in_forward(module, given):
    if is_time() and kind == "memory":
        bytearray(1 << 62)  # more than there is
    if is_time() and kind == "memory of torch":
        torch.empty(1 << 60)  # more than there is
    if is_time() and kind == "memory of a device":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

def fail_before_the_update():
    assert not (is_time() and kind in ("assertion", "off")), "the loss is a bad one"

def fail_in_the_update(*given):
    if is_time() and kind == "in an update":
        raise ArithmeticError("half of the weights are new")

loop.model[1].register_forward_pre_hook(fail_in_forward)  # its running averages have not moved, those of others have
loop.in_the_middle = fail_before_the_update
loop.optimizer.register_step_post_hook(fail_in_the_update)
try:
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=UNTIL):
            if is_time() and kind == "after a save":
                loop.ckpt.save("by hand", wait=True)
                raise LookupError("no such row")
            if is_time() and kind == "a worker":
                os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
                kind = "dead"  # it is met where a batch of its is fetched
            loop.update(batch)
except BaseException as error:
    saved = [path.name for path in Path("run").glob("checkpoint-*/MANIFEST.json") for path in path.parents[:1]]
    print("outside:", saved, type(error).__name__, "|", error, "|", flush=True)
    raise
print("left:", json.dumps([loop.losses, loop.digest()]), flush=True)
"""


def program(folder: Path) -> Path:
    text = PROGRAM.replace("TESTS", repr(str(Path(__file__).parents[1])))
    path = folder / "train.py"
    path.write_text(text.replace("FAILS_AFTER", str(FAILS_AFTER)).replace("UNTIL", str(UNTIL)))
    return path


def output_of(launcher: Launcher, folder: Path, kind: str, workers: int = 0) -> str:
    run_path = f"import runpy; runpy.run_path({str(program(folder))!r}, run_name='__main__')"
    process = launcher.start(kind, str(workers), cwd=folder, program=run_path)
    code = 0 if kind == "nothing" else 1
    assert process.wait() == code, process.output
    assert events(folder / "run", "end")[-1]["code"] == code
    return process.output


def goes_on_as_if_nothing_had_been(
    launcher: Launcher, folder: Path, workers: int = 0, since: int = FAILS_AFTER
) -> bool:
    output = output_of(launcher, folder, "nothing", workers)
    losses, digest = json.loads(output[output.index("left: ") + len("left: ") :])
    whole = train(folder / "whole", UNTIL)  # the same whether there are workers or not
    return (losses, digest) == (whole.losses[since:], whole.digest())


@pytest.mark.parametrize(
    ("kind", "line", "name", "text"),
    [
        ("memory", "bytearray(1 << 62)", "MemoryError", ""),
        ("memory of torch", "torch.empty(1 << 60)", "RuntimeError", "[enforce fail at"),
        ("memory of a device", "raise torch.OutOfMemoryError(", "OutOfMemoryError", "CUDA out of memory. Tried to"),
        ("assertion", "assert not (is_time()", "AssertionError", "the loss is a bad one"),
    ],
)
def test_the_last_boundary_is_saved_before_an_exception_leaves_and_it_leaves_as_it_was(
    launcher: Launcher, tmp_path: Path, kind: str, line: str, name: str, text: str
) -> None:
    output = output_of(launcher, tmp_path, kind)
    (saved,) = events(tmp_path / "run", "saved")
    assert (saved["step"], saved["doors"]) == (FAILS_AFTER, ["exception"])
    assert f"{name}: saving step {FAILS_AFTER} before it ends the training" in output
    (outside,) = (one for one in output.splitlines() if one.startswith("outside:"))
    assert outside.startswith(f"outside: ['checkpoint-{FAILS_AFTER}'] {name} | {text}")
    trace = output[output.index("Traceback") :]
    assert line in trace and trace.count("Traceback") == 1 and "/holdfast/" not in trace
    assert name in trace.splitlines()[-1]
    assert goes_on_as_if_nothing_had_been(launcher, tmp_path)


def test_a_data_worker_that_is_killed_though_no_stop_was_asked_for_is_an_exception_like_any_other(
    launcher: Launcher, tmp_path: Path
) -> None:
    output = output_of(launcher, tmp_path, "a worker", workers=2)
    (saved,) = events(tmp_path / "run", "saved")
    assert FAILS_AFTER < saved["step"] < UNTIL and saved["doors"] == ["exception"]
    (outside,) = (one for one in output.splitlines() if one.startswith("outside:"))
    # torch says it in its own words where it has reaped the worker by then, and else raises what the broken pipe gave.
    name, said = outside.removeprefix(f"outside: ['checkpoint-{saved['step']}'] ").split(" | ", 1)
    assert "DataLoader worker (pid" in said if name == "RuntimeError" else name in ("ConnectionResetError", "EOFError")
    assert events(tmp_path / "run", "end")[-1]["outcome"] == f"failed: {name}"
    assert goes_on_as_if_nothing_had_been(launcher, tmp_path, workers=2, since=saved["step"])


def test_an_exception_inside_an_update_saves_nothing_and_says_so(launcher: Launcher, tmp_path: Path) -> None:
    output = output_of(launcher, tmp_path, "in an update")
    assert not events(tmp_path / "run", "saved") and not list((tmp_path / "run").glob("*checkpoint-*"))
    assert "ArithmeticError in the middle of an update: the state is that of no boundary, and is not saved" in output
    assert "outside: [] ArithmeticError | half of the weights are new |" in output


def test_nothing_is_saved_where_it_is_not_wanted(launcher: Launcher, tmp_path: Path) -> None:
    output = output_of(launcher, tmp_path, "off")
    assert not events(tmp_path / "run", "saved") and "saving step" not in output
    assert "outside: [] AssertionError | the loss is a bad one |" in output


def test_what_is_saved_already_is_not_saved_again(launcher: Launcher, tmp_path: Path) -> None:
    output = output_of(launcher, tmp_path, "after a save")
    (saved,) = events(tmp_path / "run", "saved")
    assert saved["doors"] == ["python"] and "before it ends the training" not in output
    assert f"outside: ['checkpoint-{FAILS_AFTER}'] LookupError | no such row |" in output


def test_the_interpreter_ends_with_1_and_its_own_traceback(tmp_path: Path) -> None:
    command = [sys.executable, str(program(tmp_path)), "assertion", "0"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("Traceback (most recent call last):\n")
    assert ended.stderr.splitlines()[-1] == "AssertionError: the loss is a bad one"
    assert [event["step"] for event in events(tmp_path / "run", "saved")] == [FAILS_AFTER]
