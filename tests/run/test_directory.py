import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.errors import RunError, RunNotFoundError
from holdfast.run.directory import RunDirectory


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    made = RunDirectory.create(tmp_path / "runs" / "one")
    return made


def test_create_makes_a_control_directory_that_its_owner_alone_may_enter(directory: RunDirectory) -> None:
    for path in (directory.control.path, directory.requests.path, directory.answers.path):
        assert path.is_dir() and path.stat().st_mode & 0o777 == 0o700


def test_create_may_be_repeated_and_open_finds_it(directory: RunDirectory) -> None:
    (directory.requests.path / "mine").touch()
    RunDirectory.create(directory.root)
    RunDirectory.open(directory.root)
    assert (directory.requests.path / "mine").exists()


def test_open_says_that_there_is_no_run(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RunNotFoundError, match=f"no run in {root}") as raised:
            RunDirectory.open(root)
        assert raised.value.exit_code == 4 and raised.value.hint
    assert not list(tmp_path.iterdir())


def replaced_by_link(directory: RunDirectory) -> None:
    directory.control.path.rename(directory.root / "elsewhere")
    directory.control.path.symlink_to(directory.root / "elsewhere")


def writable_by_the_group(directory: RunDirectory) -> None:
    directory.requests.path.chmod(0o770)


def writable_by_all(directory: RunDirectory) -> None:
    directory.control.path.chmod(0o702)


def a_strangers(directory: RunDirectory) -> None:
    try:
        os.chown(directory.answers.fd, 12345, -1)
    except PermissionError:
        pytest.skip("SKIPPED, NOT PASSED: only root can make a stranger's directory")


@pytest.mark.parametrize("change", [replaced_by_link, writable_by_the_group, writable_by_all, a_strangers])
@pytest.mark.parametrize("use", [RunDirectory.create, RunDirectory.open])
def test_security_s06_a_control_directory_that_others_could_write_to_is_refused(
    directory: RunDirectory, change: Callable[[RunDirectory], None], use: Callable[[Path], RunDirectory]
) -> None:
    """The control directory is a link, is writable by others, or is a stranger's."""
    change(directory)
    with pytest.raises(RunError, match="is not a private directory of this user"):
        use(directory.root)


def test_a_control_directory_that_lacks_a_part_is_refused(directory: RunDirectory) -> None:
    directory.answers.path.rmdir()
    with pytest.raises(RunError, match=r"answers cannot be looked at: No such file"):
        RunDirectory.open(directory.root)


def test_a_place_that_cannot_be_a_directory_is_refused_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/runs")):
        with pytest.raises(RunError, match=f"cannot use {root} as a run directory") as raised:
            RunDirectory.create(root)
        assert raised.value.hint is not None and "output_dir" in raised.value.hint


def test_a_directory_that_this_user_may_not_write_to_is_refused(tmp_path: Path) -> None:
    script = "import sys; from holdfast.run.directory import *; RunDirectory.create(Path(sys.argv[1]))"
    other = ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-c", script, str(tmp_path / "x")]
    found = subprocess.run(other, capture_output=True, text=True)
    if "setpriv" in found.stderr or "ModuleNotFoundError" in found.stderr or "Fatal Python" in found.stderr:
        pytest.skip(f"SKIPPED, NOT PASSED: cannot become another user: {found.stderr[-200:]}")
    assert f"RunError: cannot use {tmp_path / 'x'} as a run directory: Permission denied" in found.stderr


def test_small_json_files_are_read_and_anything_else_is_none(directory: RunDirectory, tmp_path: Path) -> None:
    path = directory.status.path
    path.write_text('{"a": [1]}')
    assert directory.read_json(path) == {"a": [1]}
    for content in (b"", b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 5000, b" " * (1 << 20) + b"1"):
        path.write_bytes(content)
        assert directory.read_json(path) is None
    path.unlink()
    assert directory.read_json(path) is None
    (tmp_path / "secret").write_text("1")
    path.symlink_to(tmp_path / "secret")
    assert directory.read_json(path) is None
