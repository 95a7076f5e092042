"""What a path on the command line means, and what is said where it means something else."""

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.support import commit_checkpoint, holdfast


@pytest.mark.parametrize("verb", [("list",), ("prune", "--keep-last", "1", "--yes")], ids=" ".join)
def test_a_checkpoint_where_a_run_is_meant_is_told_its_run(tmp_path: Path, verb: tuple[str, ...]) -> None:
    run = tmp_path / "out"
    run.mkdir()
    commit_checkpoint(run, 468)
    name, *options = verb
    outside = holdfast(name, "out/checkpoint-468", *options, cwd=tmp_path)
    assert outside.returncode == 4
    assert outside.stderr.splitlines() == [
        "holdfast: out/checkpoint-468 is a checkpoint, and a run is meant",
        "  its run is out",
    ]
    inside = holdfast(name, ".", *options, cwd=run / "checkpoint-468")
    assert inside.returncode == 4 and f"its run is {run}" in inside.stderr


@pytest.mark.parametrize("verb", ["inspect", "pin", "export"])
def test_a_run_where_a_checkpoint_is_meant_is_told_its_newest(tmp_path: Path, verb: str) -> None:
    commit_checkpoint(tmp_path, 7)
    commit_checkpoint(tmp_path, 5)
    more = ["copy"] if verb == "export" else []
    found = holdfast(verb, tmp_path, *more)
    assert found.returncode == 4 and f"{tmp_path} is not a checkpoint" in found.stderr
    assert f"the newest in it is {tmp_path / 'checkpoint-5'}" in found.stderr


def test_a_bare_number_is_told_how_a_checkpoint_is_named(tmp_path: Path) -> None:
    found = holdfast("pin", "185", cwd=tmp_path)
    assert found.returncode == 4 and "that of step 185 is RUN/checkpoint-185" in found.stderr


def test_prune_looks_for_the_run_before_it_asks_for_yes(tmp_path: Path) -> None:
    found = holdfast("prune", "nope", "--keep-last", "1", cwd=tmp_path)
    assert found.returncode == 4 and "there is no directory nope" in found.stderr


def test_who_looks_for_a_verb_resume_is_told_the_option() -> None:
    found = holdfast("resume", "out")
    assert found.returncode == 2 and "holdfast train CONFIG --resume auto" in found.stderr


def test_a_reader_that_leaves_early_costs_no_traceback(tmp_path: Path) -> None:
    for step in range(1, 4):
        commit_checkpoint(tmp_path, step)
    # Nobody reads the other end, from the beginning.
    program = f"{sys.executable} -m holdfast list {tmp_path} --json | true"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("", "")
