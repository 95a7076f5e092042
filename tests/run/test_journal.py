import json
import threading
import time
from pathlib import Path
from typing import Any

from helpers.support import RUN, fill, tiny_disk
from holdfast.run.journal import Journal


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_event_is_a_line_with_the_time_and_the_run(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    before = time.time()
    journal = Journal(path, RUN)
    journal.write("start", pid=1)
    journal.write("saved", step=7, label="two\nlines")
    first, second = lines(path)
    assert (first["run"], first["event"], first["pid"]) == (RUN, "start", 1)
    assert before - 0.001 <= first["at"] <= second["at"] <= time.time() + 0.001
    assert second["label"] == "two\nlines"
    assert path.stat().st_mode & 0o777 == 0o600


def test_after_the_end_of_a_start_comes_nothing_of_it(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    journal = Journal(path, RUN)
    journal.write("end", code=0)
    journal.write("held", seconds=1.0)
    Journal(path, RUN).write("start", pid=2)
    assert [line["event"] for line in lines(path)] == ["end", "start"]


def test_what_is_there_is_never_changed(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for run in ("a" * 32, "b" * 32):
        before = path.read_bytes() if path.exists() else b""
        Journal(path, run).write("start")
        assert path.read_bytes().startswith(before)
    assert [line["run"][0] for line in lines(path)] == ["a", "b"]


def test_lines_of_many_threads_stay_whole(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "events.jsonl", RUN)

    def write(number: int) -> None:
        for _ in range(50):
            journal.write("request", number=number, text="x" * 1000)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [line["number"] for line in lines(tmp_path / "events.jsonl")]
    assert sorted(found) == sorted(number for number in range(8) for _ in range(50))


def test_a_line_that_a_crash_cut_off_takes_no_other_with_it(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    Journal(path, RUN).write("start")
    path.write_bytes(path.read_bytes() + b'{"at": 1.0, "ru')
    journal = Journal(path, RUN)
    journal.write("start")
    journal.write("end")
    whole, torn, *after = path.read_text().splitlines()
    assert torn == '{"at": 1.0, "ru' and json.loads(whole)
    assert [json.loads(line)["event"] for line in after] == ["start", "end"]


def test_a_full_disk_stops_nobody_and_what_comes_later_is_written(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk", options="size=64k") as disk:
        journal = Journal(disk / "events.jsonl", RUN)
        journal.write("start")
        fill(disk)
        for _ in range(100):
            journal.write("failed", error="x" * 1000)
        (disk / "filler").unlink()
        journal.write("saved")
        journal.write("end")
        text = (disk / "events.jsonl").read_text().splitlines()
        assert [json.loads(line)["event"] for line in (text[0], *text[-2:])] == ["start", "saved", "end"]


def test_a_directory_that_is_gone_stops_nobody(tmp_path: Path) -> None:
    Journal(tmp_path / "gone" / "events.jsonl", RUN).write("failed")
