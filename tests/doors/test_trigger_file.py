import itertools
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from helpers.support import dies_at, fill, tiny_disk
from holdfast.doors.trigger_file import Claim, TriggerFile
from holdfast.log import RunLog
from holdfast.run.directory import RunDirectory
from holdfast.run.inbox import Inbox
from holdfast.run.journal import Journal
from holdfast.run.request import Answer, Request

NAME = "axolotl_checkpoint.save"


@dataclass
class Desk:
    """A run directory, its trigger file, and what came of looking at it."""

    root: Path
    accepted: list[Request] = field(default_factory=list)
    reported: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.directory = RunDirectory.create(self.root)
        self.inbox = Inbox(self.directory)
        self.journal = Journal(self.directory.journal, "run")
        self.trigger = self.started()

    @property
    def path(self) -> Path:
        return self.root / NAME

    def started(self) -> TriggerFile:
        """The trigger file as a new process sees it."""
        return TriggerFile(self.directory, NAME, self.journal, RunLog(self.reported.append))

    def accept(self, request: Request) -> bool:
        self.accepted.append(request)
        try:
            self.inbox.submit(request)
        except OSError:
            return False
        return True

    def take(self, claim: Claim | None) -> None:
        """What the queue of requests does with a claim."""
        if claim is not None and self.accept(claim.request):
            self.trigger.release(claim)

    def recover(self) -> None:
        for claim in self.trigger.left_behind():
            self.take(claim)

    def look(self, times: int = 1) -> list[Request]:
        for _ in range(times):
            self.take(self.trigger.look())
        taken, self.accepted = self.accepted, []
        return taken

    def left(self) -> list[str]:
        return sorted(path.suffix for path in self.directory.requests.path.iterdir())


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_no_file_asks_for_nothing_and_changes_nothing(desk: Desk) -> None:
    assert desk.look(3) == [] and desk.reported == [] and desk.left() == []


def test_a_file_asks_once_for_a_save_and_is_gone(desk: Desk) -> None:
    desk.path.touch()
    (request,) = desk.look(3)
    assert (request.door, request.stop, request.label, request.why) == ("trigger_file", False, "", NAME)
    assert not desk.path.exists() and desk.reported == []
    assert desk.inbox.pending()[0] == [request], "the request must be on disk before the claim is let go"
    assert desk.left() == [".json"]


def test_it_can_be_created_again_without_end(desk: Desk) -> None:
    requests = []
    for _ in range(30):
        desk.path.touch()
        requests += desk.look()
    assert len({request.id for request in requests}) == 30 == len(desk.inbox.pending()[0])


def test_its_text_becomes_the_label(desk: Desk) -> None:
    desk.path.write_bytes("before the new\nlearning rate\x1b[31m é".encode())
    (request,) = desk.look()
    assert request.label == "before the new learning rate [31m é"


def test_fault_27_security_s09_at_most_four_kilobytes_are_read_and_they_are_a_label_alone(desk: Desk) -> None:
    """A file of 4,096 bytes, one more, and a terabyte, nearly all of it a hole."""
    desk.path.write_bytes(b"x" * 4096)
    (request,) = desk.look()
    assert request.label == "x" * 4096
    for size in (4097, 1 << 40):
        with desk.path.open("wb") as file:
            file.write(b"x" * 4096)
            file.truncate(size)  # a file with a hole: nobody may read it all
        assert desk.look(3) == [] and desk.path.stat().st_size == size
    assert desk.reported[1:] == [
        f"{desk.path} has more than the 4,096 bytes of a label; it is left alone and asks for nothing"
    ]


def test_fault_27_a_file_that_is_created_empty_and_written_a_moment_later_has_its_label(desk: Desk) -> None:
    """The file is claimed between its creation and its text."""

    def write_when_claimed() -> None:
        with desk.path.open("w") as file:
            created.set()
            while desk.path.exists():
                pass
            time.sleep(0.004)  # as a shell takes between `>` and `echo`
            file.write("late")

    for _ in range(5):  # the writer has 20 ms, which a busy machine may not give it
        created = threading.Event()
        writer = threading.Thread(target=write_when_claimed)
        writer.start()
        created.wait()
        (request,) = desk.look()
        writer.join()
        if request.label:
            break
    assert request.label == "late"


def made_large(path: Path) -> None:
    path.write_bytes(b"epoch,loss\n" * 400)


def made_in_another_encoding(path: Path) -> None:
    path.write_bytes("épreuve".encode("latin-1"))


def made_binary(path: Path) -> None:
    path.write_bytes(b"ab\0cd")


def made_the_journal(path: Path) -> None:
    (path.parent / "events.jsonl").rename(path)


def made_a_journal_of_another_run(path: Path) -> None:
    path.write_text('{"at": 1.0, "run": "r", "event": "start"}\n')


