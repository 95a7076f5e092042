import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from helpers.support import every_crash, meets_error_at, succeeds_in_child
from helpers.waiting import wait_until
from holdfast.errors import RunNotAliveError, WaitTimeoutError
from holdfast.run.directory import RunDirectory
from holdfast.run.inbox import Inbox
from holdfast.run.request import Answer, Request

SAVED = Answer(saved=True, path="/runs/checkpoint-7", step=7)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    made = RunDirectory.create(tmp_path)
    return made


@pytest.fixture
def inbox(directory: RunDirectory) -> Inbox:
    return Inbox(directory)


def nothing() -> None:
    pass


def test_what_is_submitted_is_pending_until_it_is_answered(inbox: Inbox, directory: RunDirectory) -> None:
    request = Request("command", label="before lr")
    inbox.submit(request)
    assert inbox.pending() == ([request], []) and inbox.answer_to(request.id) is None
    inbox.answer(request, SAVED)
    assert inbox.pending() == ([], []) and inbox.answer_to(request.id) == SAVED
    assert not list(directory.requests.path.iterdir())


def test_the_oldest_request_comes_first(inbox: Inbox) -> None:
    for asked_at in (3.0, 1.0, 2.0):
        inbox.submit(Request("command", asked_at=asked_at))
    assert [request.asked_at for request in inbox.pending()[0]] == [1.0, 2.0, 3.0]


def test_another_process_finds_the_request(inbox: Inbox, directory: RunDirectory) -> None:
    inbox.submit(Request("command", why="asked here"))
    assert [request.why for request in Inbox(directory).pending()[0]] == ["asked here"]


def test_a_request_that_was_never_on_disk_can_be_answered(inbox: Inbox) -> None:
    request = Request("signal")
    inbox.answer(request, SAVED)
    assert inbox.answer_to(request.id) == SAVED


