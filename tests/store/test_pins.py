from pathlib import Path

import pytest

from helpers.support import RUN, commit_checkpoint, every_crash, meets_error_at
from holdfast.store import catalog, files, pins, retention
from holdfast.store.retention import RetentionPolicy, StillWantedError

ONE, TWO = "1" * 32, "2" * 32


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / ".holdfast").mkdir(mode=0o700)
    return tmp_path


def attempt_of(path: Path) -> str:
    manifest = catalog.read(path).manifest
    assert manifest is not None
    return manifest.attempt


def test_a_pin_is_there_until_it_is_taken_away(root: Path) -> None:
    assert pins.pinned(root / ".holdfast") == frozenset()
    assert pins.pin(root / ".holdfast", ONE) and pins.pin(root / ".holdfast", TWO)
    assert not pins.pin(root / ".holdfast", ONE)
    assert pins.pinned(root / ".holdfast") == {ONE, TWO}
    assert pins.unpin(root / ".holdfast", ONE) and not pins.unpin(root / ".holdfast", ONE)
    assert pins.pinned(root / ".holdfast") == {TWO}


def test_only_the_owner_may_see_a_pin_and_only_pins_are_taken_for_one(root: Path) -> None:
    pins.pin(root / ".holdfast", ONE)
    folder = root / ".holdfast" / "pins"
    assert folder.stat().st_mode & 0o777 == 0o700 and (folder / ONE).stat().st_mode & 0o777 == 0o600
    (folder / "notes.txt").touch()
    assert pins.pinned(root / ".holdfast") == {ONE}


def test_pins_that_cannot_be_read_are_an_error_and_nothing_is_deleted(root: Path) -> None:
    for step in (1, 2):
        commit_checkpoint(root, step)
    (root / "elsewhere").mkdir()
    (root / ".holdfast" / "pins").symlink_to(root / "elsewhere")
    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        retention.surplus(root, root / ".holdfast", catalog.entries(root), RUN, RetentionPolicy(1, None))
    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        retention.delete(root, root / ".holdfast", root / "checkpoint-1")
    assert [entry.step for entry in catalog.entries(root)] == [2, 1]


def test_after_a_crash_at_any_change_there_is_a_pin_or_none_and_the_next_one_holds(tmp_path: Path) -> None:
    for root in every_crash(
        tmp_path, lambda root: (root / ".holdfast").mkdir(mode=0o700), lambda root: pins.pin(root / ".holdfast", ONE)
    ):
        assert pins.pinned(root / ".holdfast") in ({ONE}, frozenset())
        pins.pin(root / ".holdfast", ONE)
        assert pins.pinned(root / ".holdfast") == {ONE}


def test_a_failing_disk_is_told_and_not_taken_for_a_pin(root: Path) -> None:
    def refused() -> None:
        with pytest.raises(OSError, match="Input/output error"):
            pins.pin(root / ".holdfast", ONE)

    # The folder is made, its own folder synced, the file made and synced, the folder synced.
    for count in range(1, 6):
        pins.unpin(root / ".holdfast", ONE)
        assert meets_error_at(count, refused)


def test_a_pin_survives_a_new_name(root: Path) -> None:
    for step in (1, 1, 2, 3):
        path = commit_checkpoint(root, step)
        if step == 1 and not pins.pinned(root / ".holdfast"):
            pins.pin(root / ".holdfast", attempt_of(path))
    (superseded,) = root.glob("superseded-1-*")
    verdicts = retention.judge(root, root / ".holdfast", catalog.entries(root), RUN, RetentionPolicy(0, 0))
    assert {v.entry.path.name: v.kept for v in verdicts} == {
        "checkpoint-3": "the newest good one",
        "checkpoint-2": None,
        "checkpoint-1": None,
        superseded.name: "pinned",
    }


def test_a_pinned_checkpoint_keeps_its_name_before_whoever_decided_before_the_pin(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = commit_checkpoint(root, 1)
    pins.pin(root / ".holdfast", attempt_of(path))
    monkeypatch.delattr(files, "rename_new")  # a crash right after a rename would let the next start remove it
    with pytest.raises(StillWantedError, match="pinned"):
        retention.delete(root, root / ".holdfast", path)
    assert [child.name for child in root.iterdir() if child.name != ".holdfast"] == ["checkpoint-1"]


@pytest.mark.parametrize("name_is_taken", [False, True])
def test_a_pin_that_comes_right_before_the_name_goes_gives_it_back(
    root: Path, monkeypatch: pytest.MonkeyPatch, name_is_taken: bool
) -> None:
    path = commit_checkpoint(root, 1)
    attempt = attempt_of(path)
    real = files.rename_new

    def rename_after_a_pin(source: Path, target: Path) -> None:
        if pins.pin(root / ".holdfast", attempt):
            real(source, target)
            if name_is_taken:
                monkeypatch.undo()
                commit_checkpoint(root, 1)
        else:
            real(source, target)

    monkeypatch.setattr(files, "rename_new", rename_after_a_pin)
    with pytest.raises(StillWantedError, match="pinned"):
        retention.delete(root, root / ".holdfast", path)
    found = {entry.path.name for entry in catalog.entries(root)}
    assert found == ({"checkpoint-1", f"superseded-1-{attempt}"} if name_is_taken else {"checkpoint-1"})
    assert not list(root.glob(".trash-*"))
