import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers.support import fill, process, tiny_disk
from helpers.waiting import wait_until
from holdfast.doors.request_queue import RequestQueue
from holdfast.log import RunLog
from holdfast.run.directory import RunDirectory
from holdfast.run.inbox import Inbox
from holdfast.run.request import Answer, Request
from holdfast.run.run import Run
from holdfast.settings import DynamicCheckpoint

NAME = "axolotl_checkpoint.save"
SAVED = Answer(saved=True)


class Desk:
    """A run that this process trains, and its queue."""

    def __init__(self, root: Path, say: Callable[[str], None] | None = None, **settings: Any) -> None:
        self.run = Run.open(root)
        self.said: list[str] = []
        self.notified = threading.Event()
        chosen = DynamicCheckpoint(**{"enabled": True, "check_interval": 0, **settings})
        self.queue = RequestQueue(self.run, chosen, RunLog(say or self.said.append), self.notified)
        self.trigger = root / NAME

    def waits(self) -> bool:
        return self.queue.look(1, last=False)

    def events(self, kind: str) -> list[dict[str, Any]]:
        lines = self.run.directory.journal.path.read_text().splitlines()
        return [event for line in lines if (event := json.loads(line))["event"] == kind]


@contextmanager
def opened(root: Path, **settings: Any) -> Iterator[Desk]:
    desk = Desk(root, **settings)
    desk.queue.start()
    try:
        yield desk
    finally:
        desk.queue.close()
        desk.run.lease.release()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with opened(tmp_path) as made:
        yield made


ASK = """
import sys
from pathlib import Path
from holdfast.log import RunLog
from holdfast.run.directory import RunDirectory
from holdfast.run.inbox import Inbox
from holdfast.run.request import Request
Inbox(RunDirectory.open(Path(sys.argv[1]))).submit(Request("command", stop=True, label="theirs"))
"""


def test_a_request_of_another_process_waits_for_the_next_save(desk: Desk) -> None:
    assert not desk.waits()
    with process(ASK, desk.run.root) as asking:
        assert asking.wait(30) == 0
    wait_until(desk.waits)
    (request,) = desk.queue.take()
    assert (request.door, request.stop, request.label) == ("command", True, "theirs")
    assert not desk.waits() and desk.queue.take() == []


def test_a_request_of_this_process_waits_at_once_and_is_on_disk(desk: Desk) -> None:
    request = Request("signal", why="SIGUSR1")
    desk.queue.accept(request)
    assert desk.waits()
    assert desk.run.inbox.pending()[0] == [request]
    assert desk.queue.take() == [request]


def test_what_this_process_asks_of_itself_waits_at_once_and_holds_training_only_when_it_is_on_disk(desk: Desk) -> None:
    desk.queue.close()
    first, second = Request("python", why="one"), Request("python", why="two")
    desk.queue.hear(first)
    assert desk.queue.waiting and desk.notified.is_set()
    assert not desk.waits() and desk.queue.take() == [] == desk.run.inbox.pending()[0]
    desk.queue.hear(second)
    desk.queue.write_down()
    assert desk.waits()
    assert desk.queue.take() == [first, second] == desk.run.inbox.pending()[0]
    assert len(desk.events("request")) == 2 and not desk.waits()


def test_what_this_process_asks_of_itself_is_soon_on_disk_whether_it_is_taken_or_not(desk: Desk) -> None:
    request = Request("python")
    desk.queue.hear(request)
    wait_until(lambda: desk.run.inbox.pending()[0] == [request])
    wait_until(lambda: len(desk.events("request")) == 1)
    assert desk.queue.take() == [request]


def test_no_request_is_taken_twice_however_often_it_is_seen(desk: Desk) -> None:
    for number in range(20):
        desk.queue.accept(Request("python", why=str(number)))
        desk.queue.look(1, last=True)
    assert [request.why for request in desk.queue.take()] == [str(number) for number in range(20)]
    desk.queue.look(1, last=True)
    assert desk.queue.take() == [] and len(desk.events("request")) == 20


def test_requests_are_taken_oldest_first(desk: Desk) -> None:
    for asked_at in (3.0, 1.0, 2.0):
        desk.queue.accept(Request("python", asked_at=asked_at))
    assert [request.asked_at for request in desk.queue.take()] == [1.0, 2.0, 3.0]


