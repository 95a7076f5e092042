import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.run.exposure import exposure
from holdfast.run.run import Run


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory that others come to, where pytest's own is private; below another."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        inner = Path(name, "above", "run")
        inner.mkdir(parents=True)
        for path in (inner, inner.parent):
            path.chmod(0o755)
        yield inner


def with_mode(path: Path, mode: int, *, uid: int = -1, gid: int = -1) -> None:
    if uid >= 0 or gid >= 0:
        try:
            os.chown(path, uid, gid)
        except PermissionError:
            pytest.skip("SKIPPED, NOT PASSED: only root can give a directory away")
    path.chmod(mode)


def test_a_directory_of_ones_own_needs_no_word(folder: Path, tmp_path: Path) -> None:
    for mode in (0o755, 0o700, 0o1755):
        folder.chmod(mode)
        assert exposure(folder) == ""
    tmp_path.chmod(0o777)
    assert exposure(tmp_path) == "", "nobody else comes there"


@pytest.mark.parametrize(
    ("mode", "gid", "who"),
    [(0o777, -1, "everybody"), (0o775, 54321, "the group 54321"), (0o2775, 54321, "the group 54321")],
)
def test_who_may_rename_there_is_named_with_what_they_can_do(folder: Path, mode: int, gid: int, who: str) -> None:
    with_mode(folder, mode, gid=gid)
    assert exposure(folder) == (
        f"{who} may write to {folder}, whose mode is {mode:04o}: they can rename and delete what is in it, checkpoints"
        " too, put other files in their place, and so ask for saves. If that is not meant:"
        f" chmod go-w {folder}"
    )


def test_in_a_sticky_one_others_can_put_files_and_no_more_unless_it_is_somebody_elses(folder: Path) -> None:
    with_mode(folder, 0o1777)
    line = exposure(folder)
    assert line.startswith(
        f"everybody may write to {folder}, whose mode is 1777: they can put files of their own there"
    )
    with_mode(folder, 0o1755, uid=65534)
    line = exposure(folder)
    assert line.startswith(f"its owner (uid 65534) may write to {folder}") and "rename and delete" in line
    assert line.endswith("train in a directory of your own"), "nobody but its owner may change its mode"


def test_a_group_of_the_user_alone_is_nobody_else(folder: Path) -> None:
    if os.geteuid():
        pytest.skip("SKIPPED, NOT PASSED: which groups there are is known of root's alone")
    with_mode(folder, 0o775, gid=0)
    assert exposure(folder) == ""


def test_a_directory_above_that_everybody_may_write_to_is_named(folder: Path) -> None:
    folder.parent.chmod(0o777)
    assert exposure(folder) == (
        f"everybody may write to {folder.parent} above {folder}: they can rename the whole directory, and put another"
        " in its place. If that is not meant: chmod o-w"
        f" {folder.parent}"
    )
    folder.parent.chmod(0o1777)
    assert exposure(folder) == ""


def test_security_s30_directories_that_are_made_for_everybody_are_named_once_at_the_start(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A umask that takes nothing away, and an output_dir of which nothing is there yet."""
    before = os.umask(0)
    try:
        run = Run.open(folder / "a" / "b")
    finally:
        os.umask(before)
    run.journal.write("saved")
    run.close("finished", 0)
    (line,) = caplog.messages
    assert line.startswith(f"everybody may write to {folder / 'a' / 'b'}, whose mode is 0777 (and everybody to")
    assert f"to {folder / 'a'} above it)" in line
    assert {stat.S_IMODE(path.stat().st_mode) for path in run.directory.control.path.rglob("*")} == {0o700, 0o600}