NO_TRIGGERS = pytest.mark.parametrize(
    ("make", "said"),
    [
        (made_large, "has more than the 4,096 bytes of a label"),
        (made_in_another_encoding, "is not text in UTF-8"),
        (made_binary, "is no text"),
        (made_the_journal, "is the run's journal"),
        (made_a_journal_of_another_run, "is a run's journal"),
    ],
)


def remembered(path: Path) -> tuple[int, bytes]:
    return path.stat().st_ino, path.read_bytes()


@NO_TRIGGERS
def test_security_s31_a_file_of_the_users_that_gets_its_name_is_left_and_reported_once(
    desk: Desk, make: Callable[[Path], None], said: str
) -> None:
    """Another file gets the trigger's name: large, of bytes, the journal; its program goes on writing to it."""
    desk.journal.write("start")
    make(desk.path)
    for more in (b"", b"more"):
        with desk.path.open("ab") as file:
            file.write(more)
        before = remembered(desk.path)
        assert desk.look(3) == [] and desk.left() == []
        assert remembered(desk.path) == before
    assert desk.reported == [f"{desk.path} {said}; it is left alone and asks for nothing"]


@NO_TRIGGERS
def test_security_s31_one_that_was_claimed_already_is_put_back_and_replaces_nothing(
    desk: Desk, make: Callable[[Path], None], said: str
) -> None:
    """What was looked at is exchanged before the rename; then somebody asks anew before it is put back."""
    desk.journal.write("start")
    make(desk.path)
    before, claim = remembered(desk.path), desk.directory.requests.path / ("7" * 32 + ".touched")
    desk.path.rename(claim)
    desk.recover()
    assert remembered(desk.path) == before and desk.left() == [] and desk.look(3) == []
    assert desk.reported == [f"{desk.path} {said}; it is left alone and asks for nothing"]
    desk.path.rename(claim)
    desk.path.touch()
    desk.recover()
    kept = claim.with_suffix(".refused")
    assert remembered(kept) == before and len(desk.look()) == 1
    assert desk.reported[1:] == [f"what was claimed as {desk.path} {said}; it asks for nothing, and is now {kept}"]


def test_security_s31_a_text_that_asked_is_kept_and_the_answer_says_where(desk: Desk) -> None:
    """Notes of the user's are renamed to the trigger's name, by whoever may rename there; then many that are meant."""
    notes = desk.root / "notes.txt"
    notes.write_text("learning rate 0.1 was too much\n")
    before = remembered(notes)
    notes.rename(desk.path)
    (request,) = desk.look()
    kept = desk.directory.claimed.path / request.id
    assert remembered(kept) == before and not desk.path.exists()
    assert desk.reported == [f"the text of {NAME} is the label of a save, and kept as {kept}"]
    desk.inbox.answer(request, Answer(saved=True))
    answer = desk.inbox.answer_to(request.id)
    assert answer is not None and answer.claimed == str(kept)
    desk.path.touch()
    (empty,) = desk.look()
    desk.inbox.answer(empty, Answer(saved=True))
    assert (answer := desk.inbox.answer_to(empty.id)) is not None and not answer.claimed
    for number in range(20):
        desk.path.write_text(str(number))
        desk.look()
    texts = {path.read_text() for path in desk.directory.claimed.path.iterdir()}
    assert texts == {str(number) for number in range(20)}, "the newest"


def made_link(path: Path) -> None:
    (path.parent / "secret").write_text("secret")
    path.symlink_to("secret")


def made_dangling_link(path: Path) -> None:
    path.symlink_to("nothing")


def made_folder(path: Path) -> None:
    path.mkdir()


def made_fifo(path: Path) -> None:
    os.mkfifo(path)


def made_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(path.parent)
        made.bind(path.name)
        os.chdir(here)


def made_by_a_stranger(path: Path) -> None:
    path.touch()
    try:
        os.chown(path, 12345, -1)
    except PermissionError:
        pytest.skip("SKIPPED, NOT PASSED: only root can make a stranger's file")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (made_link, "is a symbolic link"),
        (made_dangling_link, "is a symbolic link"),
        (made_folder, "is not a regular file"),
        (made_fifo, "is not a regular file"),
        (made_socket, "is not a regular file"),
        (made_by_a_stranger, "belongs to another user (uid 12345)"),
    ],
)
def test_fault_27_security_s07_what_is_no_plain_file_of_ours_is_reported_once_and_left_alone(
    desk: Desk, make: Callable[[Path], None], said: str
) -> None:
    """A link, a dangling link, a directory, a FIFO, a socket, a stranger's file in its place."""
    make(desk.path)
    before = desk.path.lstat()
    assert desk.look(5) == []
    assert desk.reported == [f"{desk.path} {said}; it is left alone and asks for nothing"]
    assert desk.path.lstat() == before and desk.left() == []