def test_what_one_thread_notices_together_another_takes_together(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training comes to its last boundary while the watching thread has written down the first of three."""
    desk.queue.close()
    for _ in range(3):
        desk.run.inbox.submit(Request("command"))
    taken: list[Request] = []
    write = desk.run.journal.write

    def look_meanwhile(event: str, **details: Any) -> None:
        write(event, **details)
        if not taken and desk.queue.look(1, last=True):
            taken.extend(desk.queue.take())

    monkeypatch.setattr(desk.run.journal, "write", look_meanwhile)
    assert desk.queue.look(1, last=True) is False
    assert len(taken) == 3 == len(desk.events("request")) and desk.queue.take() == []


def test_the_last_look_waits_for_a_trigger_file_that_is_just_being_claimed(desk: Desk) -> None:
    desk.queue.close()
    desk.trigger.touch()
    last = threading.Thread(target=lambda: desk.queue.look(1, last=True))
    with desk.queue._claiming:
        last.start()
        last.join(0.1)
        assert last.is_alive() and desk.trigger.exists()
    last.join(30)
    assert not last.is_alive() and not desk.trigger.exists() and len(desk.queue.take()) == 1


def test_what_waits_is_in_the_status_until_it_is_taken(desk: Desk) -> None:
    request = Request("signal", why="SIGUSR1", label="mine")
    desk.queue.accept(request)
    assert desk.run.status.now.pending == (request.reason(),)
    assert json.loads(desk.run.directory.status.path.read_text())["pending"] == [request.reason()]
    desk.queue.take()
    assert not desk.run.status.now.pending


def test_every_request_is_in_the_journal_with_its_door_and_reason(desk: Desk) -> None:
    desk.queue.accept(Request("signal", stop=True, why="SIGTERM"))
    (event,) = desk.events("request")
    assert (event["door"], event["why"], event["stop"]) == ("signal", "SIGTERM", True)


def test_the_status_is_rewritten_while_it_watches(desk: Desk) -> None:
    before = json.loads(desk.run.directory.status.path.read_text())["written_at"]
    wait_until(lambda: json.loads(desk.run.directory.status.path.read_text())["written_at"] > before + 1)


def test_with_an_interval_the_file_is_looked_at_at_its_multiples_and_at_the_end(tmp_path: Path) -> None:
    with opened(tmp_path, check_interval=5) as desk:
        seen = []
        for step in range(1, 13):
            desk.trigger.touch()
            if desk.queue.look(step, last=step == 12):
                seen.append(step)
                desk.queue.take()
        assert seen == [5, 10, 12]


def test_with_an_interval_the_file_is_left_alone_between(tmp_path: Path) -> None:
    with opened(tmp_path, check_interval=5) as desk:
        desk.trigger.touch()
        desk.queue.accept(Request("python"))
        written = json.loads(desk.run.directory.status.path.read_text())["written_at"]
        wait_until(lambda: json.loads(desk.run.directory.status.path.read_text())["written_at"] > written)
        assert desk.trigger.exists()


def test_with_interval_0_the_file_is_taken_without_any_step(desk: Desk) -> None:
    desk.trigger.touch()
    wait_until(lambda: not desk.trigger.exists())
    wait_until(desk.waits)
    assert [request.door for request in desk.queue.take()] == ["trigger_file"]


def test_the_file_is_left_alone_when_it_is_off(tmp_path: Path) -> None:
    with opened(tmp_path, enabled=False) as desk:
        desk.trigger.touch()
        desk.queue.accept(Request("python"))
        assert desk.queue.look(100, last=True)
        assert len(desk.queue.take()) == 1 and desk.trigger.exists()


def test_the_last_look_sees_what_was_asked_a_moment_ago(desk: Desk) -> None:
    desk.queue.close()
    Inbox(RunDirectory.open(desk.run.root)).submit(Request("command"))
    assert not desk.queue.look(1, last=False) and desk.queue.look(1, last=True)


TRAIN_AND_DIE = """
import os, signal, sys, threading
from pathlib import Path
from holdfast.log import RunLog
from holdfast.settings import DynamicCheckpoint
from holdfast.doors.request_queue import RequestQueue
from holdfast.run.request import Request
from holdfast.run.run import Run
run = Run.open(Path(sys.argv[1]))
queue = RequestQueue(run, DynamicCheckpoint(enabled=True, check_interval=0), RunLog(print), threading.Event())
queue.start()
queue.accept(Request("signal", stop=True, why="SIGTERM"))
(Path(sys.argv[1]) / "axolotl_checkpoint.save").write_text("mine")
while len(queue._waiting) < 2:
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_unanswered_waits_in_the_next_and_a_stop_is_not_carried_over(
    tmp_path: Path,
) -> None:
    with process(TRAIN_AND_DIE, tmp_path) as died:
        assert died.wait(30) == -signal.SIGKILL
    with opened(tmp_path) as desk:
        assert desk.waits(), "it waits from the start, not only from the first look of the watching thread"
        found = desk.queue.take()
        assert {(request.door, request.stop) for request in found} == {("signal", False), ("trigger_file", False)}
        assert {request.label for request in found} == {"", "mine"} and len(found) == 2


def test_a_file_that_is_no_request_is_reported_and_the_watch_goes_on(desk: Desk) -> None:
    for stem, data in (("0" * 32, b"nonsense"), ("1" * 32, b'{"label": "\\ud800"}')):
        (desk.run.directory.requests.path / f"{stem}.json").write_bytes(data)
    wait_until(lambda: len(desk.said) == 2)
    assert all("ignored" in said for said in desk.said) and len(desk.events("refused")) == 2
    Inbox(RunDirectory.open(desk.run.root)).submit(Request("command"))
    wait_until(desk.waits)


def test_a_request_that_tries_to_stop_the_watch_does_not(desk: Desk) -> None:
    content = {**json.loads(Request("command", id="0" * 32).encode()), "label": "\ud800"}
    (desk.run.directory.requests.path / f"{'0' * 32}.json").write_text(json.dumps(content))
    wait_until(desk.waits)
    assert [request.label for request in desk.queue.take()] == ["?"]


def test_on_a_full_disk_requests_are_still_taken_in_and_training_is_not_disturbed(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk", options="size=512k") as disk, opened(disk / "run", check_interval=5) as desk:
        fill(disk)
        desk.queue.accept(Request("signal", stop=True, why="SIGTERM"))
        desk.trigger.touch()
        assert desk.queue.look(5, last=True)
        assert sorted(request.door for request in desk.queue.take()) == ["signal", "trigger_file"]
        wait_until(lambda: any("No space left" in said for said in desk.said))
        (disk / "filler").unlink()
        Inbox(RunDirectory.open(desk.run.root)).submit(Request("command"))
        wait_until(desk.waits)


def test_a_directory_that_is_gone_does_not_disturb_training(tmp_path: Path) -> None:
    with opened(tmp_path / "run", check_interval=5) as desk:
        (tmp_path / "run").rename(tmp_path / "moved")
        desk.queue.accept(Request("signal", why="SIGUSR1"))
        assert desk.queue.look(5, last=True)
        (tmp_path / "moved").rename(tmp_path / "run")
        Inbox(RunDirectory.open(tmp_path / "run")).submit(Request("command"))
        wait_until(lambda: len(desk.run.status.now.pending) == 2)


def test_an_output_that_is_closed_does_not_end_the_watch(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)

    def say(text: str) -> None:
        os.write(writing, text.encode())

    with ExitStack() as stack:
        stack.callback(os.close, writing)
        desk = stack.enter_context(opened(tmp_path, say=say))
        (desk.run.directory.requests.path / f"{'0' * 32}.json").write_bytes(b"nonsense")
        wait_until(lambda: desk.events("refused"))
        Inbox(RunDirectory.open(tmp_path)).submit(Request("command"))
        wait_until(desk.waits)


def test_close_may_be_repeated_and_the_watch_is_over(desk: Desk) -> None:
    for _ in range(2):
        desk.queue.close()
    Inbox(RunDirectory.open(desk.run.root)).submit(Request("command"))
    assert not desk.waits()


def test_a_stop_can_be_left_for_the_next_save(desk: Desk) -> None:
    desk.queue.accept(Request("command", why="one"))
    stop = Request("command", stop=True, why="two")
    desk.queue.accept(stop)
    assert [request.why for request in desk.queue.take(stops=False)] == ["one"]
    assert desk.waits() and desk.queue.stop_waits
    assert list(desk.run.status.now.pending) == [stop.reason()]
    assert desk.queue.take() == [stop] and not desk.waits() and not list(desk.run.status.now.pending)
