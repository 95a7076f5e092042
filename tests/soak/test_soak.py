"""Endurance: trainings that are asked, stopped, killed and started again at random, on a disk that fills up.

Half a minute in `make test`, two in `make test-full`. HOLDFAST_SOAK_MINUTES makes it longer, HOLDFAST_SOAK_SEED repeats
what was drawn.
"""

import json
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from helpers.full import FULL
from helpers.loops import train
from helpers.support import fill, holdfast, tiny_disk
from helpers.trainings import Launcher, Process
from helpers.waiting import wait_until
from ranks.conftest import Ranks, torch_launcher
from soak.tally import KEPT, Tally

__all__ = ["torch_launcher"]

MINUTES = float(os.environ.get("HOLDFAST_SOAK_MINUTES", "1.5" if FULL else "0.3"))
SEED = int(os.environ.get("HOLDFAST_SOAK_SEED", time.time_ns() % 1_000_000))
STEPS = 400
RANK_STEPS = 120
GRACE = 6.0
SETTINGS = {
    "save_steps": 25,
    "save_minutes": 0.02,
    "save_total_limit": KEPT,
    "dynamic_checkpoint": {"enabled": True, "check_interval": 0, "keep": KEPT},
    "stop_grace_seconds": GRACE,
    "rank_timeout_seconds": 10.0,
}
# A stop that was saved; one that met the last step; those whose save failed, or that came before the first boundary.
STOPPED = (75, 0)
STOPPED_IN_TROUBLE = (*STOPPED, 1, 130, 140, 143)


