import json
from pathlib import Path

import pytest

from cli.test_push import a_run, flip_bit
from helpers.mirrors import DirectoryMirror
from helpers.support import OTHER_RUN, RUN, commit_checkpoint, holdfast
from holdfast.remote.terms import take_place
from holdfast.run import lease
from holdfast.run.directory import RunDirectory
from holdfast.run.run import Run
from holdfast.store import catalog, pins
from holdfast.store.folder import Folder


@pytest.fixture
def mirror(tmp_path: Path) -> DirectoryMirror:
    mirror = DirectoryMirror(tmp_path / "mirror")
    assert holdfast("push", a_run(tmp_path / "run"), "--to", mirror.url).returncode == 0
    return mirror


def steps_in(root: Path) -> list[int]:
    return [entry.step for entry in catalog.entries(root)]


def test_the_newest_and_what_has_a_label_come_and_no_bit_of_them_differs(
    tmp_path: Path, mirror: DirectoryMirror
) -> None:
    pulled = holdfast("pull", mirror.url, tmp_path / "got")
    assert pulled.returncode == 0, pulled.stderr
    assert steps_in(tmp_path / "got") == [9, 7]
    for step in (7, 9):
        compared = holdfast("diff", tmp_path / "run" / f"checkpoint-{step}", tmp_path / "got" / f"checkpoint-{step}")
        assert compared.returncode == 0
    again = json.loads(holdfast("pull", mirror.url, tmp_path / "got", "--json").stdout)
    assert [each["was_here"] for each in again["checkpoints"]] == [True, True]


def test_one_checkpoint_comes_alone_and_its_marks_come_with_it(tmp_path: Path, mirror: DirectoryMirror) -> None:
    assert holdfast("pin", tmp_path / "run" / "checkpoint-9").returncode == 0
    with Folder.open(tmp_path / "run" / ".holdfast") as control:
        (pinned,) = pins.pinned(control)
        pins.mark_as_asked_for(control, pinned)
    assert holdfast("push", tmp_path / "run", "--to", mirror.url).returncode == 0
    assert holdfast("pull", f"{mirror.url}/checkpoint-9", tmp_path / "got").returncode == 0
    (entry,) = catalog.entries(tmp_path / "got")
    assert entry.manifest is not None and entry.step == 9
    with Folder.open(tmp_path / "got" / ".holdfast") as control:
        assert pins.pinned(control) == pins.asked_for(control) == {entry.manifest.attempt} == {pinned}


def test_what_is_damaged_there_is_left_out_and_the_newest_good_one_comes(
    tmp_path: Path, mirror: DirectoryMirror
) -> None:
    newest = mirror.listing.published[0].key
    flip_bit(mirror.file(newest, "optimizer.pt"))
    pulled = holdfast("pull", mirror.url, tmp_path / "got")
    assert pulled.returncode == 3 and "checkpoint-9: DAMAGED: optimizer.pt" in pulled.stdout
    assert steps_in(tmp_path / "got") == [7]
    told = holdfast("verify", mirror.url)
    assert told.returncode == 3 and told.stdout.splitlines()[0] == "checkpoint-9: DAMAGED"
    assert holdfast("verify", f"{mirror.url}/checkpoint-7").returncode == 0


def test_where_the_newest_ones_are_damaged_the_one_before_them_comes(tmp_path: Path, mirror: DirectoryMirror) -> None:
    mirror.send(tmp_path / "run", 5)
    for there in mirror.listing.published[:2]:
        flip_bit(mirror.file(there.key, "optimizer.pt"))
    assert holdfast("pull", mirror.url, tmp_path / "got").returncode == 3
    assert steps_in(tmp_path / "got") == [5]