def test_a_plain_file_in_the_place_of_what_was_reported_asks(desk: Desk) -> None:
    desk.path.mkdir()
    desk.look()
    desk.path.rmdir()
    desk.path.touch()
    assert len(desk.look()) == 1


@contextmanager
def unremovable(path: Path) -> Iterator[None]:
    if subprocess.run(["chattr", "+i", path], capture_output=True, check=False).returncode:
        pytest.skip("SKIPPED, NOT PASSED: chattr +i needs root and a file system that knows it")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", path], check=True)


def test_fault_25_a_file_that_cannot_be_removed_asks_once_and_is_reported_once_and_another_asks_again(
    desk: Desk,
) -> None:
    """chattr +i on the file, looked at again and again, also by a second start."""
    desk.path.write_text("label")
    with unremovable(desk.path):
        (request,) = desk.look(5)
        desk.trigger = desk.started()
        assert desk.look(5) == []
        assert desk.path.exists() and desk.inbox.pending()[0] == [request]
        (said,) = desk.reported
        assert said.startswith(f"{desk.path} cannot be removed (Operation not permitted)")
    desk.path.unlink()
    desk.path.touch()
    assert len(desk.look()) == 1, "another file is another request"


def test_what_a_crash_left_claimed_is_asked_for_by_the_next_start_under_the_same_identity(desk: Desk) -> None:
    claim = desk.directory.requests.path / ("7" * 32 + ".touched")
    claim.write_text("do not lose me")
    desk.recover()
    (request,) = desk.look()
    assert (request.id, request.label, request.why) == ("7" * 32, "do not lose me", NAME)
    assert desk.left() == [".json"]


def test_a_claim_that_was_answered_already_is_not_asked_for_again(desk: Desk) -> None:
    desk.path.touch()
    (request,) = desk.look()
    claim = desk.directory.requests.path / f"{request.id}.touched"
    claim.touch()
    desk.recover()
    assert desk.look() == [] and not claim.exists(), "its request is on disk, where the next start finds it"
    desk.inbox.answer(request, Answer(saved=True))
    claim.write_text("a label")
    desk.recover()
    assert desk.look() == [] and desk.left() == []
    assert (desk.directory.claimed.path / request.id).read_text() == "a label"


def test_a_text_that_cannot_be_kept_has_asked_and_is_kept_by_the_next_start(desk: Desk) -> None:
    desk.directory.claimed.path.touch()  # no directory
    desk.path.write_text("a label")
    (request,) = desk.look()
    claim = desk.directory.requests.path / f"{request.id}.touched"
    assert request.label == "a label" and claim.exists()
    assert desk.reported == [f"{claim} cannot be put away (Not a directory): the next start tries it again"]
    desk.directory.claimed.path.unlink()
    desk.recover()
    assert desk.look() == [] and (desk.directory.claimed.path / request.id).read_text() == "a label"


@pytest.mark.parametrize("make", [made_link, made_fifo, made_folder])
def test_security_s08_a_claim_that_is_no_plain_file_is_neither_followed_nor_waited_for(
    desk: Desk, make: Callable[[Path], None]
) -> None:
    """What was claimed by renaming turns out to be a link, a FIFO, a directory."""
    make(desk.directory.requests.path / ("7" * 32 + ".touched"))
    for _ in range(3):
        desk.recover()
    assert desk.look() == [] and len(desk.reported) == 1
    assert not list(desk.directory.requests.path.glob("*.touched"))


def test_files_of_other_names_are_no_claims(desk: Desk) -> None:
    for name in ("mine.touched", "7" * 31 + ".touched", "7" * 32 + ".touch"):
        (desk.directory.requests.path / name).touch()
    desk.recover()
    assert desk.look() == [] and len(desk.left()) == 3


def test_a_crash_at_any_change_of_a_claim_loses_no_request_and_makes_no_second_one(tmp_path: Path) -> None:
    seen = set()
    for count in itertools.count(1):
        crashed = Desk(tmp_path / str(count))
        crashed.path.write_text("label")
        died = dies_at(count, crashed.look)
        seen.add((crashed.path.exists(), *crashed.left()))
        again = Desk(crashed.root)
        again.recover()
        again.look()
        (request,) = again.inbox.pending()[0]
        assert request.label == "label" and not again.path.exists() and ".touched" not in again.left()
        if not died:
            break
    assert {(True,), (False, ".touched"), (False, ".json", ".touched"), (False, ".json")} <= seen


def test_on_a_full_disk_it_still_asks_and_the_claim_stays_for_the_next_start(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk", options="size=256k") as disk:
        full = Desk(disk / "run")
        full.path.write_text("label")
        fill(disk)
        (request,) = full.look(3)
        assert request.label == "label" and not full.path.exists()
        assert full.inbox.pending()[0] == [] and ".touched" in full.left()
        (disk / "filler").unlink()
        again = Desk(full.root)
        again.recover()
        assert [request.label for request in again.inbox.pending()[0]] == ["label"]
