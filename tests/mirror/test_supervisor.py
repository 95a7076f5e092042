"""The mirror's real process, and the thread of training that keeps it."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from helpers.mirrored_run import MirroredRun, mirrored_run
from helpers.remote import start
from helpers.support import RUN, commit_checkpoint, holdfast, line_of, process
from helpers.waiting import wait_until
from holdfast.engine import mirroring
from holdfast.mirror import child, state, supervisor
from holdfast.mirror.destination import Assignment
from holdfast.mirror.wanted import Wanted, WantedList
from holdfast.remote import pins as remote_pins
from holdfast.remote.upload import upload
from holdfast.store import catalog, names, pins, terms
from holdfast.store.folder import Folder


def events(run: MirroredRun) -> list[dict[str, Any]]:
    lines = (run.root / names.JOURNAL).read_text().splitlines()
    return [event for event in map(json.loads, lines) if "mirror" in event["event"]]


def process_of(run: MirroredRun) -> psutil.Process:
    """The mirror's process, once it listens."""

    def listening() -> list[psutil.Process]:
        started = run.supervisor.process
        return [psutil.Process(started.pid)] if started is not None and started.poll() is None else []

    return wait_until(listening)[0]


def test_what_is_queued_comes_into_the_mirror_and_is_journalled_and_shown(tmp_path: Path) -> None:
    with mirrored_run(tmp_path / "run") as run:
        run.save(7)
        run.wait()
        assert run.there() == [1]
        (event,) = events(run)
        assert (event["event"], event["step"], event["term"]) == ("mirrored", 7, 1) and event["bytes"] > 0
        shown = run.run.status.now.mirror
        assert shown is not None and (shown["mirrored"]["step"], shown["waiting"]) == (7, [])
        assert run.said == []


def test_what_somebody_pushes_beside_the_training_is_journalled_once_and_is_in_the_last_line(tmp_path: Path) -> None:
    with mirrored_run(tmp_path / "run") as run:
        run.run.claim(terms.Term(RUN, run.term, 1, run.url))
        stands = process_of(run)
        stands.suspend()
        run.save(7)
        assert mirroring.last_line(run.run, run.supervisor).startswith("nothing is mirrored; 7 is on this disk only")
        pushed = holdfast("push", run.root)
        assert pushed.returncode == 0 and "checkpoint-7: mirrored in" in pushed.stdout, pushed.stderr
        wait_until(lambda: not run.supervisor.waiting)
        run.supervisor.look()
        assert mirroring.last_line(run.run, run.supervisor) == f"mirrored up to step 7 ({run.url})"
        shown = run.run.status.now.mirror
        assert shown is not None and (shown["mirrored"]["step"], shown["waiting"]) == (7, [])
        stands.resume()
        run.save(9)
        wait_until(lambda: not run.supervisor.waiting)
        run.supervisor.look()
        assert [(event["event"], event["step"]) for event in events(run)] == [("mirrored", 7), ("mirrored", 9)]
        assert run.there() == [2, 1]


def test_fault_52_a_mirrors_process_that_dies_is_started_again_and_goes_on(tmp_path: Path) -> None:
    """SIGKILL to the mirror's process while the directory of the mirror is moved away."""
    with mirrored_run(tmp_path / "run") as run:
        first = process_of(run)
        away = run.place.rename(tmp_path / "away")
        run.save(1)
        wait_until(lambda: any("nothing can be sent" in line for line in run.said), limit=60)
        first.kill()
        away.rename(run.place)
        wait_until(lambda: run.there() == [1], limit=60)
        assert process_of(run).pid != first.pid
        assert [event["event"] for event in events(run)][:2] == ["mirror failing", "mirror process ended"]
        assert f"the mirror's process has ended ({-signal.SIGKILL}), and is started again; training goes on" in run.said


def test_a_pin_of_what_has_been_deleted_there_is_said_to_be_here_only(tmp_path: Path) -> None:
    with mirrored_run(tmp_path / "run") as run:
        gone = run.save(1)
        run.wait()
        remote_pins.doom(run.store, RUN, gone.attempt)
        pins.pin(run.run.directory.control, gone.attempt)
        for step in (2, 3):
            run.save(step)
            run.wait()
        assert run.said == [f"checkpoint-1 is pinned, and is on this disk only: {run.url} had deleted it before"]
        shown = run.run.status.now.mirror
        assert shown is not None and shown["not_pinned"] == [1]
        skipped = catalog.read(commit_checkpoint(run.root, 4, term=run.term)).manifest
        assert skipped is not None
        pins.pin(run.run.directory.control, skipped.attempt)
        last = f"checkpoint-4 is pinned, and is on this disk only: holdfast push {run.root} sends it"
        wait_until(lambda: run.said[1:] == [last])


