import json
import os
from pathlib import Path

import pytest

from helpers.support import RUN, commit_checkpoint, dies_at, fill, tiny_disk
from holdfast.errors import RunBusyError, RunError
from holdfast.run import lease
from holdfast.run.request import Request
from holdfast.run.run import Run
from holdfast.store import catalog, names


def events(root: Path) -> list[tuple[str, object]]:
    found = [json.loads(line) for line in (root / "events.jsonl").read_text().splitlines()]
    return [(event["event"], event.get("swept") or event.get("outcome")) for event in found]


def test_open_makes_the_directory_takes_the_lease_and_says_so(tmp_path: Path) -> None:
    root = tmp_path / "runs" / "one"
    run = Run.open(root, parent="b" * 32)
    (started,) = [json.loads(line) for line in run.directory.journal.path.read_text().splitlines()]
    assert (started["event"], started["run"], started["parent"]) == ("start", run.identity, "b" * 32)
    assert (started["pid"], started["generation"]) == (os.getpid(), 1)
    status = json.loads(run.directory.status.path.read_text())
    assert (status["run"], status["pid"], status["phase"]) == (run.identity, os.getpid(), "starting")
    holder = lease.read(run.directory)
    assert holder is not None and lease.is_alive(run.directory, holder) and run.root == root


def test_open_goes_on_with_a_run(tmp_path: Path) -> None:
    assert Run.open(tmp_path, continues=RUN).identity == RUN


def test_open_sweeps_what_dead_attempts_left_and_keeps_checkpoints(tmp_path: Path) -> None:
    commit_checkpoint(tmp_path, 7)
    litter = [names.staging(RUN, 8, "0" * 32), names.trash("1" * 32)]
    for name in litter:
        (tmp_path / name).mkdir()
    Run.open(tmp_path)
    assert events(tmp_path) == [("start", sorted(litter))]
    assert [entry.step for entry in catalog.entries(tmp_path)] == [7] and not list(tmp_path.glob(".t*"))


def test_a_second_start_is_refused_before_anything_is_swept_or_written(tmp_path: Path) -> None:
    Run.open(tmp_path)
    staged = tmp_path / names.staging(RUN, 8, "0" * 32)
    staged.mkdir()
    before = (tmp_path / "events.jsonl").read_bytes(), (tmp_path / ".holdfast/status.json").read_bytes()
    with pytest.raises(RunBusyError):
        Run.open(tmp_path)
    assert staged.exists()
    assert before == ((tmp_path / "events.jsonl").read_bytes(), (tmp_path / ".holdfast/status.json").read_bytes())


def test_a_directory_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot use"):
        Run.open(tmp_path / "file")


def test_close_says_how_it_ended_and_gives_the_lease_back(tmp_path: Path) -> None:
    run = Run.open(tmp_path)
    run.status.update(phase="training", step=7, pending=({"id": "0" * 32},))
    run.close("stopped", 75)
    end = json.loads(run.directory.journal.path.read_text().splitlines()[-1])
    assert (end["event"], end["outcome"], end["code"]) == ("end", "stopped", 75)
    status = json.loads(run.directory.status.path.read_text())
    assert (status["phase"], status["step"], status["pending"]) == ("ended", 7, [])
    holder = lease.read(run.directory)
    assert holder is not None and holder.released
    assert Run.open(tmp_path).lease.holder.generation == 2


def test_what_has_the_path_of_a_run_that_was_moved_gets_no_line_of_its_journal(tmp_path: Path) -> None:
    run, moved = Run.open(tmp_path / "run"), tmp_path / "moved"
    run.root.rename(moved)
    run.root.mkdir()
    run.journal.write("failed", step=1)
    run.close("finished", 0)
    assert not list(run.root.iterdir())
    assert [event for event, _ in events(moved)] == ["start", "failed", "end"]


def test_a_rank_that_follows_keeps_nothing_open_of_what_was_moved_away(tmp_path: Path) -> None:
    run = Run.open(tmp_path / "run")
    other = Run.join(run.root, run.lease.holder, None, rank=1)
    away = (run.root / ".holdfast").rename(tmp_path / "away")
    run.keep_control()
    other.keep_control()
    run.let_go()
    descriptors = list(Path("/proc/self/fd").iterdir())
    held = [str(fd.readlink()) for fd in descriptors if fd.is_symlink()]
    assert str(run.root / ".holdfast") in held and not [path for path in held if path.startswith(str(away))]
    other.let_go()


def test_close_on_a_full_disk_or_without_a_directory_raises_nothing(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk", options="size=256k") as disk:
        run = Run.open(disk / "run")
        fill(disk)
        run.close("finished", 0)
    gone = Run.open(tmp_path / "gone")
    (tmp_path / "gone").rename(tmp_path / "moved")
    gone.close("finished", 0)


def test_a_crash_at_any_change_while_a_run_is_opened_loses_no_request_and_no_checkpoint(tmp_path: Path) -> None:
    for count in range(1, 100):
        root = tmp_path / str(count)
        earlier = Run.open(root)
        commit_checkpoint(root, 7)
        request = Request("command")
        earlier.inbox.submit(request)
        (root / names.staging(RUN, 8, "0" * 32)).mkdir()
        earlier.lease.release()
        died = dies_at(count, lambda root=root: Run.open(root))  # type: ignore[misc]
        again = Run.open(root)
        assert again.inbox.pending()[0] == [request]
        assert [entry.problem for entry in catalog.entries(root)] == [None]
        assert not list(root.glob(".tmp-*"))
        if not died:
            assert count > 8
            return
    raise AssertionError("opening has no end")
