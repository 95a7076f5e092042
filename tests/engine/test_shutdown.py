"""What a stop explains, and when it is known."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.loops import Loop
from helpers.trainings import events
from helpers.waiting import wait_until
from holdfast.capture.gate import Gate
from holdfast.doors.request_queue import RequestQueue
from holdfast.engine import watchdog
from holdfast.engine.on_published import OnPublished
from holdfast.engine.peers import Alone
from holdfast.engine.saver import Saver
from holdfast.engine.session import Outcomes, Session
from holdfast.engine.shutdown import Shutdown
from holdfast.engine.stop import Stop
from holdfast.log import RunLog
from holdfast.resume.open_run import Resumption
from holdfast.run.inbox import Inbox
from holdfast.run.request import Request
from holdfast.run.run import Run
from holdfast.settings import DynamicCheckpoint
from holdfast.store.commit import Attempt
from holdfast.store.retention import RetentionPolicy

QUIET = RunLog(lambda text: None)


class SlowQueue(RequestQueue):
    """A queue whose disk takes its time to take a request in."""

    def __init__(self, session: Session) -> None:
        super().__init__(session.run, DynamicCheckpoint(), session.log, session.wake)
        self.asked = threading.Event()
        self.disk = threading.Event()
        self.accepted: list[Request] = []

    def accept(self, request: Request) -> bool:
        self.asked.set()
        self.disk.wait(30)
        self.accepted.append(request)
        return True


def session_in(folder: Path, grace: float) -> Session:
    run, wake = Run.open(folder), threading.Event()
    gate = Gate(wake)
    return Session(
        run,
        gate,
        wake,
        Stop(grace, run.status),
        Outcomes(OnPublished(QUIET), QUIET),
        QUIET,
        Resumption(run, None, None),
    )


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    made = session_in(tmp_path, 60.0)
    yield made
    made.run.lease.release()


@pytest.fixture
def queue(session: Session) -> SlowQueue:
    return SlowQueue(session)


@pytest.fixture
def shutdown(session: Session, queue: SlowQueue) -> Iterator[Shutdown]:
    """Of a training that has reached a boundary, so that a signal asks for a save."""
    from holdfast.capture.boundary import Boundary

    session.gate.reach(Boundary(1, "update", number=1), shut=False)
    origin = Resumption(session.run, None, None)
    saver = Saver(session, queue, RetentionPolicy(None, None), Alone(session))
    made = Shutdown(session, queue, saver, origin, among_ranks=False)
    made.start()
    yield made
    queue.disk.set()
    made.end()
    made.over()  # the handlers of signals are the next test's
    session.stop.over()


def test_a_workers_death_is_the_stop_only_when_its_request_waits(queue: SlowQueue, shutdown: Shutdown) -> None:
    """Training that left earlier would find nothing to save, and end as if it were finished."""
    os.kill(os.getpid(), signal.SIGTERM)
    assert queue.asked.wait(30)
    explained: list[bool] = []
    died = RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")
    leaving = threading.Thread(target=lambda: explained.append(shutdown.explains(died)))
    leaving.start()
    leaving.join(1.5)
    assert not explained
    queue.disk.set()
    wait_until(lambda: explained)
    assert explained == [True] and queue.accepted[0].stop
    leaving.join()


def test_what_a_signal_sets_off_may_fail_and_the_next_signal_is_heard(
    session: Session, queue: SlowQueue, shutdown: Shutdown, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", errors.append)

    def fail(text: str) -> None:
        raise ValueError(text)

    monkeypatch.setattr(session.log, "info", fail)
    os.kill(os.getpid(), signal.SIGTERM)
    assert queue.asked.wait(30)
    for count in (1, 2):
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda count=count: len(errors) == count)  # type: ignore[misc]
    assert all("already under way" in str(error.exc_value) for error in errors)
    queue.disk.set()
    wait_until(lambda: len(errors) == 3)
    assert len(queue.accepted) == 1


def test_a_workers_death_without_a_stop_is_an_error(shutdown: Shutdown) -> None:
    assert not shutdown.explains(RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed."))


@pytest.mark.parametrize(("grace", "left"), [(60.0, 10.0), (5.0, 4.5)])
def test_a_rank_that_others_have_left_gets_a_moment_of_its_grace(tmp_path: Path, grace: float, left: float) -> None:
    """The other's process has to end before what this one waits for fails, which took 4 s on a busy machine."""
    session = session_in(tmp_path, grace)
    stop = session.stop
    stop.shorten()
    assert stop.seconds_left is None
    stop.begin()
    for _ in range(2):
        stop.shorten()
        assert stop.seconds_left == pytest.approx(left, abs=0.4)
    session.run.lease.release()


