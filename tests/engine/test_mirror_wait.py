"""The end of a training that has a mirror: a plain loop here, the mirror's real process, and a place that goes away."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers.full import in_full
from helpers.loops import Loop
from helpers.mirrors import DirectoryMirror
from helpers.support import holdfast, holdfast_begun
from helpers.trainings import answers, events
from helpers.waiting import wait_until
from holdfast import status
from holdfast.errors import Stopped
from holdfast.mirror.queue import Queued
from holdfast.mirror.supervisor import Supervisor
from holdfast.run.directory import RunDirectory
from holdfast.run.inbox import Inbox
from holdfast.run.request import Request
from holdfast.store import files


@pytest.fixture(autouse=True)
def _room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with room, whatever there is here: on a full one what waits gives way, which is tested elsewhere."""
    monkeypatch.setattr(files, "free_share", lambda directory: 1.0)


class Mirrored:
    """A loop with a mirror in a directory that can go away and come back, as a disk of another machine does."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.run = folder / "run"
        self.mirror = DirectoryMirror(folder / "mirror")
        self.loop = Loop(self.run, mirror=self.mirror.url, dynamic_checkpoint={"keep": 1}, **settings)
        self.said = self.loop.said

    def steps(self, until: int, *, asked: bool = False) -> None:
        for batch in self.loop.ckpt.batches(until=until):
            self.loop.update(batch)
            if asked:
                self.loop.ckpt.save("asked for", wait=True)

    def goes_away(self) -> None:
        """Returns when the process has noticed."""
        self.mirror.path.rename(self.mirror.path.with_name("away"))

    def comes_back(self) -> None:
        self.mirror.path.with_name("away").rename(self.mirror.path)

    def on_disk(self) -> list[str]:
        return sorted(path.name for path in self.run.glob("checkpoint-*"))

    @contextmanager
    def meanwhile(self, what: Callable[[], object]) -> Iterator[None]:
        """Does something in another thread once the training waits for its mirror."""

        def do() -> None:
            wait_until(lambda: any(line.startswith("waiting for the mirror") for line in self.said))
            what()

        thread = threading.Thread(target=do)
        thread.start()
        yield
        thread.join()


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_training_that_ends_waits_for_its_mirror_and_keeps_what_waits_until_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirrored, put, said = Mirrored(tmp_path), Supervisor.put, []

    def puts(supervisor: Supervisor, queued: Queued) -> None:
        said.append((queued.step, [event["step"] for event in events(mirrored.run, "saved")]))
        put(supervisor, queued)

    monkeypatch.setattr(Supervisor, "put", puts)
    with mirrored.meanwhile(mirrored.comes_back), mirrored.loop.ckpt:
        mirrored.loop.ckpt.resume()
        mirrored.goes_away()
        mirrored.steps(3, asked=True)
        assert mirrored.on_disk() == ["checkpoint-1", "checkpoint-2", "checkpoint-3"], "one is kept, and two wait"
    assert said == [(1, []), (2, [1]), (3, [1, 2])], "before it is answered, and before anything is deleted"
    assert [each.key.sequence for each in mirrored.mirror.listing.published] == [3], "and of those it keeps one, too"
    assert [event["step"] for event in events(mirrored.run, "mirrored")] == [3, 1, 2]
    (waiting,) = (line for line in mirrored.said if line.startswith("waiting for the mirror"))
    assert "step 1, 2, 3" in waiting and "it fails: " in waiting
    assert waiting.endswith(f"; Ctrl+C or holdfast stop {mirrored.run} ends the wait")
    assert mirrored.said[-1] == f"mirrored up to step 3 ({mirrored.mirror.url})"
    assert [end["outcome"] for end in events(mirrored.run, "end")] == ["finished"]
    told = holdfast("status", mirrored.run).stdout
    assert "\nmirror      up to step 3, " in told and "on this disk only" not in told


def test_ctrl_c_ends_the_wait_and_not_as_a_stop(tmp_path: Path) -> None:
    mirrored = Mirrored(tmp_path)
    with mirrored.meanwhile(interrupt), mirrored.loop.ckpt:
        mirrored.loop.ckpt.resume()
        mirrored.goes_away()
        mirrored.steps(3, asked=True)
    push = f"1, 2, 3 are on this disk only: holdfast push {mirrored.run} sends them"
    assert mirrored.said[-1] == f"nothing is mirrored; {push}"
    assert [(end["outcome"], end["code"]) for end in events(mirrored.run, "end")] == [("finished", 0)]
    assert "\nmirror      on this disk only: step 1, 2, 3 (" in holdfast("status", mirrored.run).stdout
    mirrored.comes_back()
    assert holdfast("push", mirrored.run).returncode == 0
    told = [line for line in holdfast("status", mirrored.run).stdout.splitlines() if line.startswith("mirror")]
    assert len(told) == 1 and told[0].startswith("mirror      up to step 3, "), "nothing waits, and nothing fails"
    shown = status(mirrored.run)["mirror"]
    assert (shown["mirrored"]["step"], shown["waiting"], shown["failing_since"]) == (3, [], None)


def test_a_stop_by_command_ends_the_wait_within_the_grace_and_other_requests_are_refused(tmp_path: Path) -> None:
    mirrored = Mirrored(tmp_path, stop_grace_seconds=2.5)
    requests = [Request("command", why="holdfast save"), Request("command", stop=True, why="holdfast stop")]
    inbox = Inbox(RunDirectory.open(mirrored.run))

    def ask() -> None:
        for request in requests:
            inbox.submit(request)
            wait_until(lambda: inbox.answer_to(request.id))  # noqa: B023 - it is waited for at once

    with mirrored.meanwhile(ask), mirrored.loop.ckpt:
        mirrored.loop.ckpt.resume()
        mirrored.goes_away()
        mirrored.steps(1, asked=True)
    outcomes = [inbox.answer_to(request.id) for request in requests]
    assert {answer and answer.error for answer in outcomes} == {"training has ended, and waits for its mirror"}
    told = [line for line in mirrored.said if line.startswith("waiting for the mirror")]
    assert len(told) == 2 and told[0].endswith(f"; Ctrl+C or holdfast stop {mirrored.run} ends the wait")
    assert told[-1].endswith(" s more"), "a stop that comes then is heard"
    assert mirrored.said[-1].startswith("nothing is mirrored; 1 is on this disk only")
    assert [(end["outcome"], end["code"]) for end in events(mirrored.run, "end")] == [("finished", 0)]


@in_full("one whose wait a second Ctrl+C ends stays")
def test_a_stop_waits_for_what_is_left_of_its_grace(tmp_path: Path) -> None:
    mirrored = Mirrored(tmp_path, stop_grace_seconds=6.0)
    begun = 0.0
    with pytest.raises(Stopped) as stopped, mirrored.loop.ckpt:
        mirrored.loop.ckpt.resume()
        mirrored.goes_away()
        mirrored.steps(1, asked=True)
        begun = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)
        mirrored.steps(10**6)
    assert stopped.value.code == 75 and 2 < time.monotonic() - begun < 6
    assert mirrored.said[-1].startswith("nothing is mirrored; ")
    (waiting,) = (line for line in mirrored.said if line.startswith("waiting for the mirror"))
    assert waiting.endswith(" s more")


def test_a_second_ctrl_c_ends_the_wait_of_a_stop_and_the_last_line_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirrored = Mirrored(tmp_path, stop_grace_seconds=60.0)
    told, poke = list[float | None](), Supervisor.poke

    def noted(supervisor: Supervisor, left: float | None = None) -> None:
        told.append(left)
        poke(supervisor, left)

    monkeypatch.setattr(Supervisor, "poke", noted)
    with pytest.raises(Stopped) as stopped, mirrored.meanwhile(interrupt), mirrored.loop.ckpt:
        mirrored.loop.ckpt.resume()
        mirrored.goes_away()
        mirrored.steps(1, asked=True)
        interrupt()
        mirrored.steps(10**6)
    assert stopped.value.code == 75
    assert any(line.startswith("waiting for the mirror: step 1") and line.endswith(" s more") for line in mirrored.said)
    assert mirrored.said[-1].startswith("nothing is mirrored; ")
    assert told[-1] is not None and 0 < told[-1] <= 54, "the process knows when it ends"


def test_an_error_is_not_kept_for_longer_than_a_grace(tmp_path: Path) -> None:
    mirrored = Mirrored(tmp_path, stop_grace_seconds=1.0)
    with pytest.raises(ZeroDivisionError), mirrored.loop.ckpt:
        mirrored.loop.ckpt.resume()
        mirrored.goes_away()
        mirrored.steps(1)
        raise ZeroDivisionError
    assert any(line.startswith("nothing is mirrored; 1 is on this disk only") for line in mirrored.said)


def test_save_wait_mirrored_returns_when_it_is_there_and_says_why_it_is_not(tmp_path: Path) -> None:
    mirrored = Mirrored(tmp_path)
    with mirrored.meanwhile(interrupt), mirrored.loop.ckpt:
        steps: Any = mirrored.loop.ckpt.batches()
        mirrored.loop.update(next(steps))
        asking = holdfast_begun("save", mirrored.run, "--wait", "--mirrored")
        output, errors = asking.communicate(timeout=60)
        assert (asking.returncode, errors) == (0, "")
        assert output.splitlines()[0].startswith("checkpoint saved step=1 ")
        assert output.splitlines()[1].startswith("mirrored step=1 bytes=")
        again = holdfast("save", mirrored.run, "--wait", "--mirrored", "--json")
        assert again.returncode == 0 and '"mirrored": true' in again.stdout, "it is there already"
        mirrored.goes_away()
        mirrored.loop.update(next(steps))
        late = holdfast("save", mirrored.run, "--wait", "--mirrored", "--timeout", "1")
        assert late.returncode == 5 and "durable on this disk, and was not mirrored in time" in late.stderr
        asking = holdfast_begun("save", mirrored.run, "--wait", "--mirrored")
        wait_until(lambda: len(answers(mirrored.run)) == 4)
        steps.close()
    output, errors = asking.communicate(timeout=60)
    assert asking.returncode == 1
    assert errors.startswith("holdfast: step 2 is saved, and is on this disk only: the training ended before\n")
    assert f"holdfast push {mirrored.run}" in errors


def test_stop_wait_mirrored_returns_when_the_last_checkpoint_is_there(tmp_path: Path) -> None:
    mirrored = Mirrored(tmp_path)
    with pytest.raises(Stopped, match="75"), mirrored.loop.ckpt:
        steps: Any = mirrored.loop.ckpt.batches()
        mirrored.loop.update(next(steps))
        asking = holdfast_begun("stop", mirrored.run, "--wait", "--mirrored")
        wait_until(lambda: mirrored.loop.ckpt.stop_requested, limit=60)
        assert next(steps, None) is None
    output, errors = asking.communicate(timeout=60)
    assert (asking.returncode, errors) == (0, "") and output.splitlines()[1].startswith("mirrored step=1 bytes=")
    assert [each.key.sequence for each in mirrored.mirror.listing.published] == [1]


def test_mirrored_needs_wait_and_a_mirror(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    with loop.ckpt:
        loop.ckpt.resume()
        alone = holdfast("save", tmp_path, "--mirrored")
        assert alone.returncode == 2 and "--mirrored: has no meaning without --wait" in alone.stderr
        without = holdfast("stop", tmp_path, "--wait", "--mirrored")
        assert without.returncode == 2 and f"--mirrored: the run in {tmp_path} has no mirror" in without.stderr
        assert not loop.ckpt.stop_requested and events(tmp_path, "request") == []
