"""One saver in a real loop of steps: what a save costs training, and when it is on disk. One saver a process."""

import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.gpu.bench import GB, Bench, milliseconds
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.ours import Ours
from benchmarks.gpu.registering import MOST_FORK_SECONDS, fork
from benchmarks.gpu.training import Training
from benchmarks.measure import finish, remove
from benchmarks.memory import available, held
from benchmarks.peers.saver import Saver

_PLAIN_STEPS = 6
_LEAST_STEPS = 5
# The steps of a save that are not of its beginning: what they take longer is the write's doing.
_FIRST_STEPS = 2
_READY_SECONDS = 30.0

Kind = Callable[[Training, Path], Saver]


@dataclass
class Save:
    """One save, in seconds.

    Args:
        call: Until the call returned.
        lost: All steps until it was durable, less as many usual ones.
        worst: The longest step over a usual one.
        longer: The steps after the first ones over a usual one, as a ratio.
        durable: From the call until everything was on disk.
        usual: A usual step.
        steps: The steps that it took.
    """

    call: float
    lost: float
    worst: float
    longer: float
    durable: float
    usual: float
    steps: int


def measure(bench: Bench, name: str, kind: Kind, wanted: float, saves: int = 2, *, rests: bool = True) -> None:
    """Trains with a saver, and adds each of its saves as a finding.

    Args:
        bench: The setting.
        name: The saver.
        kind: Makes it.
        wanted: The seconds of a step.
        saves: How many, one after the other.
        rests: Whether ours trains until its memory is made, before the first.
    """
    label = f"13 {name}, steps of {wanted:g} s"
    training = Training.make(bench)
    training.fit(bench.size(round(wanted * 1e3), 1) / 1e3)
    machine = Machine.of(bench, training.size)
    floor = machine.floor(training.seconds["forward and backward"])
    bench.add(
        f"{label}, the floor of this machine",
        None,
        f"{training.size / GB:.2f} GB / {machine.to_host / 1e9:.1f} GB/s"
        f" - {training.seconds['forward and backward']:.3f} s = {floor:.3f} s at the gate;"
        f" durable {machine.durable:.2f} s",
        floor=floor,
        bytes=training.size,
        step=training.seconds["step"],
        **asdict(machine),
    )
    (bench.folder / "saves").mkdir()
    memory = Memory()
    begun = time.perf_counter()
    saver = kind(training, bench.folder / "saves")
    training.settle()
    made = time.perf_counter() - begun
    try:
        _come_to_rest(bench, label, training, saver, rests=rests)
        for number in range(saves):
            _tell(bench, f"{label}, save {number + 1}", _save(training, saver, number, memory))
    finally:
        saver.close()
    text = f"{made:.2f} s to set up; host memory: {memory.held / 1e6:.0f} MB held by its processes,"
    text += f" {memory.taken / 1e6:.0f} MB less available on the machine"
    bench.add(f"{label}, memory", None, text, held=memory.held, taken=memory.taken, made=made)


class Memory:
    """The most host memory that a saver has taken, as seen between steps: a thread that looks would be measured too."""

    def __init__(self) -> None:
        self.held = self.taken = 0
        self._held, self._available = held(), available()

    def look(self) -> float:
        """Looks, and returns the seconds that it took."""
        begun = time.perf_counter()
        self.held = max(self.held, held() - self._held)
        self.taken = max(self.taken, self._available - available())
        return time.perf_counter() - begun


def _tell(bench: Bench, name: str, save: Save) -> None:
    text = f"lost {save.lost:.3f} s, worst step over usual {milliseconds(save.worst)}, durable {save.durable:.2f} s,"
    text += f" steps meanwhile x {save.longer:.3f}, {save.steps} steps of {milliseconds(save.usual)}"
    bench.add(name, None, text, **asdict(save))


def _come_to_rest(bench: Bench, label: str, training: Training, saver: Saver, *, rests: bool) -> None:
    """Trains a little; with ours until its memory is made, and says what steps meanwhile took."""
    for _ in range(2):
        _step(training, saver)
    if not isinstance(saver, Ours) or not rests:
        return
    begun = time.perf_counter()
    steps = [_step(training, saver) for _ in range(_PLAIN_STEPS)]
    while (made := saver.staging()) is None and time.perf_counter() - begun < bench.size(round(_READY_SECONDS), 1):
        steps.append(_step(training, saver))
    over = max(steps) - statistics.median(steps)
    seconds = made["seconds"] if made else None
    how = f"{seconds:.1f} s" if made else f"not within {time.perf_counter() - begun:.0f} s"
    bench.add(
        f"{label}, the arena is made",
        bench.timed(made is not None and over <= 0.010 and made["seconds"] <= 20),
        f"{how}; longest of {len(steps)} steps over usual {milliseconds(over)} (<= 10 ms, in 20 s);"
        f" {made}, {saver.status()}",
        seconds=seconds,
        over=over,
    )
    forks = [fork() for _ in range(4)]
    bench.add(
        f"4 forks of a data worker beside the arena ({label[3:]})",
        bench.timed(max(forks) <= MOST_FORK_SECONDS),
        f"{milliseconds(statistics.median(forks))}, at most {milliseconds(max(forks))}",
    )


def _save(training: Training, saver: Saver, number: int, memory: Memory) -> Save:
    usual = statistics.median(_step(training, saver) for _ in range(_PLAIN_STEPS))
    begun = time.perf_counter()
    path = saver.save(number)
    call = time.perf_counter() - begun
    ended: list[float] = []
    failed: list[BaseException] = []

    def wait() -> None:
        try:
            finish(saver, path)
            ended.append(time.perf_counter())
        except BaseException as error:  # noqa: BLE001 - raised below, in the thread that trains
            failed.append(error)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    # The call is part of the first step: who copies there blocks training there.
    steps = [_step(training, saver) + call]
    looked = memory.look()
    while len(steps) < _LEAST_STEPS or waiting.is_alive():
        steps.append(_step(training, saver))
        looked += memory.look()
    if failed:
        raise failed[0]
    spent = time.perf_counter() - begun - looked
    remove(path)
    later = steps[_FIRST_STEPS:]
    return Save(
        call=call,
        lost=spent - len(steps) * usual,
        worst=max(steps) - usual,
        longer=statistics.mean(later) / usual,
        durable=ended[0] - begun,
        usual=usual,
        steps=len(steps),
    )


def _step(training: Training, saver: Saver) -> float:
    begun = time.perf_counter()
    training.forward_backward()
    saver.gate()
    training.update()
    saver.boundary()
    training.settle()
    return time.perf_counter() - begun
