"""The calls of a start to its mirror: a real process that opens the store, and dies, hangs and is cut off."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.mirrors import DirectoryMirror
from helpers.support import RESUMABLE, RUN, commit_checkpoint, process
from helpers.waiting import wait_until
from holdfast.errors import (
    AbsentError,
    ConfigError,
    MirrorError,
    MirrorNameError,
    MirrorTakenError,
    MirrorUnavailableError,
)
from holdfast.mirror import calls
from holdfast.mirror.calls import Calls, Doing
from holdfast.remote import terms
from holdfast.store.folder import Folder

TOKEN, OTHER = "1" * 32, "2" * 32
PARTS = 8 << 20


class Place:
    """A mirror, a run directory, and what is shown meanwhile."""

    def __init__(self, path: Path) -> None:
        self.mirror = DirectoryMirror(path / "outer" / "mirror")
        self.source, self.root = path / "source", path / "run"
        for folder in (path / "outer", self.source, self.root):
            folder.mkdir()
        self.shown: list[Doing] = []
        self.then: Callable[[], None] = lambda: None
        self.calls = Calls(self.mirror.url, None, None, Folder.open(self.root), self._show)

    def _show(self, doing: Doing) -> None:
        if doing.bytes or doing.why:  # of a process that is slow to begin there is nothing to see
            self.shown.append(doing)
            self.then()

    def kill(self) -> None:
        """Kills the process that talks to the store, once."""
        self.then = lambda: None
        assert self.calls._process is not None
        os.kill(self.calls._process.pid, signal.SIGKILL)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(calls, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(calls, "_SHOW_SECONDS", 0.1)
    place = Place(tmp_path)
    with place.calls:
        yield place


def test_a_start_looks_claims_and_pulls(place: Place) -> None:
    seen = place.calls.look(RUN, TOKEN)
    assert (seen.owner, seen.newest, seen.is_claim_known, seen.published) == (None, 0, False, ())
    assert place.calls.claim(RUN, TOKEN, None, 1) == terms.Claimed(1, is_current=True)
    seen = place.calls.look(OTHER, TOKEN)
    assert (seen.owner, seen.newest) == (RUN, 0), "its own claims stand in nobody's way"
    seen = place.calls.look(OTHER, OTHER)
    assert (seen.newest, seen.host, seen.parent, seen.is_claim_known) == (1, os.uname().nodename, None, True)
    assert place.calls.claim(RUN, OTHER, "3" * 32, 7) == terms.Claimed(7, is_current=True)
    assert place.calls.look(RUN, TOKEN).parent == "3" * 32
    with pytest.raises(MirrorTakenError, match=f"of run {RUN}, and this is run {OTHER}"):
        place.calls.claim(OTHER, OTHER, None, 1)
    commit_checkpoint(place.source, 5, term=7)
    place.mirror.send(place.source)
    (remote,) = place.calls.look(RUN, TOKEN).published
    assert (remote.step, remote.layout, remote.size) == (5, "transformers", sum(map(len, RESUMABLE.values())))
    path = place.calls.pull(remote)
    assert path == place.root / "checkpoint-5" and (path / "optimizer.pt").read_bytes() == RESUMABLE["optimizer.pt"]
    with pytest.raises(AbsentError):
        place.calls.pull(remote._replace(key=remote.key._replace(sequence=99)))


def test_a_pull_outlives_the_process_that_does_it_and_shows_how_far_it_is(place: Place) -> None:
    commit_checkpoint(place.source, 5, {**RESUMABLE, "model.safetensors": os.urandom(PARTS)}, term=1)
    place.mirror.send(place.source)
    (place.mirror.path / "RUN").write_text(f"{RUN}\n")
    (remote,) = place.calls.look(RUN, TOKEN).published
    place.then = place.kill
    path = place.calls.pull(remote)
    assert (path / "model.safetensors").stat().st_size == PARTS
    assert sorted(file.name for file in place.root.iterdir()) == ["checkpoint-5"], "nothing of the first try is left"
    doing = place.shown[0]
    assert (doing.doing, doing.step, doing.of) == ("pulling", 5, remote.size) and 0 < doing.bytes < doing.of
    failed = next(each for each in place.shown if each.why)
    assert "has ended (-9)" in failed.why and failed.failing_since is not None and failed.next_try_at is not None


class Doomed(Calls):
    """Calls whose process gets a signal as soon as it is there, the first times."""

    times, number = 0, signal.SIGKILL

    def _begin(self) -> None:
        super()._begin()
        if self.times > 0:
            self.times -= 1
            assert self._process is not None
            os.kill(self._process.pid, self.number)


def test_who_does_not_answer_is_asked_again_and_that_is_shown(place: Place) -> None:
    doomed = Doomed(place.mirror.url, None, None, Folder.open(place.root), place.calls._show)
    doomed.times = 3
    with doomed:
        assert doomed.look(RUN, TOKEN).owner is None
    failed = [each for each in place.shown if each.why]
    assert all("has ended (-9)" in each.why for each in failed)
    assert len({each.next_try_at for each in failed}) == 3 and len({each.failing_since for each in failed}) == 1


def test_it_is_given_up_after_a_while_with_what_can_be_done(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "PATIENCE_SECONDS", 0.6)
    monkeypatch.setattr(calls, "_END_SECONDS", 0.1)
    hangs = Doomed(place.mirror.url, None, None, Folder.open(place.root), place.calls._show)
    hangs.times, hangs.number = 1, signal.SIGSTOP
    with hangs, pytest.raises(MirrorUnavailableError, match=r"has not answered for .* min: nothing has") as raised:
        hangs.look(RUN, TOKEN)
    assert "--resume local" in (raised.value.hint or "") and raised.value.exit_code == 1


class Unknown(Calls):
    def _answer(self, doing: Doing, request: dict[str, Any]) -> Any:
        raise MirrorNameError("nobody knows it", hint="look at mirror_endpoint")


def test_a_name_that_nobody_knows_is_not_asked_for_ten_minutes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "NAME_PATIENCE_SECONDS", 1.5)
    unknown = Unknown(place.mirror.url, None, None, Folder.open(place.root), place.calls._show)
    with unknown, pytest.raises(MirrorNameError, match="nobody knows it") as raised:
        unknown.look(RUN, TOKEN)
    assert raised.value.exit_code == 2 and "look at mirror_endpoint; to go on with" in (raised.value.hint or "")
    assert place.shown[0].why == "nobody knows it: look at mirror_endpoint"
    assert 0 < (place.shown[0].gives_up_at or 0) - (place.shown[0].failing_since or 0) < 2


def test_what_no_other_try_would_mend_is_raised_at_once(place: Place) -> None:
    place.mirror.path.parent.rmdir()
    place.mirror.path.parent.touch()
    with pytest.raises(Exception, match="Not a directory") as raised:
        place.calls.look(RUN, TOKEN)
    assert raised.type.__name__ == "MirrorAccessError" and place.shown == []
    bad = Calls("nowhere", None, None, Folder.open(place.root), place.calls._show)
    with bad, pytest.raises(ConfigError, match="is no address of a mirror"):
        bad.look(RUN, TOKEN)


def test_a_process_that_cannot_run_is_not_tried_for_ten_minutes(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(MirrorError, match=r"has ended \(3\), before it said anything, each of 3 times") as raised:
        place.calls.look(RUN, TOKEN)
    assert str(program) in (raised.value.hint or "") and "has ended (3)" in place.shown[0].why
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    other = Calls(place.mirror.url, None, None, Folder.open(place.root), place.calls._show)
    with other, pytest.raises(MirrorError, match=r"cannot be started: .*gone.*each of 3 times"):
        other.look(RUN, TOKEN)


KILLED = """
import sys
from pathlib import Path
from holdfast.mirror.calls import Calls
from holdfast.store.folder import Folder
calls = Calls(sys.argv[1], None, None, Folder.open(Path(sys.argv[2])), lambda doing: None)
calls.look("0" * 32, "1" * 32)
print(calls._process.pid)
sys.stdin.read()
"""


def test_it_ends_with_the_training_however_that_ends(place: Place) -> None:
    with process(KILLED, place.mirror.url, place.root) as training:
        assert training.stdout is not None
        pid = int(training.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        training.kill()
        training.wait()
        wait_until(lambda: not _runs(pid), 10.0, "the end of the process")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