def test_what_is_to_stay_is_brought_once_training_has_made_steps(tmp_path: Path) -> None:
    with mirrored_run(tmp_path / "run") as run:
        (tmp_path / "elsewhere").mkdir()
        path = commit_checkpoint(tmp_path / "elsewhere", 1, term=run.term)
        manifest = catalog.read(path).manifest
        assert manifest is not None
        with Folder.open(path) as folder:
            key = upload(run.store, folder, run.term, None)
        wanted_list = WantedList(run.run.directory)
        wanted_list.begin([Wanted(*key, 1, manifest.size)])
        for _ in range(3):  # each look at what there is to do is written down before anything is brought
            before = state.read(run.run.directory).get("written_at")
            wait_until(lambda: state.read(run.run.directory).get("written_at") != before, limit=60)  # noqa: B023
        assert [wanted.is_over for wanted in wanted_list.all()] == [False]
        for step in (2, 3):
            run.run.status.beat(step)
        wait_until(lambda: (run.root / "checkpoint-1").exists(), limit=60)


def test_what_has_come_beside_training_is_said_once_and_what_will_not_come_too(tmp_path: Path) -> None:
    with mirrored_run(tmp_path / "run") as run:
        wanted_list = WantedList(run.run.directory)
        wanted = [Wanted(RUN, 1, step, f"{step:032x}", step, 1000 * step) for step in (1, 2)]
        wanted_list.begin(wanted)
        wanted_list.finish(wanted[0], seconds=2.0)
        wanted_list.finish(wanted[1], "it is\ngone")
        wait_until(lambda: not wanted_list.all(), limit=60)
        assert sorted(run.said) == [
            "checkpoint-2, which is to stay, cannot be brought from the mirror: it is gone",
            f"pulled checkpoint-1 of {run.url}, which is to stay: 1,000 bytes in 2.0 s",
        ]
        journal = map(json.loads, (run.root / names.JOURNAL).read_text().splitlines())
        assert [event["step"] for event in journal if event["event"] == "pulled"] == [1]


def test_it_follows_a_control_directory_that_was_made_anew(tmp_path: Path) -> None:
    with mirrored_run(tmp_path / "run") as run:
        run.save(1)
        run.wait()
        away = run.place.rename(tmp_path / "away")
        waiting = run.save(2, "requested")
        (run.root / names.CONTROL).rename(tmp_path / "elsewhere")
        run.run.keep_control()
        assert pins.queued(run.run.directory.control) == {waiting.attempt}, "what waits is held there too"
        away.rename(run.place)
        run.save(3, "requested")
        wait_until(lambda: run.there() == [3, 2, 1], limit=60)
        wait_until(lambda: not pins.queued(run.run.directory.control), limit=60)


def test_signals_to_all_processes_of_a_job_are_not_for_it(tmp_path: Path) -> None:
    with mirrored_run(tmp_path / "run") as run:
        run.save(1)
        wait_until(lambda: run.there() == [1], limit=60)
        started = process_of(run)
        assert os.getsid(started.pid) != os.getsid(0), "a terminal's Ctrl+C does not reach it"
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            started.send_signal(number)
        run.save(2)
        wait_until(lambda: run.there() == [2, 1], limit=60)
        assert process_of(run).pid == started.pid
    assert not started.is_running()


def test_it_ends_at_once_also_where_a_data_worker_has_the_pipe(tmp_path: Path) -> None:
    with mirrored_run(tmp_path / "run") as run:
        started = process_of(run)
        wait_until((run.root / names.CONTROL / "mirror.json").exists)  # it listens by then
        worker = os.fork()
        if not worker:
            signal.pause()
            os._exit(0)
        try:
            popen = run.supervisor.process
            run.supervisor.close()
            assert popen is not None and popen.returncode == 0, "it was not killed"
            assert not started.is_running()
        finally:
            os.kill(worker, signal.SIGKILL)
            os.waitpid(worker, 0)


_KILLED = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from helpers.mirrored_run import MirroredRun
from helpers.waiting import wait_until

run = MirroredRun(Path(sys.argv[1]))
run.supervisor.start()
started = wait_until(lambda: run.supervisor.process)
run.save(1)
wait_until(lambda: run.there() == [1])
worker = os.fork()  # as a data worker is, which has the pipe as well
if not worker:
    time.sleep(100)
