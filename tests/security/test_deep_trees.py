"""Directories that are deeper than any of ours, which anybody can plant: passed over by name, never an error."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers.support import RUN, commit_checkpoint, holdfast
from holdfast.layouts.layout import TRANSFORMERS
from holdfast.log import RunLog
from holdfast.resume.choose import select_checkpoint
from holdfast.run.run import Run
from holdfast.store import catalog, names, retention
from holdfast.store.folder import DEEPEST, Folder, names_in, walk
from holdfast.store.verify import verify
from security.exchanging import before_each_call

LEVELS = 1500
DESCRIPTORS = Path("/proc/self/fd")


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    """Makes directories of 1,500 levels, with a file in the first, and removes them: pytest's own removal recurses."""

    def make(top: Path) -> Path:
        top.mkdir()
        (top / "file").write_bytes(b"x")
        fd = os.open(top, os.O_RDONLY)
        for _ in range(LEVELS):
            os.mkdir("d", dir_fd=fd)
            below = os.open("d", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.close(fd)
        return top

    yield make
    subprocess.run(["rm", "-rf", *tmp_path.iterdir()], check=True)


def test_security_s27_a_deep_directory_in_a_checkpoint_is_a_notice(
    tmp_path: Path, deep: Callable[[Path], Path]
) -> None:
    """A directory of 1,500 levels inside of a checkpoint, and one that has a checkpoint's name."""
    checkpoint = commit_checkpoint(tmp_path, 7)
    deep(checkpoint / "stranger")
    deep(tmp_path / "checkpoint-9")
    too_deep = f"stranger{'/d' * DEEPEST}: not in the manifest, too deep to be looked into, and never read"
    for full in (False, True):
        report = verify(checkpoint, full=full)
        assert report.good and report.notices == ("stranger/file: not in the manifest, and never read", too_deep)
    verbs = holdfast("verify", tmp_path)
    assert verbs.returncode == 3 and too_deep in verbs.stdout and "Traceback" not in verbs.stderr
    said: list[str] = []
    chosen = select_checkpoint(tmp_path, "auto", TRANSFORMERS, RunLog(said.append))
    assert chosen is not None and chosen.path == checkpoint
    assert f"checkpoint-7: {too_deep}" in said


def test_security_s27_what_is_too_deep_to_be_swept_is_left_and_named_once(
    tmp_path: Path, deep: Callable[[Path], Path]
) -> None:
    """Directories of 1,500 levels that have the names of what a save and a deletion leave, beside others."""
    left = [tmp_path / names.trash("1" * 32), tmp_path / names.staging(RUN, 3, "2" * 32)]
    for path in left:
        deep(path)
    swept = tmp_path / names.trash("3" * 32)
    commit_checkpoint(tmp_path, 5).rename(swept)
    for said in ([f"{path} is left over, and cannot be removed: it holds" for path in left], []):
        lines: list[str] = []
        Run.open(tmp_path, continues=RUN, log=RunLog(lines.append)).close("ended", 0)
        assert [line.partition(" directories more than 8 levels deep")[0] for line in lines] == sorted(said)
    assert not swept.exists() and all((path / "d" / "d").is_dir() for path in left)
    assert not any((path / "file").exists() for path in left), "of what is left all that can goes"


def test_security_s27_a_checkpoint_with_a_deep_directory_is_deleted_as_far_as_it_can(
    tmp_path: Path, deep: Callable[[Path], Path]
) -> None:
    """A directory of 1,500 levels inside of a checkpoint that is deleted."""
    doomed, newer = (commit_checkpoint(tmp_path, step) for step in (7, 8))
    deep(doomed / "stranger")
    with pytest.raises(OSError, match="more than 8 levels deep, which are left"):
        retention.delete(tmp_path, None, doomed)
    assert [entry.path for entry in catalog.entries(tmp_path)] == [newer] and verify(newer).good
    (trash,) = (path for path in tmp_path.iterdir() if names.is_trash(path.name))
    assert [path.name for path in trash.iterdir()] == ["stranger"] and not (trash / "stranger" / "file").exists()


def test_security_s27_a_walk_holds_few_descriptors(tmp_path: Path, deep: Callable[[Path], Path]) -> None:
    """The descriptors that are open before each call of a walk through 1,500 levels."""
    deep(tmp_path / "deep")
    open_now: list[int] = []
    with Folder.open(tmp_path) as folder, before_each_call(lambda _: open_now.append(len(names_in(DESCRIPTORS)))):
        levels = len(list(walk(folder)))
    assert levels == DEEPEST + 1 and len(open_now) > 2 * DEEPEST
    assert max(open_now) - len(names_in(DESCRIPTORS)) <= 16
