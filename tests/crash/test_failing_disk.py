"""Every operation on the disk fails, one after the other, until none is left that could: nothing is lost by it."""

import ctypes
import errno
import itertools
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from crash.promises import RUN_FOLDER, good_checkpoints
from crash.recorder import Recorder
from crash.stories import begin, resume, snapshot
from helpers.failing_disk import CHANGES, READS, FailingDisk, fails_with, is_cut_short
from holdfast.engine import save as saving
from holdfast.errors import HoldfastError
from holdfast.run.directory import RunDirectory
from holdfast.run.inbox import Inbox
from holdfast.run.request import Answer, Request
from holdfast.store import catalog, files, names
from holdfast.store.retention import RetentionPolicy
from holdfast.store.verify import verify

Record = Callable[[str, object], None]

ALL = bool(os.environ.get("HOLDFAST_FAULTS"))
REMOVALS = {"unlink", "rmdir"}


@dataclass
class Outcome:
    """What a start, a request and its save came to on a disk that fails."""

    refused: str = ""
    asked: Request | None = None
    answer: Answer | None = None


def start_ask_and_save(top: Path) -> Outcome:
    """Training resumes, is asked for a save, saves, keeps the last one, and ends. Nothing but ours may be raised."""
    outcome = Outcome()
    try:
        run = resume(Recorder(top))
    except (HoldfastError, OSError) as error:
        outcome.refused = str(error)
        return outcome
    request = Request("command")
    try:
        run.inbox.submit(request)
        outcome.asked = request
    except OSError:
        pass  # the asker sees it, and nobody was promised anything
    outcome.answer = saving.save(run, snapshot(8), [request], RetentionPolicy(0, 0, last=1))
    run.close("finished", 0)
    return outcome


def check(top: Path, outcome: Outcome, kind: str, reason: str) -> None:
    """What holds when the disk works again."""
    root = top / RUN_FOLDER
    good = good_checkpoints(root)
    steps = [manifest.step for manifest in good.values()]
    assert steps == [7, 6] or 8 in steps, "what was there is gone, and there is no newer one"
    answer = outcome.answer
    if answer is None:
        assert (reason in outcome.refused or kind in READS) and steps == [7, 6], "a start that failed changed something"
    elif answer.saved:
        assert answer.digest in good and verify(Path(answer.path)).good
    else:
        assert 7 in steps, "the older checkpoint was deleted although the save failed"
        assert reason in answer.error or (kind in READS and answer.error), "nobody is told why"
        freed = not [path.name for path in root.iterdir() if names.is_staging(path.name)]
        assert freed or kind in REMOVALS | {"open", "list"}, "the staged files take room still"
    inbox = Inbox(RunDirectory.open(root))
    if (asked := outcome.asked) is not None:
        assert inbox.answer_to(asked.id) == answer or asked in inbox.pending()[0], "a request is lost"


def check_next(top: Path) -> None:
    """What holds when training starts once more on a disk that works."""
    again = start_ask_and_save(top)
    assert again.answer is not None and again.answer.saved, "the next save does not work"
    left = [path.name for path in (top / RUN_FOLDER).iterdir()]
    assert not [name for name in left if names.is_staging(name) or names.is_trash(name)]


def sweep(memory: Path, kind: str, number: int, *, lasting: bool) -> int:
    """Fails the first operation of a kind, then the second, and so on, in a new directory each. How many there were."""
    (memory / "begun").mkdir()
    begin(memory / "begun", 6, 7)
    for at in itertools.count(1):
        top = memory / f"{kind}-{at}"
        shutil.copytree(memory / "begun", top)
        disk = FailingDisk({kind}, at, fails_with(number), lasting=lasting)
        with pytest.MonkeyPatch.context() as patch:
            disk.install(patch)
            outcome = start_ask_and_save(top)
        try:
            check(top, outcome, kind, os.strerror(number))
            if ALL or at % 3 == 0:
                check_next(top)
        except AssertionError as error:
            raise AssertionError(f"{kind} number {at} failed: {error} ({outcome})") from error
        shutil.rmtree(top)
        if not disk.failed:
            assert outcome.answer is not None and outcome.answer.saved
            return at - 1
    raise AssertionError("unreachable")


FULL = (errno.ENOSPC, errno.EDQUOT)
ERRORS = {
    "make": (*FULL, errno.EROFS, errno.EMFILE, errno.EINTR),
    "write": (*FULL, errno.EINTR),
    "fsync": (*FULL, errno.EINTR),
    "sync": (errno.EINTR,),
    "rename": (*FULL, errno.EROFS),
    "mkdir": FULL,
    "unlink": (errno.EROFS,),
    "open": (errno.EMFILE,),
}
CASES = [
    pytest.param(kind, number, lasting, id=f"{kind}-{errno.errorcode[number]}-{'lasting' if lasting else 'once'}")
    for kind in (*CHANGES, *READS)
    for number in (errno.EIO, *ERRORS.get(kind, ()))
    for lasting in (False, True)
    if ALL or number == errno.EIO or (lasting and number in (errno.ENOSPC, errno.EMFILE))
]


