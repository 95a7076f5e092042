"""A training with a mirror beside one without: its steps while it is sent, a boundary, the start on an empty machine.

`python -m benchmarks.mirror_training fresh ...` is a process that begins on an empty machine; `first_step` launches it.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks import bucket_server, mirror_transfers
from benchmarks.fresh import Clock
from benchmarks.ours import Saves
from benchmarks.states import State, fresh_gpt2, gpt2
from holdfast import Checkpointer

# A line as slow as a home's.
_SLOW_BYTES = 10e6
_SHAPE = (2, 768, 20_000)  # layers, width, words: 360 MB
_SEND_SHAPE = (4, 256, 8_000)  # 62 MB, steps of a few milliseconds
IMPORTS = "interpreter, libraries, model"
"""The part of a start that has nothing to do with where the checkpoint is."""
_STEP_SECONDS = 4.0
_BOUNDARIES = 200
_WARM_STEPS = 20

Values = dict[str, list[float]]


@contextmanager
def credentials() -> Iterator[None]:
    """Gives this process, and those that it starts, what a server of the benchmark asks for: anything."""
    before = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    for name in before:
        del os.environ[name]
    os.environ.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test", AWS_REGION="us-east-1")
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        os.environ.update(before)


def steps(port: int, folder: Path, rounds: int, threads: int) -> Values:
    """Measures seconds of a step: `with` a checkpoint that is sent over a slow line, and `without` a mirror.

    Args:
        port: That of the server, which takes as much of the processor as the process that sends.
        folder: An empty directory.
        rounds: The number of turns of each.
        threads: The number of threads that a step computes with.
    """
    torch.set_num_threads(threads)
    state = gpt2("cpu", *_SEND_SHAPE)
    seconds: Values = {"with": [], "without": []}
    for number in range(rounds):
        for way in ("with", "without") if number % 2 else ("without", "with"):
            bucket_server.tell(port, rate=0)
            run = folder / f"{way}-{number}-on-{threads}"
            with _opened(state, run, port if way == "with" else None) as checkpointer:
                saves = Saves(run)
                _train(state, checkpointer, _WARM_STEPS)
                bucket_server.tell(port, rate=_SLOW_BYTES if way == "with" else 0)
                saves.expect()
                checkpointer.save()
                _train(state, checkpointer, 1)
                saves.wait()
                seconds[way].append(_train(state, checkpointer, seconds=_STEP_SECONDS))
                if way == "with":
                    _require_sending(run)
                    bucket_server.tell(port, rate=0)
            shutil.rmtree(run)
    return seconds


def boundaries(port: int, folder: Path, rounds: int) -> Values:
    """Measures seconds of a boundary at which nobody asks, with a mirror that waits, and without one.

    They are of the processor, in the thread that trains: blocks are short, and others take the machine in between.
    """
    seconds: Values = {"with": [], "without": []}
    state = gpt2("cpu", 12, 64, 500)  # 148 tensors
    with (
        _opened(state, folder / "with", port) as mirrored,
        _opened(state, folder / "without", None) as alone,
    ):
        for number in range(rounds):
            for way in ("with", "without") if number % 2 else ("without", "with"):
                checkpointer = mirrored if way == "with" else alone
                begun = time.thread_time()
                for _ in range(_BOUNDARIES):
                    with checkpointer.update():
                        pass
                    checkpointer.step()
                seconds[way].append((time.thread_time() - begun) / _BOUNDARIES)
    return seconds


def first_step(port: int, folder: Path, rounds: int, others: int = 0) -> dict[str, Values]:
    """Measures the start of a machine that has nothing: of a run with a mirror, and after a plain download.

    Args:
        port: That of the server.
        folder: An empty directory.
        rounds: The number of processes of each kind.
        others: The number of labelled checkpoints that are in the mirror beside the newest.

    Returns:
        Seconds by way (`mirror`, `plain`) and by what they were spent on; `download` is that of obstore alone.
    """
    state = gpt2("cpu", *_SHAPE)
    place = f"origin-{others}"
    with _opened(state, folder / place, port) as checkpointer:
        for number in range(others + 1):
            _train(state, checkpointer, 1)
            checkpointer.save("" if number == others else f"number {number}", wait=True)
    expected = float(state.forward_backward())
    state.drop_gradients()
    seconds: dict[str, Values] = {"mirror": {}, "plain": {}}
    for number in range(rounds):
        for way in ("mirror", "plain") if number % 2 else ("plain", "mirror"):
            run = folder / "fresh"
            run.mkdir()
            parts: dict[str, float] = {}
            if way == "plain":
                parts["download"] = mirror_transfers.plain(port, run / f"checkpoint-{others + 1}", place)
            spent, loss = _in_a_fresh_process(run, place, port if way == "mirror" else 0)
            if abs(loss - expected) > 1e-4:
                raise AssertionError(f"it did not come back: the first step's loss is {loss}, not {expected}")
            for part, value in (parts | spent).items():
                seconds[way].setdefault(part, []).append(value)
            shutil.rmtree(run)
    return seconds


def _in_a_fresh_process(run: Path, place: str, port: int) -> tuple[dict[str, float], float]:
    begun = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.mirror_training", "fresh", repr(begun), str(run), place, str(port)]
    said = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return said["seconds"], said["loss"]


def fresh() -> None:
    """Begins in an empty directory, or in one with a checkpoint, makes a step, and prints the seconds."""
    begun, run, place, port = sys.argv[2:]
    clock = Clock(float(begun))
    state = fresh_gpt2("cpu", *_SHAPE, seed=1)
    clock.end(IMPORTS)
    with _opened(state, Path(run), int(port) or None, place) as checkpointer:
        clock.end("opening the run, with what it pulls")
        checkpointer.resume()
        clock.end("reading")
        loss = state.forward_backward()
        with checkpointer.update():
            state.update()
        checkpointer.step()
        clock.end("first step")
        print(json.dumps({"seconds": clock.seconds, "loss": float(loss)}), flush=True)
        os._exit(0)  # what comes at the end is not asked for


@contextmanager
def _opened(state: State, run: Path, port: int | None, origin: str = "") -> Iterator[Checkpointer]:
    """Opens a run with a place of its own in the bucket, or a fresh directory that takes over what its origin has."""
    mirror: dict[str, Any] = {}
    if port is not None:
        mirror = {"mirror": f"s3://bucket/{origin or run.name}", "mirror_endpoint": bucket_server.address(port)}
    with Checkpointer(
        run,
        resume="auto" if origin else False,
        save_at_end=False,
        say=_silent,
        model=state.saved,
        optimizer=state.optimizer,
        scheduler=state.scheduler,
        **mirror,
    ) as checkpointer:
        if not origin:
            checkpointer.resume()
        yield checkpointer


def _train(state: State, checkpointer: Checkpointer, count: int = 0, *, seconds: float = 0.0) -> float:
    """Trains for so many steps, or for so long; returns the seconds of a step."""
    begun, made = time.perf_counter(), 0
    while made < count or time.perf_counter() - begun < seconds:
        state.forward_backward()
        with checkpointer.update():
            state.update()
        checkpointer.step()
        made += 1
    return (time.perf_counter() - begun) / made


def _require_sending(run: Path) -> None:
    mirror = json.loads((run / ".holdfast" / "status.json").read_text()).get("mirror", {})
    if not mirror.get("waiting"):
        raise AssertionError(f"nothing is sent any more: {mirror}")


def _silent(text: str) -> None:
    pass


if __name__ == "__main__":
    fresh()