def test_a_directory_that_is_used_is_refused_and_nothing_in_it_changes(tmp_path: Path, mirror: DirectoryMirror) -> None:
    used = tmp_path / "used"
    used.mkdir()
    (used / "notes.txt").write_text("mine")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    commit_checkpoint(theirs, 1, run=OTHER_RUN)
    for root, word in ((used, "notes.txt"), (theirs, OTHER_RUN)):
        before = sorted(root.iterdir())
        refused = holdfast("pull", mirror.url, root)
        assert refused.returncode == 2 and word in refused.stderr and "new or empty" in refused.stderr
        assert sorted(root.iterdir()) == before


def test_two_do_not_bring_checkpoints_into_one_directory_at_once(tmp_path: Path, mirror: DirectoryMirror) -> None:
    with lease.kept_free(RunDirectory.create(tmp_path / "got")):
        refused = holdfast("pull", mirror.url, tmp_path / "got")
    assert refused.returncode == 1 and "holdfast pull is bringing checkpoints into" in refused.stderr
    assert holdfast("pull", mirror.url, tmp_path / "got").returncode == 0 and steps_in(tmp_path / "got") == [9, 7]
    Run.open(tmp_path / "got", continues=RUN)
    refused = holdfast("pull", mirror.url, tmp_path / "got")
    assert refused.returncode == 1 and "a process is training the run" in refused.stderr


def test_what_is_no_mirror_is_told(tmp_path: Path, mirror: DirectoryMirror) -> None:
    nowhere = (tmp_path / "nowhere").as_uri()
    for arguments, code, words in (
        (("pull", "runs/a", tmp_path / "got"), 2, "is no address of a mirror"),
        (("pull", nowhere, tmp_path / "got"), 4, "there is no run in"),
        (("pull", f"{mirror.url}/checkpoint-8", tmp_path / "got"), 4, "there is no checkpoint-8"),
        (("list", nowhere), 4, "there is no run in"),
        (("verify", nowhere), 4, "there is no run in"),
        (("inspect", mirror.url), 4, "the newest in it is"),
        (("inspect", "s3://user:secret@bucket/run"), 2, "has no user, password"),
        (("list", tmp_path / "run", "--region", "x"), 2, "no meaning without a mirror"),
        (("save", "s3://bucket/run"), 2, "an address (s3://...) is given"),
        (("pin", tmp_path / "run" / "checkpoint-9", "s3://bucket/secret"), 2, "an address (s3://...) is given"),
    ):
        told = holdfast(*arguments)
        assert told.returncode == code and words in told.stderr and "secret" not in told.stderr, arguments
    assert not (tmp_path / "got").exists()


def test_a_checkpoint_of_a_mirror_is_inspected_as_one_of_a_disk(tmp_path: Path, mirror: DirectoryMirror) -> None:
    there = json.loads(holdfast("inspect", f"{mirror.url}/checkpoint-9", "--json").stdout)
    here = json.loads(holdfast("inspect", tmp_path / "run" / "checkpoint-9", "--json").stdout)
    assert there.pop("path") == f"{mirror.url}/checkpoint-9" and here.pop("path")
    assert there == here


def test_json_that_no_resume_reads_is_damage_in_a_mirror_as_it_is_on_a_disk(tmp_path: Path) -> None:
    there = DirectoryMirror(tmp_path / "another")
    (tmp_path / "own").mkdir()
    for step, content in ((5, b"{}"), (7, b"[1]"), (9, b"{")):
        commit_checkpoint(tmp_path / "own", step, {"training.json": content}, layout="native")
    there.send(tmp_path / "own")
    take_place(there.store, RUN)
    told = [holdfast("verify", place) for place in (there.url, tmp_path / "own")]
    assert told[0].stdout == told[1].stdout and told[0].returncode == told[1].returncode == 3
    assert told[0].stdout.count("DAMAGED") == 2 and "checkpoint-5: good" in told[0].stdout
    inside = holdfast("list", f"{there.url}/checkpoint-5")
    assert inside.returncode == 4 and "is for verify, inspect and pull" in inside.stderr
