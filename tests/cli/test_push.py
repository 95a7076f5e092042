import json
import shutil
from pathlib import Path

import pytest

from helpers.mirrored_run import mirrored_run
from helpers.mirrors import DirectoryMirror
from helpers.support import ASKED, NO_TENSORS, OTHER_RUN, RESUMABLE, RUN, SCHEDULED, commit_checkpoint, holdfast
from holdfast.mirror.queue import Queue, Queued
from holdfast.remote.terms import take_place as took_place
from holdfast.run.directory import RunDirectory
from holdfast.run.run import Run
from holdfast.store import catalog, terms


def a_run(root: Path) -> Path:
    """A run that nobody trains, with a scheduled checkpoint, one that was asked for, and the newest."""
    run = Run.open(root, continues=RUN)
    content = {**RESUMABLE, "model.safetensors": NO_TENSORS}
    commit_checkpoint(root, 5, content)
    commit_checkpoint(root, 7, content, reasons=(SCHEDULED, ASKED))
    commit_checkpoint(root, 9, content)
    run.close("finished", 0)
    return root


def flip_bit(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


@pytest.fixture
def mirror(tmp_path: Path) -> DirectoryMirror:
    return DirectoryMirror(tmp_path / "mirror")


def steps_in(mirror: DirectoryMirror) -> list[int]:
    listed = json.loads(holdfast("list", mirror.url, "--json").stdout)
    return [each["step"] for each in listed["checkpoints"]]


def test_the_newest_and_what_was_asked_for_are_sent_once(tmp_path: Path, mirror: DirectoryMirror) -> None:
    root = a_run(tmp_path / "run")
    first = holdfast("push", root, "--to", mirror.url)
    assert first.returncode == 0, first.stderr
    assert [line.split(": ")[0] for line in first.stdout.splitlines() if "mirrored" in line] == [
        "checkpoint-9",
        "checkpoint-7",
    ]
    assert steps_in(mirror) == [9, 7] and mirror.owner == RUN
    again = json.loads(holdfast("push", root, "--to", mirror.url, "--json").stdout)
    assert [(each["step"], each["mirrored"], each["seconds"]) for each in again["checkpoints"]] == [
        (9, True, 0.0),
        (7, True, 0.0),
    ]


def test_what_waited_for_the_mirror_waits_no_more_and_the_run_knows_its_mirror(tmp_path: Path) -> None:
    with mirrored_run(tmp_path / "run") as mirrored:
        mirrored.run.claim(terms.Term(RUN, mirrored.term, 1, mirrored.url))
        root = mirrored.root
    commit_checkpoint(root, 3, term=mirrored.term)
    entry = catalog.entries(root)[0]
    assert entry.manifest is not None
    directory = RunDirectory.open(root)
    Queue(directory).put(Queued(entry.manifest.attempt, 3, entry.manifest.sequence, 34, "stop"))
    pushed = holdfast("push", root)
    assert pushed.returncode == 0, pushed.stderr
    assert Queue(directory).waiting() == []
    answer = Queue(directory).answer_to(entry.manifest.attempt)
    assert answer is not None and answer.mirrored and answer.term == mirrored.term


def test_what_counts_for_a_term_that_was_not_claimed_here_is_never_the_newest(
    tmp_path: Path, mirror: DirectoryMirror
) -> None:
    root = a_run(tmp_path / "run")
    commit_checkpoint(root, 11, term=5)  # as in a directory that was copied from another machine
    assert holdfast("push", root, "--to", mirror.url).returncode == 0
    assert {each.key.term for each in mirror.listing.published} == {0}


def test_what_a_copy_of_the_directory_has_saved_is_never_the_newest(tmp_path: Path, mirror: DirectoryMirror) -> None:
    root, copied = a_run(tmp_path / "run"), tmp_path / "copied"
    terms.note(root / ".holdfast", terms.Term(RUN, 2, 4, mirror.url))
    origin = catalog.entries(root)[0].manifest
    assert origin is not None
    took_place(mirror.store, RUN)
    shutil.copytree(root, copied)
    commit_checkpoint(root, 11, term=2, parent=None)
    mirror.send(root)
    for step in (11, 12, 13):
        commit_checkpoint(copied, step, term=2, parent=origin.attempt)
    before = mirror.listing.published[0].key
    pushed = holdfast("push", copied)
    assert pushed.returncode == 0, pushed.stderr
    assert "a start elsewhere does not go on from checkpoint-13: " in pushed.stdout
    assert mirror.listing.published[0].key == before and (0, 6) in [e.key[1:3] for e in mirror.listing.published]
    commit_checkpoint(root, 14, term=2, parent=catalog.entries(root)[0].manifest.attempt)  # type: ignore[union-attr]
    assert "elsewhere" not in holdfast("push", root).stdout
    assert mirror.listing.published[0].key.term == 2, "what a start without the mirror has saved in the same directory"


def test_a_run_without_a_mirror_a_mirror_of_another_run_and_damage_are_told(
    tmp_path: Path, mirror: DirectoryMirror
) -> None:
    root = a_run(tmp_path / "run")
    without = holdfast("push", root)
    assert without.returncode == 2 and "has had no mirror" in without.stderr and "--to" in without.stderr
    flip_bit(root / "checkpoint-7" / "optimizer.pt")
    damaged = holdfast("push", root, "--to", mirror.url)
    assert damaged.returncode == 3 and "checkpoint-7: not sent: optimizer.pt" in damaged.stdout
    assert steps_in(mirror) == [9]
    other = tmp_path / "other"
    run = Run.open(other, continues=OTHER_RUN)
    commit_checkpoint(other, 1, RESUMABLE, run=OTHER_RUN)
    run.close("finished", 0)
    refused = holdfast("push", other, "--to", mirror.url)
    assert refused.returncode == 2 and RUN in refused.stderr and OTHER_RUN in refused.stderr


def test_a_place_that_has_no_sign_of_the_runs_claims_is_not_the_mirror(tmp_path: Path) -> None:
    with mirrored_run(tmp_path / "run") as mirrored:
        mirrored.run.claim(terms.Term(RUN, mirrored.term, 1, mirrored.url))
        mirrored.save(5)
        mirrored.wait()
    place = Path(mirrored.url.removeprefix("file://"))
    place.rename(tmp_path / "the mirror")
    place.mkdir()
    pushed = holdfast("push", tmp_path / "run", "--to", mirrored.url)
    assert pushed.returncode == 2 and "has no sign of this run, which has claimed it (term 1)" in pushed.stderr
    assert not [path for path in place.rglob("*") if path.is_file()]