BROKEN: dict[str, tuple[str, bytes]] = {
    "no JSON": ("0" * 32, b"save please"),
    "half a request": ("0" * 32, Request("command").encode()[:40]),
    "another's name": ("0" * 32, Request("command").encode()),
    "too large": ("0" * 32, b" " * 70_000 + Request("command", id="0" * 32).encode()),
    "text that is none": ("0" * 32, Request("command", id="0" * 32).encode().replace(b'why": "', b'why": "\\ud8zz')),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_is_no_request_is_reported_once_and_removed(
    inbox: Inbox, directory: RunDirectory, kind: str
) -> None:
    stem, data = BROKEN[kind]
    (directory.requests.path / f"{stem}.json").write_bytes(data)
    found, broken = inbox.pending()
    assert found == [] and [name for name, _ in broken] == [f"{stem}.json"]
    assert inbox.pending() == ([], []) and not list(directory.requests.path.iterdir())


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_what_is_no_file_is_reported_once_and_neither_followed_nor_waited_for(
    inbox: Inbox, directory: RunDirectory, tmp_path: Path, kind: str
) -> None:
    planted = directory.requests.path / ("0" * 32 + ".json")
    if kind == "link":
        (tmp_path / "real").write_bytes(Request("command", id="0" * 32).encode())
        planted.symlink_to(tmp_path / "real")
    elif kind == "fifo":
        os.mkfifo(planted)
    else:
        planted.mkdir()
    found, broken = inbox.pending()
    assert found == [] and len(broken) == 1
    assert inbox.pending() == ([], [])


def test_files_of_other_names_are_none_of_its_business(inbox: Inbox, directory: RunDirectory) -> None:
    for name in ("notes.json", f"{'0' * 32}.touched", f".{'0' * 32}.json.4711.new", f"{'0' * 32}.json.bak"):
        (directory.requests.path / name).write_bytes(b"x")
    assert inbox.pending() == ([], []) and len(list(directory.requests.path.iterdir())) == 4


def test_a_request_that_cannot_be_read_at_the_moment_is_reported_once_and_not_lost(
    inbox: Inbox, directory: RunDirectory
) -> None:
    request = Request("command")
    inbox.submit(request)
    file = directory.requests.path / f"{request.id}.json"
    file.chmod(0)

    def look() -> bool:
        os.chdir(directory.root)
        if os.geteuid() == 0:  # root reads everything, so the test becomes somebody else
            for folder in (directory.folder, directory.control, directory.requests, directory.answers):
                os.chown(folder.fd, 65534, -1)
            os.setuid(65534)
        looking = Inbox(RunDirectory.open(Path()))
        found, broken = looking.pending()
        return found == [] and len(broken) == 1 and looking.pending() == ([], [])

    assert succeeds_in_child(look)
    file.chmod(0o600)
    assert inbox.pending()[0] == [request]


def test_an_answer_that_is_none_is_no_answer(inbox: Inbox, directory: RunDirectory) -> None:
    for data in (b"", b"{}", b"yes", b" " * 70_000 + SAVED.encode("0" * 32)):
        (directory.answers.path / f"{'0' * 32}.json").write_bytes(data)
        assert inbox.answer_to("0" * 32) is None


def test_wait_gives_the_answer_as_soon_as_it_is_there(inbox: Inbox) -> None:
    request = Request("command")
    inbox.submit(request)
    looking = threading.Event()
    found: list[Answer] = []
    waiting = threading.Thread(target=lambda: found.append(inbox.wait(request.id, None, looking.set)))
    waiting.start()
    assert looking.wait(10) and not found
    inbox.answer(request, SAVED)
    wait_until(lambda: found)
    waiting.join()
    assert found == [SAVED]


def test_wait_gives_up_and_the_request_stands(inbox: Inbox) -> None:
    request = Request("command")
    inbox.submit(request)
    for timeout in (0, 0.06):
        with pytest.raises(WaitTimeoutError, match=f"no answer within {timeout:g} s") as raised:
            inbox.wait(request.id, timeout, nothing)
        assert raised.value.exit_code == 5 and request.id in str(raised.value)
    assert inbox.pending()[0] == [request]


def test_wait_prefers_an_answer_that_is_there_to_a_time_that_is_up(inbox: Inbox) -> None:
    request = Request("command")
    inbox.answer(request, SAVED)
    assert inbox.wait(request.id, 0, nothing) == SAVED


def test_wait_ends_when_there_is_nothing_to_wait_for(inbox: Inbox) -> None:
    def check() -> None:
        raise RunNotAliveError("it died")

    with pytest.raises(RunNotAliveError):
        inbox.wait("0" * 32, None, check)


def test_the_newest_thousand_answers_are_kept(inbox: Inbox, directory: RunDirectory) -> None:
    for number in range(1003):
        path = directory.answers.path / f"{number:032x}.json"
        path.touch()
        os.utime(path, (number, number))
    inbox.forget_old_answers()
    left = sorted(int(path.stem, 16) for path in directory.answers.path.iterdir())
    assert left == list(range(3, 1003))


REQUEST = Request("command", id="7" * 32)


def created(root: Path) -> Inbox:
    RunDirectory.create(root)
    return Inbox(RunDirectory.open(root))


def test_a_crash_at_any_change_of_a_submission_leaves_the_whole_request_or_none(tmp_path: Path) -> None:
    seen = []
    for root in every_crash(tmp_path, created, lambda root: Inbox(RunDirectory.open(root)).submit(REQUEST)):
        found, broken = Inbox(RunDirectory.open(root)).pending()
        assert found in ([], [REQUEST]) and broken == []
        seen.append(len(found))
    assert seen == sorted(seen) and set(seen) == {0, 1}


def test_a_crash_at_any_change_of_an_answer_leaves_the_request_or_its_answer(tmp_path: Path) -> None:
    seen = set()
    for root in every_crash(
        tmp_path,
        lambda root: created(root).submit(REQUEST),
        lambda root: Inbox(RunDirectory.open(root)).answer(REQUEST, SAVED),
    ):
        inbox = Inbox(RunDirectory.open(root))
        pending, answered = inbox.pending()[0] == [REQUEST], inbox.answer_to(REQUEST.id) == SAVED
        assert pending or answered, "the request was lost"
        seen.add((pending, answered))
    assert seen == {(True, False), (True, True), (False, True)}


def test_an_answer_that_cannot_be_written_leaves_the_request(tmp_path: Path) -> None:
    def answer(root: Path) -> None:
        with suppress(OSError):
            Inbox(RunDirectory.open(root)).answer(REQUEST, SAVED)

    for count in range(1, 50):
        root = tmp_path / str(count)
        root.mkdir()
        created(root).submit(REQUEST)
        failed = meets_error_at(count, lambda root=root: answer(root))  # type: ignore[misc]
        inbox = Inbox(RunDirectory.open(root))
        assert inbox.pending()[0] == [REQUEST] or inbox.answer_to(REQUEST.id) == SAVED
        if not failed:
            break
    assert count > 4
