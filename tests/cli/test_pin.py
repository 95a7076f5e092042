import json
from pathlib import Path

import pytest

from helpers.museum import EXHIBITS
from helpers.serving import training
from helpers.support import RUN, commit_checkpoint, content_of, holdfast, line_of, tell
from holdfast.run.run import Run
from holdfast.store import catalog, pins, retention
from holdfast.store.folder import Folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    Run.open(tmp_path, continues=RUN).close("finished", 0)
    for step in (1, 2, 3):
        commit_checkpoint(tmp_path, step)
    return tmp_path


def steps_pinned(run: Path) -> list[int]:
    pinned = pins.pinned(run / ".holdfast")
    return sorted(entry.step for entry in catalog.entries(run) if entry.manifest and entry.manifest.attempt in pinned)


def test_pinned_is_told_listed_and_taken_back(run: Path) -> None:
    before = content_of(run / "checkpoint-1")
    found = holdfast("pin", run / "checkpoint-1", run / "checkpoint-2")
    assert (found.returncode, found.stdout, found.stderr) == (0, "checkpoint-1: pinned\ncheckpoint-2: pinned\n", "")
    assert steps_pinned(run) == [1, 2]
    assert content_of(run / "checkpoint-1") == before
    head, *rows = holdfast("list", run).stdout.splitlines()
    place = head.index("PINNED")
    assert [(row.split()[0], row[place:].split()[0]) for row in rows] == [
        ("checkpoint-3", "-"),
        ("checkpoint-2", "yes"),
        ("checkpoint-1", "yes"),
    ]
    listed = json.loads(holdfast("list", run, "--json").stdout)["checkpoints"]
    assert [one["pinned"] for one in listed] == [False, True, True]
    found = holdfast("unpin", run / "checkpoint-1", run / "checkpoint-3")
    assert found.stdout == "checkpoint-1: no longer pinned\ncheckpoint-3: was not pinned\n"
    assert steps_pinned(run) == [2]


def test_a_run_that_trains_is_pinned_in_and_deletes_around_the_pin(tmp_path: Path) -> None:
    with training(tmp_path) as process:
        assert holdfast("save", tmp_path).returncode == 0
        tell(process, "save")
        assert line_of(process) == "saved"
        assert holdfast("pin", tmp_path / "checkpoint-7").returncode == 0
        assert steps_pinned(tmp_path) == [7]
        for _ in range(2):
            assert holdfast("save", tmp_path).returncode == 0
            tell(process, "save")
            assert line_of(process) == "saved"
        (entry, *_) = found = catalog.entries(tmp_path)
        assert entry.manifest is not None
        surplus = retention.surplus(
            found[0].path.parent,
            found[0].path.parent / ".holdfast",
            found,
            entry.manifest.run,
            retention.RetentionPolicy(1, 1),
        )
        assert [path.name for path in surplus] == ["checkpoint-8"]


def test_a_pin_follows_the_checkpoint_to_another_name(run: Path) -> None:
    holdfast("pin", run / "checkpoint-3")
    commit_checkpoint(run, 3)
    (superseded,) = run.glob("superseded-3-*")
    assert holdfast("unpin", superseded, "--json").stdout == (
        json.dumps({"checkpoints": [{"path": str(superseded), "pinned": False}]}, indent=2) + "\n"
    )
    assert steps_pinned(run) == []


def test_a_checkpoint_may_be_named_by_a_dot_a_link_or_a_name_of_ones_own(run: Path) -> None:
    (run / "latest").symlink_to("checkpoint-3")
    assert holdfast("pin", run / "latest").stdout == "checkpoint-3: pinned\n"
    assert holdfast("pin", ".", cwd=run / "checkpoint-2").stdout == "checkpoint-2: pinned\n"
    (run / "checkpoint-1").rename(run / "best")
    assert holdfast("pin", run / "best").stdout == "best: pinned\n"


@pytest.mark.parametrize("verb", ["pin", "unpin"])
def test_one_that_is_mistyped_changes_nothing_for_the_others(run: Path, verb: str) -> None:
    holdfast("pin", run / "checkpoint-1")
    for wrong in (run / "checkpoint-9", run, run / "checkpoint-1" / "optimizer.pt"):
        found = holdfast(verb, run / "checkpoint-1", run / "checkpoint-2", wrong)
        assert (found.returncode, found.stdout) == (4, "") and str(wrong) in found.stderr
    assert steps_pinned(run) == [1]


def test_one_that_is_deleted_right_before_its_pin_is_not_called_pinned(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pins.pin

    def pin_too_late(control: Folder, attempt: str) -> bool:
        retention.delete(run, control, run / "checkpoint-1")
        return real(control, attempt)

    monkeypatch.setattr(pins, "pin", pin_too_late)
    found = holdfast("pin", run / "checkpoint-1")
    assert (found.returncode, found.stdout) == (1, "") and "was deleted before it was pinned" in found.stderr


def test_one_that_gives_its_name_away_right_before_its_pin_is_pinned(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pins.pin

    def pin_late(control: Folder, attempt: str) -> bool:
        commit_checkpoint(run, 1)
        return real(control, attempt)

    monkeypatch.setattr(pins, "pin", pin_late)
    assert holdfast("pin", run / "checkpoint-1").returncode == 0
    (superseded,) = run.glob("superseded-1-*")
    assert superseded.name.endswith(tuple(pins.pinned(run / ".holdfast")))


def test_a_checkpoint_outside_of_a_run_has_nobody_who_would_delete_it(tmp_path: Path) -> None:
    found = holdfast("pin", commit_checkpoint(tmp_path, 1))
    assert found.returncode == 4 and f"no run in {tmp_path}" in found.stderr
    assert not (tmp_path / ".holdfast").exists()


def test_what_has_no_manifest_cannot_be_pinned_and_says_why(run: Path) -> None:
    for kind, code in (("foreign", 2), ("truncated_manifest", 3), ("no_manifest", 3)):
        (exhibit,) = (one for one in EXHIBITS if one.kind == kind)
        path = exhibit.in_a_run(run)
        found = holdfast("pin", path)
        assert (found.returncode, found.stdout) == (code, "") and str(path) in found.stderr, kind
        path.rename(run.parent / f"{run.name}-{kind}")
    assert steps_pinned(run) == []


def test_a_private_directory_that_others_may_write_to_is_not_trusted(run: Path) -> None:
    (run / ".holdfast").chmod(0o777)
    found = holdfast("pin", run / "checkpoint-1")
    assert found.returncode == 1 and "is not a private directory" in found.stderr