@pytest.mark.parametrize(("kind", "number", "lasting"), CASES)
def test_fault_06_10_13_19_training_goes_on_with_the_older_checkpoint_and_the_next_save_works(
    memory: Path, record_property: Record, kind: str, number: int, lasting: bool
) -> None:
    """The 1st, 2nd, .. n-th operation of each kind fails, once or from there on, in a start, a request and its save."""
    count = sweep(memory, kind, number, lasting=lasting)
    assert count >= 2
    record_property("injected", count)


def test_fault_09_a_short_write_is_no_error_and_loses_nothing(memory: Path, record_property: Record) -> None:
    """Half of the 1st, 2nd, .. n-th write is done and reported as no error, once or from there on."""
    injected = 0
    for lasting in (False, True):
        for at in itertools.count(1):
            top = memory / f"{lasting}-{at}"
            top.mkdir()
            begin(top, 7)
            disk = FailingDisk({"write"}, at, is_cut_short, lasting=lasting)
            with pytest.MonkeyPatch.context() as patch:
                disk.install(patch)
                outcome = start_ask_and_save(top)
            assert outcome.answer is not None and outcome.answer.saved
            assert [manifest.step for manifest in good_checkpoints(top / RUN_FOLDER).values()] == [8]
            shutil.rmtree(top)
            injected += disk.failed
            if not disk.failed:
                break
    assert injected > 10
    record_property("injected", injected)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP], ids=["EINVAL", "ENOTSUP"])
def test_fault_11_a_disk_that_syncs_no_directory_is_told_of_in_the_answer(memory: Path, number: int) -> None:
    """Every sync of a directory reports that it cannot be done."""
    begin(memory, 7)
    disk = FailingDisk({"sync"}, 1, fails_with(number), lasting=True)
    with pytest.MonkeyPatch.context() as patch:
        disk.install(patch)
        outcome = start_ask_and_save(memory)
    assert outcome.asked is not None and outcome.answer is not None
    assert (outcome.answer.saved, outcome.answer.durable) == (True, False)
    assert Inbox(RunDirectory.open(memory / RUN_FOLDER)).answer_to(outcome.asked.id) == outcome.answer


def test_fault_11_an_error_of_the_last_sync_is_no_saved(memory: Path) -> None:
    """EIO of each sync of a directory in turn, that of the run directory after the rename among them."""
    said = []
    for at in itertools.count(1):
        top = memory / str(at)
        top.mkdir()
        begin(top, 7)
        disk = FailingDisk({"sync"}, at, fails_with(errno.EIO))
        with pytest.MonkeyPatch.context() as patch:
            disk.install(patch)
            answer = start_ask_and_save(top).answer
        if not disk.failed:
            break
        if answer is not None and not answer.saved:
            said.append(answer.error)
    assert all("Input/output error" in error for error in said)
    assert len([error for error in said if "is there, but may not survive a power cut" in error]) == 1


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EEXIST], ids=["ENOENT", "EEXIST"])
def test_fault_12_a_rename_whose_answer_was_lost_is_known_by_what_has_the_name(memory: Path, number: int) -> None:
    """A rename, where none can promise to replace nothing, is done and reports an error."""

    def is_done_and_fails(real: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        real(*args)
        raise OSError(number, os.strerror(number))

    for name in ("one", "two"):
        (memory / name).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ctypes, "CDLL", lambda *args, **kwargs: object())
        rename = os.rename
        patch.setattr(os, "rename", lambda *args, **at: is_done_and_fails(partial(rename, **at), args))
        files.rename_new(memory / "one", memory / "renamed")
        with pytest.raises(FileExistsError):
            files.rename_new(memory / "two", memory / "renamed")
    assert sorted(path.name for path in memory.iterdir()) == ["renamed", "two"]


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EEXIST], ids=["EXDEV", "EEXIST"])
def test_fault_12_a_rename_that_cannot_be_is_a_failed_save_and_replaces_nothing(memory: Path, number: int) -> None:
    """Every rename of a checkpoint reports that the target is elsewhere, or there."""
    begin(memory, 7)
    with pytest.MonkeyPatch.context() as patch:
        disk = FailingDisk({"rename"}, 1, fails_with(number), lasting=True)
        run = resume(Recorder(memory))
        disk.install(patch)
        answer = saving.save(run, snapshot(7), [Request("schedule")], RetentionPolicy(None, None))
    assert not answer.saved and os.strerror(number) in answer.error
    (entry,) = catalog.entries(run.root)
    assert entry.manifest is not None and entry.manifest.sequence == 1
