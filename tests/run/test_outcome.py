import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from helpers.support import RUN, fill, tiny_disk
from holdfast.errors import RunError
from holdfast.run import outcome
from holdfast.run.outcome import Outcome
from holdfast.run.run import Run


def test_a_start_is_on_record_from_its_beginning_and_its_end_takes_that_place(tmp_path: Path) -> None:
    run = Run.open(tmp_path, parent="b" * 32)
    holder = run.lease.holder
    began = outcome.read(run.directory)
    assert began is not None and not began.has_ended and (began.code, began.ended_at) == (None, None)
    assert (began.run, began.token, began.generation) == (holder.run, holder.token, holder.generation)
    assert (began.pid, began.parent) == (os.getpid(), "b" * 32)
    run.close("stopped", 75)
    ended = outcome.read(run.directory)
    assert ended is not None and ended == replace(began, outcome="stopped", code=75, ended_at=ended.ended_at)
    assert ended.ended_at is not None and ended.began_at <= ended.ended_at
    assert run.directory.outcome.path.stat().st_mode & 0o777 == 0o600


def test_a_start_that_was_killed_does_not_leave_the_outcome_of_the_one_before(tmp_path: Path) -> None:
    Run.open(tmp_path).close("stopped", 75)
    killed = Run.open(tmp_path)  # and nothing more is heard of it
    last = outcome.read(killed.directory)
    assert last is not None and not last.has_ended and last.token == killed.lease.holder.token


def test_where_it_falls_back_to_its_record_follows(tmp_path: Path) -> None:
    run = Run.open(tmp_path, parent="a" * 32)
    run.go_on_from("c" * 32)
    last = outcome.read(run.directory)
    assert last is not None and last.parent == "c" * 32 and not last.has_ended


def test_on_a_full_disk_the_end_is_not_written_down_which_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tiny_disk(tmp_path / "disk", options="size=256k") as disk:
        run = Run.open(disk / "run")
        fill(disk)
        run.close("stopped", 75)
        last = outcome.read(run.directory)
    assert last is not None and not last.has_ended
    (line,) = caplog.messages
    assert "cannot be written down (No space left on device)" in line and line.endswith("and not: stopped (75)")


GOOD = asdict(Outcome(RUN, "0" * 32, 1, 1, None, 1.0, "stopped", 75, 2.0))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 30_000,
        *(json.dumps({**GOOD, name: True}).encode() for name in GOOD),
        json.dumps({**GOOD, "token": "../../x"}).encode(),
        json.dumps({**GOOD, "ended_at": 10**400}).encode(),
        json.dumps({**GOOD, "began_at": float("nan")}).encode(),
        json.dumps({**GOOD, "more": 1}).encode(),
    ],
    ids=range(len(GOOD) + 8),
)
def test_what_is_no_record_is_none(tmp_path: Path, content: bytes) -> None:
    run = Run.open(tmp_path)
    run.directory.outcome.path.write_text(json.dumps(GOOD))
    assert outcome.read(run.directory) == Outcome(**GOOD)
    run.directory.outcome.path.write_bytes(content)
    assert outcome.read(run.directory) is None


def test_a_place_without_a_run_or_a_record_has_none(tmp_path: Path) -> None:
    run = Run.open(tmp_path / "run")
    run.directory.outcome.path.unlink()
    assert outcome.read(run.directory) is None and outcome.last_in(tmp_path / "nothing") is None


def a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def in_a_place_that_others_write_to(path: Path) -> None:
    path.parent.chmod(0o777)


@pytest.mark.parametrize("change", [a_link, a_folder, in_a_place_that_others_write_to])
def test_what_cannot_be_trusted_or_read_is_an_error(tmp_path: Path, change: Any) -> None:
    run = Run.open(tmp_path)
    change(run.directory.outcome.path)
    with pytest.raises(RunError, match=r"outcome.json cannot be read|is not a private directory"):
        outcome.last_in(tmp_path)
