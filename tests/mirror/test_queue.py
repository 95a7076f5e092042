import threading
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.support import RUN, commit_checkpoint
from holdfast.errors import WaitTimeoutError
from holdfast.mirror.queue import Answer, Kind, Queue, Queued
from holdfast.run.directory import RunDirectory
from holdfast.store import pins, retention
from holdfast.store.catalog import Catalog
from holdfast.store.retention import WAITS, RetentionPolicy, StillWantedError


def queued(step: int, kind: Kind = "scheduled") -> Queued:
    return Queued(f"{step:032x}", step, step, 100, kind, (f"{9:032x}",))


def test_what_is_put_in_waits_until_it_is_answered(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path)
    queue, other = Queue(directory), Queue(RunDirectory.open(tmp_path))
    assert queue.waiting() == [] and queue.answer_to(f"{1:032x}") is None
    for each in (replace(queued(2, "stop"), protected=None), queued(1)):
        queue.put(each)
    assert [each.step for each in other.waiting()] == [1, 2]
    assert other.waiting()[1].kind == "stop"
    assert [each.protected for each in other.waiting()] == [(f"{9:032x}",), None]
    assert other.answer(Answer(f"{1:032x}", 1, 1, True, term=3, bytes=100, seconds=0.5))
    assert [each.step for each in queue.waiting()] == [2]
    answer = queue.answer_to(f"{1:032x}")
    assert answer is not None and (answer.mirrored, answer.term, answer.seconds) == (True, 3, 0.5)
    assert not queue.refuse(queued(1), "too late"), "it has its answer"
    assert queue.answer_to(f"{1:032x}") == answer


def test_asking_again_takes_the_old_answer_away(tmp_path: Path) -> None:
    queue = Queue(RunDirectory.create(tmp_path))
    queue.put(queued(1))
    assert [each.step for each in queue.give_up("no mirror")] == [1]
    assert queue.waiting() == []
    queue.put(queued(1, "requested"))
    assert queue.answer_to(f"{1:032x}") is None and [each.kind for each in queue.waiting()] == ["requested"]


def test_a_crash_between_the_answer_and_the_end_of_its_wait_is_made_good(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path)
    queue = Queue(directory)
    queue.put(queued(1))
    path = directory.control.path / pins.QUEUE / f"{1:032x}"
    words = path.read_bytes()
    queue.refuse(queued(1), "overtaken")
    path.write_bytes(words)
    assert queue.waiting() == [] and pins.queued(directory.control) == frozenset()


@pytest.mark.parametrize("words", [b"", b"[]", b"{}", b'{"attempt": 1}', b"\xff", b"[" * 50_000], ids=range(6))
def test_what_cannot_be_understood_is_taken_out_and_holds_nothing(tmp_path: Path, words: bytes) -> None:
    directory = RunDirectory.create(tmp_path)
    queue = Queue(directory)
    queue.put(queued(1))
    (directory.control.path / pins.QUEUE / f"{2:032x}").write_bytes(words)
    assert [each.step for each in queue.waiting()] == [1]
    assert pins.queued(directory.control) == {f"{1:032x}"}


def test_who_waits_hears_the_answer_or_that_none_will_come(tmp_path: Path) -> None:
    queue = Queue(RunDirectory.create(tmp_path))
    assert queue.wait(f"{1:032x}", None, lambda: None) is None
    queue.put(queued(1))
    with pytest.raises(WaitTimeoutError, match="durable on this disk"):
        queue.wait(f"{1:032x}", 0.0, lambda: None)
    answering = threading.Timer(0.1, queue.refuse, (queued(1), "overtaken"))
    answering.start()
    answer = queue.wait(f"{1:032x}", 30.0, lambda: None)
    answering.join()
    assert answer is not None and answer.why == "overtaken"


def test_what_waits_for_the_mirror_is_held_until_it_is_there(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path)
    control, folder = directory.control, directory.folder
    for step in (1, 2, 3):
        commit_checkpoint(tmp_path, step)
    entries = Catalog(folder).entries()
    oldest = entries[-1].manifest
    assert oldest is not None
    queue = Queue(directory)
    waits = Queued(oldest.attempt, 1, oldest.sequence, oldest.size, "scheduled")
    queue.put(waits)
    verdicts = retention.judge(folder, control, entries, RUN, RetentionPolicy(1, None))
    assert [verdict.kept for verdict in verdicts] == ["the newest good one", None, WAITS]
    with pytest.raises(StillWantedError, match=WAITS):
        retention.delete(folder, control, entries[-1].path)
    queue.refuse(waits, "the disk was nearly full")
    retention.delete(folder, control, entries[-1].path)
    assert not (tmp_path / "checkpoint-1").exists()


def test_one_that_is_queued_while_it_is_being_deleted_gets_its_name_back(tmp_path: Path) -> None:
    """A crash after the name went: the next start finds it queued."""
    directory = RunDirectory.create(tmp_path)
    path = commit_checkpoint(tmp_path, 1)
    (entry,) = Catalog(directory.folder).entries()
    assert entry.manifest is not None
    path.rename(tmp_path / f".trash-{'b' * 32}")
    Queue(directory).put(Queued(entry.manifest.attempt, 1, 1, 1, "requested"))
    retention.sweep(directory.folder, directory.control)
    assert path.is_dir()
