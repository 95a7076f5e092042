"""Item 12: a resume in a new process, beside nothing but reading: rate, host memory, and every bit."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.gpu import shadow
from benchmarks.gpu.bench import GB, MIB, Bench
from benchmarks.gpu.shadow import Toy
from benchmarks.measure import CACHES, bytes_on_disk
from benchmarks.memory import high_water
from benchmarks.raw import RawFile
from holdfast import Checkpointer
from holdfast.loop.restore import load_into

_MOST_OF_RAW = 1.15
_MOST_MEMORY = 300 * 1_000_000
_PROGRAM = "from benchmarks.gpu import restoring; restoring.resume()"


def run(bench: Bench) -> None:
    """A state of 2 GB."""
    _measure(bench, bench.size(2 * GB, 8 * MIB))


def large(bench: Bench) -> None:
    """A state of 12 GB."""
    _measure(bench, bench.size(12 * GB, 8 * MIB))


def _measure(bench: Bench, size: int) -> None:
    run, width = bench.folder / "run", bench.size(2048, 256)
    with shadow.card_of_paper(bench):
        toy = Toy.make(bench.device, size, width)
        with _checkpointer(toy, run, resume=False) as checkpointer:
            checkpointer.resume()
            for _ in range(2):
                toy.advance()
                checkpointer.step()
            path = Path(checkpointer.save(wait=True).wait().path)
    del toy
    # Another process: this one has memory that a new one has not.
    arguments = [bench.device, str(run), str(size), str(width), str(bench.into), str(bench.folder)]
    subprocess.run([sys.executable, "-c", _PROGRAM, *arguments], check=True)
    assert path.is_dir()


def resume() -> None:
    """Resumes, as a process of its own that is told by its arguments."""
    device, run, size, width, into, folder = sys.argv[1:]
    bench = Bench(device, Path(folder), Path(into))
    (path,) = Path(run).glob("checkpoint-*")
    label = f"12 a resume of {int(size) / GB:.3g} GB"
    raw = [RawFile(bench.folder, bytes_on_disk(path)).seconds()[1] for _ in range(bench.size(3, 1))]
    toy = Toy.make(device, int(size), int(width))
    toy.advance()  # what training makes at its first step is there: the driver's own memory is not the resume's
    toy = Toy.make(device, int(size), int(width))
    CACHES["cold"](path)
    peaks: list[int] = []

    def load(*arguments: Any, **keywords: Any) -> int:
        step: int = load_into(*arguments, **keywords)
        peaks.append(high_water())  # what comes after it is the memory of the saves to come
        return step

    loading = mock.patch("holdfast.loop.checkpointer.load_into", load)
    with shadow.card_of_paper(bench), loading:
        checkpointer = _checkpointer(toy, Path(run), resume="auto")
        with checkpointer:
            before, begun = high_water(reset=True), time.perf_counter()
            checkpointer.resume()
            seconds = time.perf_counter() - begun
    extra = max(peaks) - before
    stored = bytes_on_disk(path)
    ratio = seconds / sorted(raw)[len(raw) // 2]
    text = (
        f"{seconds:.2f} s, {stored / seconds / 1e9:.2f} GB/s, {ratio:.2f} x reading past the cache (<= {_MOST_OF_RAW})"
    )
    reached = ratio <= _MOST_OF_RAW
    bench.add(f"{label}, time", bench.timed(reached), text, seconds=seconds, bytes=stored, raw=raw, ratio=ratio)
    memory = f"{extra / 1e6:.0f} MB of host memory (<= 300), {stored / 1e6:.0f} MB were read"
    bench.add(f"{label}, memory", bench.timed(extra <= _MOST_MEMORY), memory, host_memory=extra)
    wrong = shadow.different(path, toy.tensors())
    said = "bit-equal" if not wrong else f"{len(wrong)} tensors differ: {wrong[:3]}"
    bench.add(f"{label}, what came back", not wrong and len(toy.tensors()) > 4, said)
    sys.stdout.flush()
    os._exit(0)  # nothing of the ending is measured


def _checkpointer(toy: Toy, run: Path, resume: bool | str) -> Checkpointer:
    return Checkpointer(
        run,
        model=toy.model,
        optimizer=toy.optimizer,
        resume=resume,
        save_at_end=False,
        save_on_exception=False,
        say=_silent,
    )


def _silent(text: str) -> None:
    pass