print(started.pid, worker)
time.sleep(100)
"""


def test_it_ends_with_a_training_that_is_killed_also_where_a_forked_worker_lives_on(tmp_path: Path) -> None:
    with process(_KILLED, tmp_path / "run", Path(__file__).parents[1]) as training:
        pid, worker = map(int, line_of(training, 60).split())
        mirror = psutil.Process(pid)
        training.kill()
        training.wait()
        try:
            wait_until(lambda: not mirror.is_running() or mirror.status() == psutil.STATUS_ZOMBIE)
            assert psutil.pid_exists(worker)
        finally:
            os.kill(worker, signal.SIGKILL)


def test_once_another_start_has_the_run_it_is_said_once_and_nothing_waits(tmp_path: Path) -> None:
    with mirrored_run(tmp_path / "run") as run:
        run.save(1)
        run.wait()
        start(run.store, host="another machine")
        for step in (2, 3):
            run.save(step, "requested")
            run.wait()
        assert run.there() == [1]
        (line,) = run.said
        assert "another machine" in line and line.endswith("what this training saves from now on is on this disk only")
        mirrored, *later = [event["event"] for event in events(run)]
        assert mirrored == "mirrored" and sorted(later) == ["mirror taken over", "not mirrored", "not mirrored"]
        shown = run.run.status.now.mirror
        assert shown is not None and "another machine" in shown["taken_over"]
        line = mirroring.last_line(run.run, run.supervisor)
        assert line == f"mirrored up to step 1; 3 is on this disk only: holdfast push {run.root} sends it"


def test_a_queue_that_cannot_be_written_costs_the_training_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mirrored_run(tmp_path / "run") as run:

        def full(queued: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(run.supervisor.queue, "put", full)
        run.save(1)
        assert run.supervisor.waiting == []
        (event,) = events(run)
        assert event["event"] == "not mirrored" and "could not be queued" in event["why"]


def test_a_process_that_cannot_live_is_failing_until_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    with mirrored_run(tmp_path / "run") as run:
        run.save(1)
        wait_until(lambda: len(run.said) == 2, limit=60)
        why = "the mirror's process has ended (3), 2 times in a row"
        assert run.said[1].startswith(f"nothing can be sent to {run.url}: {why};")
        assert run.supervisor.progress() == f"waiting for the mirror: step 1; it fails: {why}"
        shown = run.run.status.now.mirror
        assert shown is not None and shown["why"] == why and shown["failing_since"] and shown["next_try_at"]
        monkeypatch.undo()
        wait_until(lambda: not run.supervisor.waiting, limit=60)
        wait_until(lambda: len(run.said) == 3)
        assert run.said[2] == f"{run.url} takes checkpoints again" and run.there() == [1]


def test_a_state_that_is_damaged_says_nothing(tmp_path: Path) -> None:
    with mirrored_run(tmp_path / "run") as run:
        run.save(1)
        wait_until(lambda: not run.supervisor.waiting, limit=60)
        run.supervisor.close()
        file = run.root / names.CONTROL / "mirror.json"
        said = json.loads(file.read_text())
        assert said["mirrored"]["step"] == 1
        for changes in (
            {"mirrored": [1]},
            {"mirrored": {**said["mirrored"], "step": "1"}},
            {"uploading": {"step": 1}},
            {"failing_since": "long ago", "why": 3},
            {"not_pinned": {"1": 1}},
            {"not_pinned": ["1"]},
            {"not_sent": [None]},
        ):
            file.write_text(json.dumps(said | changes))
            run.supervisor.look()
            assert state.read(run.run.directory) == {}
            assert mirroring.last_line(run.run, run.supervisor).startswith("mirrored up to step 1 "), (
                "the answer says so"
            )
            assert run.supervisor.progress() == "waiting for the mirror: step "
        for sent, of, words in ((25_600, 96_419, "0.026 of 0.096 MB"), (25 * 10**6, 10**9, "25 of 1,000 MB")):
            file.write_text(json.dumps(said | {"uploading": {"step": 1, "bytes": sent, "of": of}}))
            assert run.supervisor.progress().endswith(f", {words} of step 1")


def test_a_process_that_hangs_is_killed_and_another_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mirrored_run(tmp_path / "run") as run:
        run.save(1)
        run.wait()
        first = process_of(run)
        first.suspend()
        monkeypatch.setattr(supervisor, "_SILENT_SECONDS", 1.5)
        run.save(2)
        wait_until(lambda: not first.is_running(), limit=60)
        monkeypatch.undo()
        run.wait()
        assert run.there() == [2, 1]
        assert "mirror process hangs" in [event["event"] for event in events(run)]


def test_a_poke_in_the_middle_of_its_start_is_not_its_first_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Assignment.encode
    with mirrored_run(tmp_path / "run") as run:

        def poked(assignment: Assignment) -> bytes:
            run.supervisor.poke()
            return encode(assignment)

        first = process_of(run)
        monkeypatch.setattr(Assignment, "encode", poked)
        run.save(1)
        run.wait()
        first.kill()
        wait_until(lambda: run.supervisor.process is not None and run.supervisor.process.pid != first.pid)
        run.save(2)
        run.wait()
        assert [event["event"] for event in events(run)].count("mirror process ended") == 1


def test_one_that_starts_while_training_ends_ends_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_starting, goes_on = threading.Event(), threading.Event()
    started: list[subprocess.Popen[bytes]] = []
    start_child = child.start

    def slow(*arguments: Any, **options: Any) -> "subprocess.Popen[bytes]":
        is_starting.set()
        goes_on.wait(60)
        started.append(start_child(*arguments, **options))
        return started[0]

    monkeypatch.setattr(child, "start", slow)
    monkeypatch.setattr(supervisor, "_ENDING_SECONDS", 0.1)
    with mirrored_run(tmp_path / "run"):
        assert is_starting.wait(60)
    goes_on.set()
    wait_until(lambda: started and started[0].poll() is not None)