class Life:
    """One start of a training, by one process or by several, up to its end.

    Args:
        processes: Its ranks.
        run: The run directory.
        draw: Where chance comes from.
        counts: What is printed at the end.
    """

    def __init__(self, processes: list[Process], run: Path, draw: random.Random, counts: Counter[str]) -> None:
        self.processes = processes
        self._run = run
        self._draw = draw
        self._counts = counts
        self.disk_was_full = False

    @property
    def ended(self) -> bool:
        return all(process.code is not None for process in self.processes)

    def live(self, seconds: float) -> None:
        """Lets it train, and asks for saves by every door."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.ended:
            self._draw.choice((self._by_file, self._by_signal, self._by_command, self._stop_and_continue))()
            pause = time.monotonic() + self._draw.uniform(0.0, 0.5)
            wait_until(lambda pause=pause: time.monotonic() > pause)  # type: ignore[misc]

    def end(self) -> None:
        """Ends it in one of all ways; or lets it come to its end."""
        ways: list[Callable[[], None]] = [self._kill, self._kill, self._kill_group, self._save_and_kill]
        ways += [self._terminate, self._terminate_twice, self._interrupt, self._stop_by_command, self._stop_by_usr2]
        ways += [self._out_of_time] if len(self.processes) == 1 else []
        way = self._draw.choice(ways) if self._counts["killed"] else self._kill  # a short soak has one kill at least
        self._counts["ended: " + way.__name__.strip("_").replace("_", " ")] += 1
        way()
        for process in self.processes:
            process.wait(120)

    def _send(self, number: signal.Signals, process: Process | None = None) -> None:
        try:
            (process or self._draw.choice(self.processes)).send(number)
        except ProcessLookupError:
            self._counts["came too late"] += 1

    def _by_file(self) -> None:
        try:
            (self._run / "axolotl_checkpoint.save").write_text(f"label {self._draw.random()}")
        except OSError:
            self._counts["came too late"] += 1
        self._counts["asked by the trigger file"] += 1

    def _by_signal(self) -> None:
        if all("begins" in process.output for process in self.processes):  # before, SIGUSR1 does what it always does
            self._send(signal.SIGUSR1)
            self._counts["asked by SIGUSR1"] += 1

    def _by_command(self) -> None:
        asked = holdfast("save", self._run, "--json", "--label", "soak")
        self._counts["asked by the command"] += asked.returncode == 0
        assert asked.returncode in (0, 4) or self.disk_was_full, asked.stdout + asked.stderr

    def _stop_and_continue(self) -> None:
        chosen = self._draw.choice(self.processes)
        self._send(signal.SIGSTOP, chosen)
        until = time.monotonic() + self._draw.uniform(0.0, 0.3)
        wait_until(lambda: time.monotonic() > until)
        self._send(signal.SIGCONT, chosen)
        self._counts["SIGSTOP and SIGCONT"] += 1

    def _kill(self) -> None:
        for process in self.processes:
            self._send(signal.SIGKILL, process)
            self._counts["killed"] += 1

    def _save_and_kill(self) -> None:
        self._by_file()
        until = time.monotonic() + self._draw.uniform(0.0, 0.2)
        wait_until(lambda: time.monotonic() > until)
        self._kill()

    def _kill_group(self) -> None:
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                self._counts["came too late"] += 1
            self._counts["killed"] += 1

    def _stop_by(self, number: signal.Signals, times: int = 1) -> None:
        wait_until(lambda: self.ended or all("begins" in process.output for process in self.processes), 90)
        chosen = self._draw.choice(self.processes)
        for _ in range(times):
            self._send(number, chosen)
        self._check_stop()

    def _check_stop(self) -> None:
        allowed = STOPPED_IN_TROUBLE if self.disk_was_full else STOPPED
        for process in self.processes:
            code = process.wait(90)
            early = code > 128 and "no step was taken yet" in process.output
            assert code in allowed or early, f"{code}\n{process.output}"
            self._counts["stopped after a save"] += code == 75

    def _terminate(self) -> None:
        self._stop_by(signal.SIGTERM)

    def _terminate_twice(self) -> None:
        self._stop_by(signal.SIGTERM, 2)

    def _interrupt(self) -> None:
        self._stop_by(signal.SIGINT)

    def _stop_by_usr2(self) -> None:
        self._stop_by(signal.SIGUSR2)

    def _stop_by_command(self) -> None:
        wait_until(lambda: self.ended or all("begins" in process.output for process in self.processes), 90)
        asked = holdfast("stop", self._run, "--json")
        if asked.returncode == 0:
            self._check_stop()
        else:
            self._kill()

    def _out_of_time(self) -> None:
        stand = self._run.with_name("stand") if self._run.parent.name != "disk" else self._run.parents[1] / "stand"
        stand.touch()
        try:
            self._stop_by(signal.SIGTERM)
        finally:
            stand.unlink()


def begins(processes: list[Process]) -> bool:
    """Whether they train; or have ended before that."""
    end = time.monotonic() + 90
    wait_until(
        lambda: all("begins" in p.output or p.code is not None for p in processes) or time.monotonic() > end, 100
    )
    assert time.monotonic() < end, "\n".join(p.output for p in processes)
    return all("begins" in p.output for p in processes)


@contextmanager
def filled(disk: Path | None, life: Life | None) -> Iterator[None]:
    """A disk without room."""
    if disk is None:
        yield
        return
    if life is not None:
        life.disk_was_full = True
    fill(disk)
    try:
        yield
    finally:
        (disk / "filler").unlink()


def era(
    start: Callable[[], list[Process]],
    tally: Tally,
    disk: Path | None,
    draw: random.Random,
    ends_at: float,
) -> str:
    """Lives of one training, until it has come to its end or the time is over. What it printed last."""
    while True:
        full = disk is not None and draw.random() < 0.15
        with filled(disk if full else None, None):
            processes = start()
            tally.counts["starts"] += 1
            trains = begins(processes)
        life = Life(processes, tally.run, draw, tally.counts)
        life.disk_was_full = full
        if trains and time.monotonic() < ends_at:
            if disk is not None and draw.random() < 0.4:
                tally.counts["disk filled"] += 1
                with filled(disk, life):
                    life.live(draw.uniform(0.0, 2.0))
                    if draw.random() < 0.3:
                        life.end()
            if not life.ended:
                life.live(draw.uniform(0.0, 2.5))
            if not life.ended and draw.random() < 0.9:
                life.end()
        for process in processes:
            process.wait(120)
        output = processes[0].output
        tally.check_beginning(output)
        tally.check_end(full=life.disk_was_full)
        finished = all(process.code == 0 and re.search(r"ends \d+ \w{64}", process.output) for process in processes)
        if finished:
            tally.check_all_answered()
            return output
        assert trains or life.disk_was_full or any(p.code == 0 for p in processes), output


@pytest.mark.timeout(int(60 * MINUTES) + 900)
def test_whatever_is_done_to_it_nothing_is_lost(tmp_path: Path, torch_launcher: Launcher) -> None:
    draw, counts = random.Random(SEED), Counter[str]()
    print(f"\nseed {SEED}, {MINUTES:g} minutes")
    whole = train(tmp_path / "whole", STEPS)
    ends_at = time.monotonic() + 60 * MINUTES
    number = 0
    try:
        while time.monotonic() < ends_at or number < 2:
            number += 1
            folder = tmp_path / f"era-{number}"
            folder.mkdir()
            (one_of_ranks if number % 4 == 2 else one_of_a_loop)(
                folder, torch_launcher, draw, counts, ends_at, whole.losses, whole.digest()
            )
            counts["trainings that came to their end"] += 1
    finally:
        counts["losses"] += 0
        print("\n".join(f"{count:8d}  {what}" for what, count in sorted(counts.items())))
    assert counts["answered saved"]
    assert (counts["killed"] and counts["resumed"]) or MINUTES < 1, "chance has left out what this is about"


def one_of_a_loop(
    folder: Path,
    launcher: Launcher,
    draw: random.Random,
    counts: Counter[str],
    ends_at: float,
    expected: list[str],
    digest: str,
) -> None:
    with ExitStack() as mounted:
        disk = None
        if os.geteuid() == 0:
            disk = mounted.enter_context(tiny_disk(folder / "disk", options="size=24m"))
        else:
            print("no disk fills up here: that needs root")
        run = (disk or folder) / "run"
        tally = Tally(run, folder / "losses.txt", expected, counts)

        def start() -> list[Process]:
            argv = (run, str(STEPS), str(draw.randrange(1 << 30)), json.dumps(SETTINGS))
            return [launcher.start(*argv, cwd=folder, program="from soak.trainee import run\nrun()")]

        assert f"ends {STEPS} {digest}" in era(start, tally, disk, draw, ends_at)


def one_of_ranks(
    folder: Path,
    launcher: Launcher,
    draw: random.Random,
    counts: Counter[str],
    ends_at: float,
    expected: list[str],
    digest: str,
) -> None:
    whole, ranks = Ranks(folder / "whole", launcher), Ranks(folder, launcher)
    whole.folder.mkdir()
    digests = whole.start(until=RANK_STEPS).digests()
    tally = Tally(ranks.run, folder / "no-losses", [], counts)
    try:
        era(
            lambda: ranks.start(until=RANK_STEPS, pause=0.02, ask_every=40, settings=SETTINGS).processes,
            tally,
            None,
            draw,
            ends_at,
        )
        assert ranks.started[-1].digests() == digests
    finally:
        for job in ranks.started:
            job.kill()
