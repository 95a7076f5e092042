import json
import os
import signal
from pathlib import Path

import pytest

from helpers.serving import training
from helpers.support import fill, holdfast, holdfast_begun, line_of, tell, tiny_disk
from helpers.waiting import wait_until
from holdfast.run.directory import RunDirectory
from holdfast.run.inbox import Inbox
from holdfast.run.request import Request
from holdfast.store.verify import verify


def pending(root: Path) -> list[Request]:
    return Inbox(RunDirectory.open(root)).pending()[0]


def test_save_asks_and_returns_at_once_and_the_run_goes_on(tmp_path: Path) -> None:
    with training(tmp_path) as run:
        asked = holdfast("save", tmp_path, "--label", "before lr")
        assert asked.returncode == 0 and asked.stderr == ""
        (request,) = pending(tmp_path)
        assert (request.door, request.stop, request.label, request.why) == (
            "command",
            False,
            "before lr",
            "holdfast save",
        )
        assert asked.stdout.splitlines() == [
            f"asked: the run saves and goes on, with its last boundary (request {request.id})",
            f"  to wait for the answer, add --wait; to look, holdfast status {tmp_path}",
        ]
        tell(run, "save")
        assert line_of(run) == "saved" and pending(tmp_path) == []


def test_wait_prints_the_answer_when_the_checkpoint_is_durable(tmp_path: Path) -> None:
    with training(tmp_path) as run:
        asking = holdfast_begun("save", tmp_path, "--wait")
        (request,) = wait_until(lambda: pending(tmp_path))
        assert asking.poll() is None
        tell(run, "save")
        output, errors = asking.communicate(timeout=30)
        path = tmp_path / "checkpoint-7"
        assert asking.returncode == 0 and errors == "" and verify(path).good
        assert output.startswith(f"checkpoint saved step=7 path={path} bytes=") and output.count("\n") == 1
        assert output.endswith(f" trigger=request:{request.id}\n")


def test_json_is_the_answer_in_one_object(tmp_path: Path) -> None:
    with training(tmp_path) as run:
        asked = json.loads(holdfast("save", tmp_path, "--json").stdout)
        assert asked == {"request": pending(tmp_path)[0].id}
        asking = holdfast_begun("save", tmp_path, "--wait", "--json")
        wait_until(lambda: len(pending(tmp_path)) == 2)
        tell(run, "save")
        answer = json.loads(asking.communicate(timeout=30)[0])
        assert asking.returncode == 0 and answer["saved"] and answer["durable"] and answer["step"] == 7
        on_disk = json.loads((tmp_path / ".holdfast/answers" / f"{answer['request']}.json").read_text())
        assert answer == {**on_disk, "not_finite": [], "finite": "", "not_carried": [], "claimed": ""}


def test_a_failed_save_is_exit_code_1_with_the_reason(tmp_path: Path) -> None:
    with training(tmp_path) as run:
        for options in ((), ("--json",)):
            asking = holdfast_begun("save", tmp_path, "--wait", *options)
            wait_until(lambda: pending(tmp_path))
            tell(run, "fail")
            output, errors = asking.communicate(timeout=30)
            assert asking.returncode == 1 and "Traceback" not in errors
            if options:
                answer = json.loads(output)
                assert (answer["saved"], answer["error"], errors) == (False, "a bad day\nin two lines", "")
            else:
                assert output == "" and errors == "holdfast: the save failed at step 7: a bad day in two lines\n"


@pytest.mark.parametrize("verb", [("stop",), ("save", "--stop")], ids="-".join)
def test_stop_and_save_stop_ask_for_the_end(tmp_path: Path, verb: tuple[str, ...]) -> None:
    with training(tmp_path):
        asked = holdfast(verb[0], tmp_path, *verb[1:])
        (request,) = pending(tmp_path)
        assert request.stop and request.why == f"holdfast {verb[0]}"
        assert "the run saves and ends, with its last boundary" in asked.stdout


def test_a_time_that_is_up_is_exit_code_5_and_the_request_stands(tmp_path: Path) -> None:
    with training(tmp_path) as run:
        found = holdfast("save", tmp_path, "--wait", "--timeout", "0.1")
        (request,) = pending(tmp_path)
        assert (found.returncode, found.stdout) == (5, "")
        assert found.stderr.splitlines() == [
            f"holdfast: no answer within 0.1 s; the request {request.id} stands and may still be served",
            "  ask again with a longer timeout, or look at: holdfast status",
        ]
        tell(run, "save")
        assert line_of(run) == "saved" and Inbox(RunDirectory.open(tmp_path)).answer_to(request.id) is not None


