from pathlib import Path

import pytest

from holdfast.log import RunLog
from holdfast.mirror import asking
from holdfast.mirror.calls import Doing
from holdfast.resume import waiting
from holdfast.resume.waiting import Waiting
from holdfast.run.run import Run

PULLING = Doing("s3://bucket/run", "pulling", 7, 4, 9)
LOOKING = Doing("s3://bucket/run", "looking")
FAILING = Doing("s3://bucket/run", "looking", failing_since=1.0, why="refused", next_try_at=2.0, gives_up_at=1e12)


def test_what_is_waited_for_is_shown_in_the_status_and_said_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    run = Run.open(tmp_path)
    shown = Waiting(run, None, RunLog(said.append))
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    shown._begun_at = shown._told_at = now
    shown.show(PULLING)
    assert asking.status(tmp_path)["mirror"]["bytes"] == 4 and said == []
    now += waiting._LINE_SECONDS
    shown.show(PULLING)
    assert said.pop() == "pulling checkpoint-7: 4 of 9 bytes"
    now += waiting._SILENT_SECONDS
    shown._begun_at = shown._told_at = now - waiting._SILENT_SECONDS  # as nothing has been said yet
    for _ in range(2):
        shown.show(LOOKING)
    assert said == ["waiting for the mirror, s3://bucket/run, which has not answered for 5 s"]
    said.clear()
    for _ in range(3):
        shown.show(FAILING)
    assert len(said) == 1 and "refused; it is asked again for another" in said[0] and "this start ends" in said.pop()
    now += waiting._FAILING_SECONDS
    shown.show(FAILING)
    assert len(said) == 1
    shown.end()
    assert run.status.now.mirror is None
    run.close("finished", 0)
