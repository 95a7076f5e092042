import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import typer

from helpers.serving import training
from helpers.support import holdfast, holdfast_begun, line_of, tell
from helpers.waiting import wait_until
from holdfast.cli.status import status
from holdfast.run.run import Run
from holdfast.store import catalog


def test_a_live_run_tells_step_rate_loss_last_checkpoint_and_what_is_pending(tmp_path: Path) -> None:
    with training(tmp_path) as run:
        first = holdfast("status", tmp_path)
        assert first.returncode == 0 and first.stderr == ""
        assert first.stdout.splitlines()[:4] == [
            f"state       training (pid {run.pid})",
            "step        6 of 100",
            "rate        2.5 steps/s",
            "loss        nan",
        ]
        holdfast("save", tmp_path)
        tell(run, "save")
        assert line_of(run) == "saved"
        holdfast("save", tmp_path, "--label", 'say "hi"')
        status = tmp_path / ".holdfast" / "status.json"
        wait_until(lambda: json.loads(status.read_text())["pending"])
        lines = holdfast("status", tmp_path).stdout.splitlines()
        assert any(line.startswith(f"saved       {tmp_path / 'checkpoint-7'} (") for line in lines)
        (waiting,) = (line for line in lines if line.startswith("pending     holdfast save ("))
        assert waiting.endswith(' ago, label "say \\"hi\\"")')
        assert any(line.startswith("heard of    ") for line in lines)


def test_failed_saves_are_shown_with_the_last_reason(tmp_path: Path) -> None:
    with training(tmp_path) as run:
        holdfast("save", tmp_path)
        tell(run, "fail")
        assert line_of(run) == "failed"
        since = json.loads(holdfast("status", tmp_path, "--json").stdout)["failing_since"]
        (failing,) = (line for line in holdfast("status", tmp_path).stdout.splitlines() if "failing " in line)
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since))
        assert failing.startswith(f"failing     no checkpoint since {when} (")
        assert failing.endswith(" ago): a bad day in two lines; next try when the next save is due or asked for")
        holdfast("save", tmp_path)
        tell(run, "save")
        assert line_of(run) == "saved"
        said = holdfast("status", tmp_path).stdout
        assert "\nfailed      1 saves; the last: a bad day in two lines\n" in said and "failing" not in said


def test_json_is_one_strict_object_with_the_documented_fields(tmp_path: Path) -> None:
    with training(tmp_path) as run:
        found = holdfast("status", tmp_path, "--json")
        content = json.loads(found.stdout, parse_constant=lambda text: pytest_fails(text))
        page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
        (row,) = (line for line in page.splitlines() if line.startswith("| `status` | `path`"))
        documented = set(re.findall(r"`(\w+)`", row)) - {"status", "live", "direct", "buffered"}
        assert set(content) == documented
        assert (content["path"], content["alive"], content["pid"]) == (str(tmp_path), True, run.pid)
        assert (content["phase"], content["step"], content["loss"]) == ("training", 6, None)


def pytest_fails(text: str) -> None:
    raise AssertionError(f"{text} is no JSON")


def _timeless(line: str) -> str:
    return re.sub(r"\d+ s ago", "N s ago", line)


def test_a_run_that_ended_and_one_that_died_are_told_apart(tmp_path: Path) -> None:
    for end, said in ((signal.SIGKILL, "state       not running, it died"), (None, "state       finished, N s ago")):
        with training(tmp_path) as run:
            if end is None:
                tell(run, "end")
            else:
                run.send_signal(end)
            run.wait(30)
        found = holdfast("status", tmp_path)
        assert found.returncode == 0 and _timeless(found.stdout.splitlines()[0]) == said
        assert "rate" not in found.stdout
        assert json.loads(holdfast("status", tmp_path, "--json").stdout)["alive"] is False


@pytest.mark.parametrize(
    ("outcome", "code", "said"),
    [
        ("stopped", 75, "stopped after a good save (75), N s ago; to go on: start it again (holdfast train CONFIG"),
        ("stopped", 0, "stopped after a good save (0), N s ago; to go on: start it again (holdfast train CONFIG"),
        ("stopped", 1, "stopped (1), N s ago"),
        ("left: it did not end in time", 75, "left: it did not end in time (75), N s ago; to go on: start it again"),
        ("failed: ValueError", 1, "failed: ValueError (1), N s ago"),
    ],
)
def test_it_tells_how_a_run_ended_and_how_to_go_on(tmp_path: Path, outcome: str, code: int, said: str) -> None:
    Run.open(tmp_path).close(outcome, code)
    state, step = holdfast("status", tmp_path).stdout.splitlines()
    assert _timeless(state).startswith(f"state       {said}") and ("to go on" in state) == ("to go on" in said)
    assert step == "step        0", "a total that nobody knows"