@pytest.mark.parametrize("door", ["signal", "command", "python"])
def test_a_training_of_short_steps_does_not_come_to_its_end_before_the_answer_to_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, door: str
) -> None:
    """It is blocked at the next boundary until the checkpoint is durable, which it is not before."""
    loop = Loop(tmp_path / "run", on_stop="return")
    gate = loop.ckpt._engine.gate
    seal = Attempt.seal

    def seal_while_training_waits(*args: Any) -> Any:
        wait_until(lambda: gate.is_blocked)
        return seal(*args)

    monkeypatch.setattr(Attempt, "seal", seal_while_training_waits)
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=30):
            loop.update(batch)
            if loop.ckpt.step_count == 3:
                if door == "signal":
                    os.kill(os.getpid(), signal.SIGUSR2)
                elif door == "command":
                    Inbox(loop.ckpt._engine.run.directory).submit(Request("command", stop=True))
                else:
                    loop.ckpt.save(stop=True)
                wait_until(lambda: loop.ckpt._engine._stop.is_coming)
    (saved,) = events(tmp_path / "run", "saved")
    (end,) = events(tmp_path / "run", "end")
    assert (end["outcome"], end["code"]) == ("stopped", 75)
    assert 3 <= saved["step"] <= loop.ckpt.step_count == 4


def test_a_stop_whose_save_hangs_does_not_hold_training_for_longer_than_other_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes by a command, so that no grace ends the process; when the storage is back, the stop is served."""
    monkeypatch.setattr(watchdog, "_SECONDS", 0.05)
    loop = Loop(tmp_path / "run", on_stop="return")
    engine = loop.ckpt._engine
    back, seal = threading.Event(), Attempt.seal
    monkeypatch.setattr(Attempt, "seal", lambda *args: back.wait(60) and seal(*args))
    with loop.ckpt:
        for batch in loop.ckpt.batches(until=60):
            loop.update(batch)
            if loop.ckpt.step_count == 3:
                Inbox(engine.run.directory).submit(Request("command", stop=True))
                wait_until(lambda: engine._stop.is_coming)
            elif loop.ckpt.step_count == 20:
                back.set()
                wait_until(lambda: loop.ckpt.stop_requested)
    assert [end["outcome"] for end in events(tmp_path / "run", "end")] == ["stopped"]
    assert loop.ckpt.step_count == 20 and any("training goes on" in said for said in loop.said)


def test_a_signal_that_comes_while_the_run_is_being_closed_reaches_the_users_handler_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class LeavesError(Exception):
        pass

    def leave(number: int, frame: object) -> None:
        raise LeavesError

    close = Run.close

    def close_amid_a_signal(run: Run, outcome: str, code: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        close(run, outcome, code)

    monkeypatch.setattr(Run, "close", close_amid_a_signal)
    before = signal.signal(signal.SIGTERM, leave)
    try:
        loop = Loop(tmp_path / "run")
        with pytest.raises(LeavesError), loop.ckpt:
            for batch in loop.ckpt.batches(until=2):
                loop.update(batch)
        assert signal.getsignal(signal.SIGTERM) is leave
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [end["outcome"] for end in events(tmp_path / "run", "end")] == ["finished"]


def test_a_handler_that_leaves_while_the_block_is_being_left_does_not_cost_the_end_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is released by its answer at the very moment at which the loop is over."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(9)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        loop = Loop(tmp_path / "run", stop_grace_seconds=60.0)
        signals = loop.ckpt._engine._shutdown._signals
        at_the_end = loop.ckpt._come_to_the_end

        def come_to_the_end() -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            wait_until(lambda: signal.SIGTERM in signals._released)
            at_the_end()

        monkeypatch.setattr(loop.ckpt, "_come_to_the_end", come_to_the_end)
        with pytest.raises(SystemExit) as left, loop.ckpt:
            for batch in loop.ckpt.batches(until=2):
                loop.update(batch)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert left.value.code == 9 and len(events(tmp_path / "run", "end")) == 1
