import json
import sys
import threading
import time
from itertools import count
from pathlib import Path

import pytest

from helpers.support import RUN
from holdfast.run.status import Status, StatusFile


def test_the_file_follows_when_it_is_written(tmp_path: Path) -> None:
    status = StatusFile(tmp_path / "status.json", Status(RUN, 4711))
    status.update(phase="training", step=7, loss=2.5, pending=({"id": "0" * 32},))
    assert not (tmp_path / "status.json").exists()
    before = time.time()
    status.write()
    content = json.loads((tmp_path / "status.json").read_text())
    assert before <= content.pop("written_at") <= time.time()
    assert content == {
        "run": RUN,
        "pid": 4711,
        "phase": "training",
        "step": 7,
        "max_steps": 0,
        "rate": None,
        "loss": 2.5,
        "last_checkpoint": None,
        "pending": [{"id": "0" * 32}],
        "more_pending": 0,
        "failed_saves": 0,
        "last_failure": "",
        "failing_since": None,
        "next_try_at": None,
        "capture": "live",
        "copied_buffers": {},
        "body": "",
        "staging_bytes": 0,
        "staging": "",
        "writes": "",
        "held_seconds": 0.0,
        "mirror": None,
        "ranks": [],
        "outcome": "",
        "code": None,
    }


def test_a_beat_shows_in_whatever_looks_and_the_rate_is_that_of_the_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = count(100.0, 0.5)
    with monkeypatch.context() as clock:
        clock.setattr(time, "monotonic", seconds.__next__)
        status = StatusFile(tmp_path / "status.json", Status(RUN, 1))
        for step in range(7, 18):
            status.beat(step)
    assert status.now.step == 17 and status.now.rate == pytest.approx(2, rel=0.1)
    rate = status.now.rate
    assert status.now.rate == rate  # whoever looks later sees no other
    status.update(loss=2.5)
    assert (status.now.step, status.now.rate, status.now.loss) == (17, rate, 2.5)
    status.beat(18)
    status.write()
    assert json.loads((tmp_path / "status.json").read_text())["step"] == 18


def test_the_first_beat_is_where_the_rate_begins(tmp_path: Path) -> None:
    status = StatusFile(tmp_path / "status.json", Status(RUN, 1))
    status.beat(500)
    assert (status.now.step, status.now.rate) == (500, None)


def test_updates_of_many_threads_lose_none_and_a_reader_sees_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    status = StatusFile(path, Status(RUN, 1))
    status.write()
    fields = ("step", "max_steps", "failed_saves", "pid")

    def update(field: str) -> None:
        for value in range(1000):
            status.update(**{field: value})

    def write() -> None:
        for _ in range(100):
            status.write()

    threads = [threading.Thread(target=update, args=(field,)) for field in fields]
    threads += [threading.Thread(target=write) for _ in range(2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that threads meet where they should not
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            assert json.loads(path.read_text())["run"] == RUN
    finally:
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join()
    assert [getattr(status.now, field) for field in fields] == [999] * 4
    assert [found.name for found in tmp_path.iterdir()] == ["status.json"]