@pytest.mark.parametrize(
    ("outcome", "code", "ends_with", "said"),
    [
        ("finished", 0, 0, "finished, N s ago"),
        ("finished", 3, 3, "finished (3), N s ago"),
        ("stopped", 75, 75, "stopped after a good save (75), N s ago; to go on"),
        ("stopped", 0, 75, "stopped after a good save (75), N s ago; to go on"),
        ("stopped", 1, 1, "stopped (1), N s ago"),
        ("left: SIGTERM: no step was taken yet", 143, 143, "left: SIGTERM: no step was taken yet (143), N s ago"),
        ("failed: ValueError", 1, 1, "failed: ValueError (1), N s ago"),
    ],
)
def test_the_outcome_of_the_last_start_is_an_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], outcome: str, code: int, ends_with: int, said: str
) -> None:
    Run.open(tmp_path).close(outcome, code)
    for as_json in (False, True):
        with pytest.raises(typer.Exit) as ended:
            status(tmp_path, ended=True, json=as_json)
        shown, errors = capsys.readouterr()
        assert ended.value.exit_code == ends_with and not errors
        assert as_json or _timeless(shown).startswith(said)
    content = json.loads(shown)
    assert (content["outcome"], content["code"], content["exit_code"]) == (outcome, code, ends_with)
    assert content["alive"] is False


def test_a_start_that_trains_or_was_killed_or_never_was_has_no_outcome(tmp_path: Path) -> None:
    run = tmp_path / "run"
    Run.open(run).close("stopped", 75)
    with training(run) as process:
        ended = holdfast("status", run, "--outcome")
        assert (ended.returncode, ended.stdout) == (7, f"training (pid {process.pid}): it has not ended\n")
        process.kill()
        process.wait(30)
    for _ in range(2):
        ended = holdfast("status", run, "--outcome")
        assert ended.returncode == 8 and ended.stdout.startswith("the last start has not said how it ended")
        Run.open(run).close("stopped", 75)
        taken = json.loads((run / ".holdfast/lease.json").read_text())  # as one killed right after it took the lease
        (run / ".holdfast/lease.json").write_text(json.dumps({**taken, "token": "0" * 32}))
    assert holdfast("status", tmp_path / "none", "--outcome").returncode == 4


def test_security_s26_what_the_journal_says_decides_nothing(tmp_path: Path) -> None:
    """A line that says "stopped, 75" is added to the journal of a run that has failed."""
    Run.open(tmp_path).close("failed: ValueError", 1)
    with (tmp_path / "events.jsonl").open("a") as journal:
        journal.write('{"event": "end", "outcome": "stopped", "code": 75}\n')
    assert holdfast("status", tmp_path, "--outcome").returncode == 1


def test_a_start_that_has_not_saved_yet_shows_what_an_earlier_one_has_saved(tmp_path: Path) -> None:
    with training(tmp_path) as run:
        for _ in range(2):
            holdfast("save", tmp_path)
            tell(run, "save")
            assert line_of(run) == "saved"
        tell(run, "end")
        run.wait(30)
    entry = catalog.entries(tmp_path)[0]
    assert entry.manifest is not None
    again = Run.open(tmp_path, continues=entry.manifest.run)
    lines = holdfast("status", tmp_path).stdout.splitlines()
    (line,) = (line for line in lines if line.startswith("saved "))
    assert line.startswith(f"saved       {tmp_path / 'checkpoint-8'} (") and line.endswith("by an earlier start)")
    again.close("finished", 0)
    Run.open(tmp_path).close("finished", 0)
    assert "saved" not in holdfast("status", tmp_path).stdout, "that is another run's"


def test_after_an_answer_nothing_is_shown_as_pending(tmp_path: Path) -> None:
    with training(tmp_path) as run:
        waiting = holdfast_begun("save", tmp_path, "--wait")
        wait_until(lambda: json.loads((tmp_path / ".holdfast/status.json").read_text())["pending"])
        run.stdin.write(b"save\n")  # type: ignore[union-attr]
        answers = tmp_path / ".holdfast" / "answers"
        wait_until(lambda: list(answers.glob("*.json")))
        content = json.loads((tmp_path / ".holdfast/status.json").read_text())
        assert content["pending"] == [] and content["last_checkpoint"]["step"] == 7
        assert waiting.wait(30) == 0
        waiting.communicate()


def test_no_run_is_exit_code_4_in_words_and_in_json(tmp_path: Path) -> None:
    found = holdfast("status", tmp_path)
    assert (found.returncode, found.stdout) == (4, "")
    assert found.stderr.splitlines()[0] == f"holdfast: no run in {tmp_path}"
    as_json = holdfast("status", tmp_path, "--json")
    assert (as_json.returncode, as_json.stderr) == (4, "")
    error = json.loads(as_json.stdout)
    assert set(error) == {"error", "hint", "exit_code"} and error["exit_code"] == 4


