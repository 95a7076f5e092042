"""The clock jumps in the middle of a training: what is newest goes by the order of commits alone."""

from collections.abc import Callable
from pathlib import Path

import pytest

from faults.harness import THOROUGH, whole
from helpers.loops import train
from helpers.support import holdfast, line_of, process, tell
from helpers.trainings import events
from helpers.waiting import wait_until
from holdfast.store import catalog

_LIBRARY = "faketime/libfaketimeMT.so.1"
JUMPS = {3: "-1d", 6: "+365d", 9: "-2d", 12: "-2d"}

TRAINING = """
import sys
sys.path.insert(0, sys.argv[1])
from helpers.loops import Loop
loop = Loop(sys.argv[2], save_steps=1, save_total_limit=2)
with loop.ckpt:
    for batch in loop.ckpt.batches(until=12):
        loop.update(batch)
        if loop.ckpt.step_count in (3, 6, 9, 12):
            print(loop.ckpt.step_count)
            sys.stdin.readline()
"""


def library() -> Path:
    for folder in (Path("/usr/lib"), *Path("/usr/lib").glob("*-linux-gnu")):
        if (folder / _LIBRARY).exists():
            return folder / _LIBRARY
    pytest.skip("SKIPPED, NOT PASSED: needs libfaketime")


def newest(run: Path) -> list[int]:
    return [entry.step for entry in catalog.entries(run)]


def test_fault_43_the_order_is_that_of_the_commits_whatever_the_clock_says(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """libfaketime moves the clock of a training a day back, a year forward, and two days back."""
    if not THOROUGH:
        pytest.skip(
            "a process that imports torch anew takes a quarter of a minute: HOLDFAST_FAULTS=1, make test-faults"
        )
    run, clock = tmp_path / "run", tmp_path / "clock"
    clock.write_text("+0d")
    faked = ("env", f"LD_PRELOAD={library()}", f"FAKETIME_TIMESTAMP_FILE={clock}", "FAKETIME_NO_CACHE=1")
    options = ("FAKETIME_DONT_FAKE_MONOTONIC=1", "OMP_NUM_THREADS=1")
    with process(TRAINING, Path(__file__).parents[1], run, prefix=(*faked, *options)) as started:
        for stop, jump in JUMPS.items():
            assert line_of(started, 90) == str(stop)
            wait_until(lambda stop=stop: newest(run) == [stop, stop - 1], what="the newest two, and no other")  # type: ignore[misc]
            assert holdfast("status", run).returncode == 0
            (tmp_path / "next").write_text(jump)
            (tmp_path / "next").rename(clock)  # it is read at every look at the clock, and an empty one is an error
            tell(started, "")
        assert started.wait(30) == 0
    record_property("injected", 3)
    times = [event["at"] for event in events(run, "saved")]
    assert max(times) - min(times) > 80_000, "the clock was not moved"
    loop = train(run, 14)
    assert any(f"resumed from {run}/checkpoint-12" in line for line in loop.said)
    assert loop.digest() == whole(14)
