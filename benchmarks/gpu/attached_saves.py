"""A Trainer with `attach`: a save in its own loop, and a resume, with what transformers itself does there."""

import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.attached import Attached
from benchmarks.gpu import shadow
from benchmarks.gpu.bench import Bench, milliseconds
from benchmarks.gpu.saving import Memory
from benchmarks.gpu.table import SHORT
from benchmarks.gpu.training import Training
from benchmarks.memory import Peak

_PLAIN_STEPS = 6
_LEAST_STEPS = 5
_REST_STEPS = 200


def run(bench: Bench) -> None:
    """Two saves, and a resume from the last."""
    training = Training.make(bench)
    training.fit(bench.size(round(SHORT * 1e3), 1) / 1e3)
    with shadow.card_of_paper(bench):
        path = _save(bench, training)
        _resume(bench, training, path)


def _save(bench: Bench, training: Training) -> Path:
    memory = Memory()
    paths: list[Path] = []
    measured: list[dict[str, float]] = []

    def script(attached: Attached) -> Iterator[None]:
        def steps(count: int, taken: list[float]) -> Iterator[None]:
            for _ in range(count):
                begun = attached.updated_at or time.perf_counter()
                training.forward_backward()
                yield
                taken.append(attached.updated_at - begun)

        yield from steps(bench.size(_REST_STEPS, 3), [])  # the arena is made meanwhile
        for _ in range(2):
            plain: list[float] = []
            yield from steps(_PLAIN_STEPS, plain)
            usual = statistics.median(plain)
            attached.save_next()
            yield from steps(1, [])
            begun = attached.updated_at
            taken: list[float] = []
            path = attached.path
            ended: list[float] = []
            waiting = threading.Thread(target=_wait, args=(attached, ended), daemon=True)
            waiting.start()
            while len(taken) < _LEAST_STEPS or waiting.is_alive():
                yield from steps(1, taken)
            memory.look()
            if not ended:
                raise RuntimeError("the save failed; its journal says why")
            paths.append(path)
            spent = attached.updated_at - begun
            measured.append(
                {
                    "lost": spent - len(taken) * usual,
                    "worst": max(taken) - usual,
                    "durable": ended[0] - begun,
                    "usual": usual,
                    "steps": len(taken),
                }
            )

    Attached(training, bench.folder / "attached").train(script)
    # A Trainer's progress is kept off the terminal while it trains, and a finding would be, too.
    for number, save in enumerate(measured, start=1):
        text = f"lost {save['lost']:.3f} s, worst step over usual {milliseconds(save['worst'])},"
        text += f" durable {save['durable']:.2f} s, {save['steps']} steps of {milliseconds(save['usual'])}"
        bench.add(f"13 attach, steps of {SHORT:g} s, save {number}", None, text, **save)
    bench.add(
        f"13 attach, steps of {SHORT:g} s, memory",
        None,
        f"host memory: {memory.held / 1e6:.0f} MB held, {memory.taken / 1e6:.0f} MB less available",
        held=memory.held,
        taken=memory.taken,
    )
    return paths[-1]


def _wait(attached: Attached, ended: list[float]) -> None:
    attached.saves.wait()
    ended.append(time.perf_counter())


def _resume(bench: Bench, training: Training, path: Path) -> None:
    attached = Attached(training, path.parent)
    begun = time.perf_counter()
    with Peak() as peak:
        attached.train(lambda attached: iter(()), path)
    bench.add(
        "12 a resume of a Trainer",
        None,
        f"{attached.entered_at - begun:.2f} s until its first forward pass, {peak.extra / 1e6:.0f} MB of host memory:"
        " what transformers' own loading takes is in it",
        seconds=attached.entered_at - begun,
        host_memory=peak.extra,
    )
