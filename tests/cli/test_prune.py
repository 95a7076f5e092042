import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from helpers.mirrored_run import MirroredRun, mirrored_run
from helpers.mirrors import DirectoryMirror
from helpers.remote import start
from helpers.serving import training
from helpers.support import (
    ASKED,
    OTHER_RUN,
    RESUMABLE,
    RUN,
    SCHEDULED,
    commit_checkpoint,
    content_of,
    holdfast,
    holdfast_begun,
    line_of,
    tell,
)
from helpers.trainings import events
from holdfast.remote import keys
from holdfast.run.run import Run
from holdfast.store import catalog, terms


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of five checkpoints that has ended."""
    Run.open(tmp_path, continues=RUN).close("finished", 0)
    for step in (100, 200, 300, 400, 500):
        commit_checkpoint(tmp_path, step, reasons=({**ASKED, "label": ""} if step == 200 else SCHEDULED,))
    return tmp_path


def steps(run: Path) -> list[int]:
    return [entry.step for entry in catalog.entries(run)]


def test_it_shows_what_goes_and_what_stays_and_why_and_deletes_nothing_in_a_dry_run(run: Path) -> None:
    before = content_of(run)
    found = holdfast("prune", run, "--keep-last", "2", "--keep-every", "300", "--dry-run")
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.splitlines() == [
        "CHECKPOINT      STEP  SIZE  ASKED BY             LABEL  VERDICT",
        "checkpoint-500  500   34 B  save_strategy steps         stays: the newest good one",
        "checkpoint-400  400   34 B  save_strategy steps         stays: one of the last 2",
        "checkpoint-300  300   34 B  save_strategy steps         stays: its step is a multiple of 300",
        "checkpoint-200  200   34 B  holdfast save               goes",
        "checkpoint-100  100   34 B  save_strategy steps         goes",
        "2 of 5 go, 68 B",
    ]
    assert content_of(run) == before


def test_it_deletes_by_the_rule_and_the_journal_says_so(run: Path) -> None:
    found = holdfast("prune", run, "--keep-last", "2", "--yes")
    assert (found.returncode, found.stderr) == (0, "") and found.stdout.endswith("deleted 3 of 3\n")
    assert steps(run) == [500, 400] and not list(run.glob(".trash-*"))
    gone = [Path(event["path"]).name for event in events(run, "deleted") if event["by"] == "holdfast prune"]
    assert gone == ["checkpoint-100", "checkpoint-200", "checkpoint-300"]
    again = holdfast("prune", run, "--keep-last", "2", "--yes")
    assert again.returncode == 0 and again.stdout.endswith("nothing to delete\n")


def test_what_has_a_label_stays_unless_those_are_to_go_too(run: Path) -> None:
    commit_checkpoint(run, 50, sequence=1, reasons=(ASKED,))
    shown = holdfast("prune", run, "--keep-last", "1", "--yes").stdout
    assert re.search(r"^checkpoint-50 .*holdfast save +before lr +stays: it has a label$", shown, re.MULTILINE), shown
    assert steps(run) == [500, 50]
    assert holdfast("prune", run, "--keep-last", "1", "--labelled", "--yes").returncode == 0
    assert steps(run) == [500]


def test_json_says_of_each_what_became_of_it(run: Path) -> None:
    found = holdfast("prune", run, "--keep-last", "4", "--json", "--yes")
    content = json.loads(found.stdout)
    assert set(content) == {"run", "dry_run", "checkpoints", "problems"}
    assert (content["run"], content["dry_run"], content["problems"]) == (str(run), False, [])
    assert content["checkpoints"][-1] == {
        "path": str(run / "checkpoint-100"),
        "step": 100,
        "bytes": 34,
        "asked_by": "save_strategy steps",
        "labels": [],
        "kept": None,
        "deleted": True,
    }
    assert [one["kept"] is None for one in content["checkpoints"]] == [False] * 4 + [True]
    looked = json.loads(holdfast("prune", run, "--keep-last", "1", "--json", "--dry-run").stdout)
    assert looked["dry_run"] and not any(one["deleted"] for one in looked["checkpoints"])


def test_what_is_pinned_best_damaged_foreign_or_another_runs_stays(run: Path) -> None:
    holdfast("pin", run / "checkpoint-100")
    (run / "checkpoint-200" / "optimizer.pt").write_bytes(b"short")
    commit_checkpoint(run, 550, run=OTHER_RUN)
    (commit_checkpoint(run, 560) / "MANIFEST.json").unlink()
    state = json.dumps({"best_model_checkpoint": "/moved/since/checkpoint-300"}).encode()
    commit_checkpoint(run, 600, {**RESUMABLE, "trainer_state.json": state})
    found = holdfast("prune", run, "--keep-last", "1", "--yes")
    assert found.returncode == 0, found.stderr
    said = {line.split()[0]: line.split("stays: ")[-1] for line in found.stdout.splitlines() if "stays: " in line}
    assert said == {
        "checkpoint-600": "the newest good one",
        "checkpoint-550": "of another run",
        "checkpoint-300": "the best one",
        "checkpoint-200": "damaged: optimizer.pt: is 5 bytes long, was written with 7",
        "checkpoint-100": "pinned",
        "checkpoint-560": "made by plain transformers",
    }
    assert sorted(steps(run)) == [100, 200, 300, 550, 560, 600]


@pytest.mark.parametrize("state", [b"{", b"[]", b'{"best_model_checkpoint": 7}', b"[" * 100_000])
def test_nothing_is_deleted_when_nobody_can_tell_the_best_one(run: Path, state: bytes) -> None:
    commit_checkpoint(run, 600, {**RESUMABLE, "trainer_state.json": state})
    found = holdfast("prune", run, "--keep-last", "1", "--yes")
    assert found.returncode == 3 and "nobody knows which checkpoint is the best" in found.stderr
    assert len(steps(run)) == 6


@pytest.mark.parametrize("said_by", ["the newest checkpoint", "its own record"])
def test_what_a_live_run_was_resumed_from_stays_until_it_has_ended(run: Path, said_by: str) -> None:
    parent = catalog.read(run / "checkpoint-200").manifest
    assert parent is not None
    live = Run.open(run, continues=RUN, parent=parent.attempt if said_by == "its own record" else None)
    if said_by == "the newest checkpoint":
        commit_checkpoint(run, 600, parent=parent.attempt)
    try:
        found = holdfast("prune", run, "--keep-last", "1", "--yes")
        (row,) = (line for line in found.stdout.splitlines() if line.startswith("checkpoint-200 "))
        assert row.endswith("stays: the training was resumed from it"), found.stderr
        assert 200 in steps(run) and len(steps(run)) == 2
    finally:
        live.close("finished", 0)
    assert holdfast("prune", run, "--keep-last", "1", "--yes").returncode == 0
    assert len(steps(run)) == 1


def test_nothing_is_deleted_while_nobody_knows_what_a_live_run_was_resumed_from(run: Path) -> None:
    live = Run.open(run, continues=RUN)
    live.directory.outcome.path.unlink()
    refused = holdfast("prune", run, "--keep-last", "1", "--yes")
    assert refused.returncode == 1 and "nobody knows which checkpoint the training" in refused.stderr
    live.close("finished", 0)
    assert len(steps(run)) == 5


def test_a_training_goes_on_beside_it(tmp_path: Path) -> None:
    with training(tmp_path) as process:
        for _ in range(2):
            saves(process, tmp_path)
        (newest, _) = catalog.entries(tmp_path)
        assert newest.manifest is not None
        commit_checkpoint(tmp_path, 9, run=newest.manifest.run)
        found = holdfast("prune", tmp_path, "--keep-last", "1", "--yes")
        assert found.returncode == 0, found.stderr
        assert steps(tmp_path) == [9]
        saves(process, tmp_path)
        assert steps(tmp_path) == [9, 9]


def saves(process: subprocess.Popen[bytes], run: Path) -> None:
    assert holdfast("save", run).returncode == 0
    tell(process, "save")
    assert line_of(process) == "saved"


def test_two_at_once_delete_each_checkpoint_once_and_neither_fails(run: Path) -> None:
    for step in range(501, 541):
        commit_checkpoint(run, step)
    both = [holdfast_begun("prune", run, "--keep-last", "1", "--yes", "--json") for _ in range(2)]
    ended = [(*one.communicate(timeout=60), one.returncode) for one in both]
    assert [(errors, code) for _, errors, code in ended] == [("", 0), ("", 0)]
    deleted = [one["step"] for said, _, _ in ended for one in json.loads(said)["checkpoints"] if one["deleted"]]
    assert sorted(deleted) == [100, 200, 300, 400, *range(500, 540)]
    assert steps(run) == [540] and not list(run.glob(".trash-*"))


def test_who_cannot_be_asked_must_say_yes(run: Path) -> None:
    for options in ((), ("--json",)):
        found = holdfast("prune", run, "--keep-last", "1", *options)
        assert found.returncode == 2 and "--yes, or --dry-run" in found.stdout + found.stderr
    assert len(steps(run)) == 5


def on_a_terminal(run: Path, typed: str, meanwhile: Callable[[], object] = lambda: None) -> tuple[int, str]:
    """Answers the question of `prune`, and gives its exit code and all that it showed."""
    child, terminal = os.forkpty()
    if child == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # whatever the tests before have left
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execv(sys.executable, [sys.executable, "-m", "holdfast", "prune", str(run), "--keep-last", "1"])
    shown = ""
    while "Delete them? [y/N]" not in shown:
        shown += os.read(terminal, 4096).decode()
    meanwhile()
    os.write(terminal, typed.encode())
    with suppress(OSError):  # its other end has gone
        while part := os.read(terminal, 4096):
            shown += part.decode()
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), shown


@pytest.mark.parametrize(
    ("typed", "code", "left"),
    [("y\n", 0, 1), ("yes\n", 0, 1), ("n\n", 1, 5), ("\n", 1, 5), ("\x04", 1, 5), ("\x03", -signal.SIGINT, 5)],
    ids=["y", "yes", "no", "nothing", "end-of-input", "ctrl-c"],
)
def test_on_a_terminal_it_asks_first(run: Path, typed: str, code: int, left: int) -> None:
    found, shown = on_a_terminal(run, typed)
    assert found == code, shown
    assert len(steps(run)) == left
    assert ("nothing was deleted" in shown) == (code == 1)


def test_it_looks_again_after_the_answer_and_deletes_nothing_that_it_has_not_shown(run: Path) -> None:
    def meanwhile() -> None:
        holdfast("pin", run / "checkpoint-100")

        commit_checkpoint(run, 200)
        commit_checkpoint(run, 600)

    code, shown = on_a_terminal(run, "y\n", meanwhile)
    assert code == 0 and "deleted 3 of 4" in shown
    # The new 200 and the 500 were not to go when the question was asked.
    assert steps(run) == [600, 200, 500, 100]


def test_a_run_without_checkpoints_is_no_error_and_one_that_is_not_there_is_4(tmp_path: Path) -> None:
    empty = holdfast("prune", tmp_path, "--keep-last", "1", "--yes")
    assert (empty.returncode, empty.stdout) == (0, f"no checkpoint in {tmp_path} yet\n")
    for wrong in (tmp_path / "missing", Path(__file__)):
        found = holdfast("prune", wrong, "--keep-last", "1", "--yes")
        assert found.returncode == 4 and f"there is no directory {wrong}" in found.stderr


def mirrored_with(root: Path, *steps: int) -> MirroredRun:
    """A run that nobody trains any more, with these checkpoints here and in its mirror."""
    with mirrored_run(root) as mirrored:
        mirrored.run.claim(terms.Term(RUN, mirrored.term, 1, mirrored.url))
        for step in steps:
            commit_checkpoint(root, step, term=mirrored.term)
    mirror = DirectoryMirror(mirrored.place)
    assert mirror.store.put_absent(keys.OWNER, RUN.encode() + b"\n")
    mirror.send(root)
    return mirrored


def test_the_mirror_is_left_alone_unless_it_is_named(tmp_path: Path) -> None:
    mirrored = mirrored_with(tmp_path / "run", 1, 2, 3, 4)
    assert holdfast("prune", mirrored.root, "--keep-last", "2", "--yes").returncode == 0
    assert mirrored.there() == [4, 3, 2, 1]
    shown = holdfast("prune", mirrored.root, "--keep-last", "2", "--mirror", "--dry-run")
    assert "2 of 4 go" in shown.stdout and mirrored.there() == [4, 3, 2, 1]
    assert holdfast("pin", mirrored.root / "checkpoint-3").returncode == 0
    shown = holdfast("prune", mirrored.root, "--keep-last", "1", "--mirror", "--dry-run")
    assert "2 of 4 go" in shown.stdout, "a pin that no start has brought there yet counts there, too"
    assert holdfast("unpin", mirrored.root / "checkpoint-3").returncode == 0
    pruned = holdfast("prune", mirrored.root, "--keep-last", "2", "--mirror", "--yes")
    assert pruned.returncode == 0 and "deleted 2 of 2 in the mirror" in pruned.stdout, pruned.stderr
    assert mirrored.there() == [4, 3]


def test_the_mirror_of_a_run_that_another_start_has_is_not_pruned(tmp_path: Path) -> None:
    mirrored = mirrored_with(tmp_path / "run", 1, 2, 3)
    start(mirrored.store, host="elsewhere")
    refused = holdfast("prune", mirrored.root, "--keep-last", "1", "--mirror", "--yes")
    assert refused.returncode == 2 and "taken over by a later start on 'elsewhere'" in refused.stderr
    assert mirrored.there() == [3, 2, 1] and len(list(mirrored.root.glob("checkpoint-*"))) == 3


def test_a_run_that_has_had_no_mirror_has_none_to_prune(tmp_path: Path) -> None:
    (tmp_path / ".holdfast" / "requests").mkdir(parents=True, mode=0o700)
    (tmp_path / ".holdfast" / "answers").mkdir(mode=0o700)
    (tmp_path / ".holdfast").chmod(0o700)
    commit_checkpoint(tmp_path, 1)
    refused = holdfast("prune", tmp_path, "--keep-last", "1", "--mirror", "--yes")
    assert refused.returncode == 2 and "has had no mirror" in refused.stderr
