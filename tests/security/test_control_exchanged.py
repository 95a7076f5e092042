"""The control directory exchanged at any moment of a run: nothing that lies under its name is read or written."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from crash.stories import KEEP_ALL, snapshot
from faults.harness import THOROUGH
from helpers.support import RUN
from holdfast.engine import save as saving
from holdfast.errors import RunError
from holdfast.run.request import Request
from holdfast.run.run import Run
from security.exchanging import before_each_call, number_of_calls, tree_of

STOP = Request("command", stop=True, why="forged")


def serve(run: Run) -> tuple[list[Request], list[Request]]:
    """A request, a look, the status, a save and its answer; a stop that is answered; the end.

    Returns:
        What the run heard of, and what was asked.
    """
    request, stop = Request("python"), Request("signal", stop=True)
    run.inbox.submit(request)
    heard = run.inbox.pending()[0]
    run.keep_control()
    run.status.write()
    answer = saving.save(run, snapshot(7), [request], KEEP_ALL)
    assert answer.saved, answer.error
    run.inbox.submit(stop)
    heard += run.inbox.pending()[0]
    run.inbox.answer(stop, answer)
    run.close("stopped", 75)
    return heard, [request, stop]


@dataclass
class Exchanger:
    """Puts a private directory of the same user's under the name of the control directory, once.

    Args:
        number: The number of the call before which it does so, or the first after it at which there is a directory.
        root: The run directory.
        other: That directory.
        away: Where the run's own is put.
    """

    number: int
    root: Path
    other: Path
    away: Path
    done: bool = False

    def __call__(self, number: int) -> None:
        control = self.root / ".holdfast"
        if not self.done and number >= self.number and control.is_dir():
            control.rename(self.away)
            self.other.rename(control)
            self.done = True


def forged(place: Path, copied: Path | None = None) -> Path:
    """A private directory in which somebody asks to stop; of a run that has begun it has all, the lease too."""
    if copied is not None:
        shutil.copytree(copied, place)
    for folder in (place, place / "requests", place / "answers"):
        folder.mkdir(mode=0o700, exist_ok=True)
    (place / "requests" / f"{STOP.id}.json").write_bytes(STOP.encode())
    (place / "status.json").write_bytes(b"private")
    return place


def called_now(identity: os.stat_result, *folders: Path) -> Path:
    """Where a directory is by now, in one of those."""
    (place,) = [path for folder in folders for path in folder.iterdir() if os.path.samestat(path.lstat(), identity)]
    return place


@pytest.mark.parametrize(("put", "every"), [("beside it", 5), ("elsewhere", 13)])
def test_security_s22_a_control_directory_that_is_exchanged_is_neither_obeyed_nor_written_to(
    tmp_path: Path, put: str, every: int, record_property: Callable[[str, object], None]
) -> None:
    """Before each call of requests, a save, answers, status and stop a forged one takes the place of `.holdfast`."""
    counted = Run.open(tmp_path / "count", continues=RUN)
    calls = number_of_calls(lambda: serve(counted))
    assert calls > 100
    restored = 0
    numbers = range(0, calls, 1 if THOROUGH else every)
    for number in numbers:
        top = tmp_path / str(number)
        run = Run.open(top / "run", continues=RUN)
        other = forged(top / "other", run.directory.control.path)
        before, identity = tree_of(other), other.stat()
        exchanger = Exchanger(number, run.root, other, (run.root if put == "beside it" else top) / "moved")
        with before_each_call(exchanger):
            heard, asked = serve(run)
        assert exchanger.done and heard == asked, f"call {number}"
        assert tree_of(called_now(identity, run.root)) == before, f"call {number}"
        restored += run.directory.has_its_name()  # not after the last look, when the run has ended
        control = run.root / ".holdfast" if run.directory.has_its_name() else exchanger.away
        assert all(b'"saved": true' in (control / "answers" / f"{request.id}.json").read_bytes() for request in asked)
        assert b'"stopped"' in (control / "outcome.json").read_bytes() and not list((control / "requests").iterdir())
    record_property("injected", len(numbers))
    assert restored > len(numbers) * 0.7


def test_security_s22_a_start_holds_what_it_has_made_or_ends(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Before each call of a first start a forged one takes the place of the new control directory."""
    calls = number_of_calls(lambda: Run.open(tmp_path / "count", continues=RUN))
    refused = 0
    for number in range(calls):
        top = tmp_path / str(number)
        top.mkdir()
        other = forged(top / "other")
        before, identity = tree_of(other), other.stat()
        exchanger = Exchanger(number, top / "run", other, top / "run" / "moved")
        try:
            with before_each_call(exchanger):
                run = Run.open(top / "run", continues=RUN)
        except RunError as error:
            assert "is not the directory that was made there: somebody exchanged it" in str(error), f"call {number}"
            refused += 1
        else:
            run.keep_control()
            assert run.directory.has_its_name() and run.inbox.pending() == ([], []) and not run.left_over
            run.lease.check()
        assert tree_of(called_now(identity, top / "run" if exchanger.done else top)) == before, f"call {number}"
    record_property("injected", calls)
    assert 0 < refused < calls / 2


def test_security_s22_one_that_is_exchanged_while_it_is_put_right_is_put_right_again(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Before each call by which the run puts its name right a second forged one takes its place, or its copy's."""
    injected = 0
    for put in ("beside it", "elsewhere"):
        number, done = 0, True
        while done:
            top = tmp_path / put / str(number)
            run = Run.open(top / "run", continues=RUN)
            request = Request("python")
            run.inbox.submit(request)
            others = [forged(top / name, run.directory.control.path) for name in ("one", "two")]
            before = [(tree_of(other), other.stat()) for other in others]
            away = run.root if put == "beside it" else top
            Exchanger(0, run.root, others[0], away / "moved")(0)
            exchanger = Exchanger(number, run.root, others[1], away / "moved-again")
            with before_each_call(exchanger):
                run.keep_control()
            run.keep_control()
            assert run.directory.has_its_name() and run.inbox.pending()[0] == [request], f"call {number}"
            run.lease.check()
            done = exchanger.done
            for content, identity in before:
                assert tree_of(called_now(identity, run.root, top)) == content, f"call {number}"
            assert not list(run.root.glob(".trash-*"))
            number, injected = number + (1 if put == "beside it" or THOROUGH else 3), injected + done
    record_property("injected", injected)
    assert injected > 30