def test_a_status_that_cannot_be_read_is_unknown_and_no_error(tmp_path: Path) -> None:
    with training(tmp_path) as run:
        run.send_signal(signal.SIGKILL)
        run.wait()
    (tmp_path / ".holdfast" / "status.json").write_bytes(b"{")
    found = holdfast("status", tmp_path)
    assert found.returncode == 0 and found.stdout.startswith("state       not running")


def test_it_tells_when_the_next_try_is_and_that_a_silent_run_may_hang(tmp_path: Path) -> None:
    with training(tmp_path) as run:
        wait_until(lambda: holdfast("status", tmp_path).returncode == 0)
        run.send_signal(signal.SIGSTOP)  # so that nothing else writes the status
        path = tmp_path / ".holdfast" / "status.json"
        now = time.time()
        failing = {"failing_since": now - 300, "next_try_at": now + 3000, "last_failure": "no\x1b[2J room"}
        path.write_text(json.dumps(json.loads(path.read_text()) | failing | {"written_at": now - 60}))
        said = holdfast("status", tmp_path).stdout
        assert re.search(r" \(5 min ago\): .*room.*; next try in \d+ s\n", said) and "\x1b" not in said, said
        assert "its storage or its host may hang" in said
        path.write_text(json.dumps(json.loads(path.read_text()) | {"written_at": time.time()}))
        assert "may hang" not in holdfast("status", tmp_path).stdout


def test_large_buffers_that_are_copied_at_every_boundary_are_shown_with_what_that_costs(tmp_path: Path) -> None:
    with training(tmp_path) as run:
        run.send_signal(signal.SIGKILL)
        run.wait()
    path = tmp_path / ".holdfast" / "status.json"
    content = json.loads(path.read_text())
    assert "buffers" not in holdfast("status", tmp_path).stdout
    copied = {"model.memory.keys": 2_000_000, "model.odd\x1b[2J": 400_000}
    path.write_text(json.dumps({**content, "copied_buffers": copied}))
    (line,) = (one for one in holdfast("status", tmp_path).stdout.splitlines() if one.startswith("buffers"))
    assert line.startswith("buffers     2.4 MB copied at every boundary, because they change: model.memory.keys, ")
    assert "\x1b" not in line
    assert json.loads(holdfast("status", tmp_path, "--json").stdout)["copied_buffers"] == copied


def test_the_mirror_has_lines_for_what_is_there_and_what_keeps_the_rest(tmp_path: Path) -> None:
    run = Run.open(tmp_path)
    url, now = "s3://bucket/run", time.time()
    there = {"term": 1, "sequence": 3, "step": 300, "attempt": "a" * 32, "at": now - 120}
    state = {"url": url, "term": 1, "mirrored": there, "why": "the store is busy\n", "failing_since": now - 60}
    waiting = [{"step": step, "kind": "requested", "bytes": 10**6} for step in range(301, 313)]
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"url": url, "term": 1, "waiting": []}, [f"nothing yet ({url})"]),
        (
            {**state, "failing_since": None, "uploading": {"step": 400, "bytes": 5 * 10**8, "of": 10**9}},
            [f"up to step 300, 2 min ago ({url})", "sending step 400: 500.0 MB of 1.0 GB"],
        ),
        (
            {
                **state,
                "waiting": waiting,
                "more_waiting": {"count": 2, "bytes": 3 * 10**6},
                "next_try_at": now + 100,
            },
            [
                f"up to step 300, 2 min ago ({url})",
                "on this disk only: step 301, 302, 303, 304, 305, 306, 307, 308, 309, 310, ... (15.0 MB)",
                r"failing since \d{4}-\d\d-\d\d [\d:]{8} \(1 min ago\): the store is busy; next try in \d+ s",
            ],
        ),
        (
            {
                **state,
                "failing_since": None,
                "taken_over": "another host has it",
                "not_deleted": "denied",
                "not_pinned": [5, 6],
                "not_sent": [7],
            },
            [
                f"up to step 300, 2 min ago ({url})",
                "another host has it: nothing is sent any more",
                "what should go from it could not: denied",
                r"pinned, and on this disk only \(holdfast push sends it\): step 7",
                "pinned on this disk only, for it had been deleted there before: step 5, 6",
            ],
        ),
        (
            {"url": url, "doing": "pulling", "step": 7, "bytes": 10**6, "of": 4 * 10**6},
            [f"pulling of step 7, 1.0 MB of 4.0 MB ({url})"],
        ),
    ]
    for mirror, lines in cases:
        run.status.update(mirror=mirror)
        run.status.write()
        said = holdfast("status", tmp_path).stdout.splitlines()
        shown = [line.removeprefix("mirror").strip() for line in said if line.startswith("mirror ")]
        assert len(shown) == len(lines), said
        for line, expected in zip(shown, lines, strict=True):
            assert line == expected or re.fullmatch(expected, line), line
    run.close("finished", 0)