@pytest.mark.parametrize("verb", ["save", "stop"])
def test_no_run_and_no_process_are_exit_code_4_and_leave_no_request(tmp_path: Path, verb: str) -> None:
    missing = holdfast(verb, tmp_path / "missing", "--wait")
    assert missing.returncode == 4 and f"no run in {tmp_path / 'missing'}" in missing.stderr
    assert not (tmp_path / "missing").exists()
    with training(tmp_path) as run:
        run.send_signal(signal.SIGKILL)
        run.wait()
    dead = holdfast(verb, tmp_path, "--wait")
    assert dead.returncode == 4 and "no process is training the run" in dead.stderr and pending(tmp_path) == []
    with training(tmp_path) as run:
        tell(run, "end")
        assert run.wait(30) == 0
    ended = holdfast(verb, tmp_path, "--wait", "--json")
    assert ended.returncode == 4 and pending(tmp_path) == []
    error = json.loads(ended.stdout)
    assert error["exit_code"] == 4 and "no process is training" in error["error"] and "holdfast list" in error["hint"]


def test_a_run_that_dies_meanwhile_is_exit_code_4_and_the_request_stands(tmp_path: Path) -> None:
    with training(tmp_path) as run:
        asking = holdfast_begun("save", tmp_path, "--wait")
        (request,) = wait_until(lambda: pending(tmp_path))
        run.send_signal(signal.SIGKILL)
        run.wait()
        _, errors = asking.communicate(timeout=30)
        assert asking.returncode == 4 and "ended before it answered" in errors
        assert pending(tmp_path) == [request]


def test_ctrl_c_while_it_waits_is_exit_code_130_and_the_request_stands(tmp_path: Path) -> None:
    with training(tmp_path):
        asking = holdfast_begun("save", tmp_path, "--wait")
        (request,) = wait_until(lambda: pending(tmp_path))
        asking.send_signal(signal.SIGINT)
        output, errors = asking.communicate(timeout=30)
        assert (asking.returncode, output) == (130, "") and "Traceback" not in errors
        assert pending(tmp_path) == [request]


def test_fault_22_many_askers_at_once_get_the_same_checkpoint(tmp_path: Path) -> None:
    """Three processes ask by command and wait."""
    with training(tmp_path) as run:
        asking = [holdfast_begun("save", tmp_path, "--wait", "--json") for _ in range(3)]
        wait_until(lambda: len(pending(tmp_path)) == 3)
        tell(run, "save")
        answers = [json.loads(one.communicate(timeout=30)[0]) for one in asking]
        assert len({answer["digest"] for answer in answers}) == 1 and len({a["request"] for a in answers}) == 3


def test_a_label_is_one_line_of_any_bytes_and_at_most_four_kilobytes(tmp_path: Path) -> None:
    with training(tmp_path):
        assert holdfast("save", tmp_path, "--label", b"two\nlines \x1b[31m \xff").returncode == 0
        assert holdfast("save", tmp_path, "--label", "é" * 2048).returncode == 0
        assert {request.label for request in pending(tmp_path)} == {"two lines [31m �", "é" * 2048}
        refused = holdfast("save", tmp_path, "--label", "é" * 2049)
        assert refused.returncode == 2
        assert refused.stderr == "--label: has 4098 bytes, and a label has at most 4096\n"
        assert len(pending(tmp_path)) == 2


def test_a_disk_that_has_no_room_for_a_request_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk", options="size=1m") as disk, training(disk / "run"):
        fill(disk)
        found = holdfast("save", disk / "run", "--wait")
        assert found.returncode == 1 and "No space left on device" in found.stderr
        assert found.stderr.count("\n") == 1


def test_a_control_directory_that_others_may_write_to_is_not_trusted(tmp_path: Path) -> None:
    with training(tmp_path):
        (tmp_path / ".holdfast" / "requests").chmod(0o777)
        found = holdfast("save", tmp_path)
        assert found.returncode == 1 and "is not a private directory of this user" in found.stderr
        assert os.listdir(tmp_path / ".holdfast" / "requests") == []  # noqa: PTH208
