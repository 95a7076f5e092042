"""A whole training on a disk that is full, read-only, or frozen: it goes on, and so do its saves when the disk does."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from faults.desk import training
from faults.disks import KINDS, disk
from faults.harness import BEFORE, needs, require_nothing_lost
from helpers.support import fill, holdfast
from helpers.waiting import wait_until

Record = Callable[[str, object], None]


@pytest.mark.parametrize("kind", KINDS)
def test_fault_06_on_a_full_disk_training_goes_on_and_saves_again_when_there_is_room(tmp_path: Path, kind: str) -> None:
    """A real file system is filled to the last byte, and freed."""
    with disk(tmp_path, kind) as place, training(place.with_base(), tmp_path / "said") as desk:
        fill(place.root)
        assert "bytes" in (why := desk.answer()) and "free" in why, why
        desk.require_progress()
        (place.root / "filler").unlink()
        wait_until(lambda: desk.answer().startswith("saved"), 60, "a save")
        step = int(desk.answer().split()[1])
        assert desk.end() == 0
        require_nothing_lost(place.root / "run", [step])


def test_fault_08_without_inodes_training_goes_on_and_saves_again_when_there_are_some(tmp_path: Path) -> None:
    """A file system of 160 inodes, all of which are taken, and some given back."""
    with (
        disk(tmp_path, made_with=("-N", "160")) as place,
        training(place.with_base(), tmp_path / "said") as desk,
    ):
        taken = [place.root / f"file-{number}" for number in range(160)]
        try:
            for path in taken:
                path.touch()
        except OSError:
            pass
        assert "inodes" in (why := desk.answer()), why
        desk.require_progress()
        for path in taken:
            path.unlink(missing_ok=True)
        saved = desk.answer()
        assert saved.startswith("saved"), saved
        assert desk.end() == 0
        require_nothing_lost(place.root / "run", [int(saved.split()[1])])


def test_fault_13_a_disk_that_turns_read_only_fails_saves_and_the_stop_says_so(tmp_path: Path) -> None:
    """ext4 meets an error of its own while a save is on its way, and turns read-only."""
    with disk(tmp_path, options="errors=remount-ro") as place:
        run = place.with_base()
        broken = Path(f"/sys/fs/ext4/{place.device}/trigger_fs_error")
        if not broken.exists():
            pytest.skip("SKIPPED, NOT PASSED: this kernel cannot have ext4 meet an error")
        with training(run, tmp_path / "said") as desk:
            desk.ask()
            wait_until(lambda: desk.answered() or list(run.glob(".tmp-*")))
            broken.write_text("1")
            first = desk.answer()
            second = desk.answer()
            assert "Read-only file system" in second or "write" in second, second
            desk.require_progress()
            asked = holdfast("save", run)
            assert asked.returncode == 1 and "Read-only file system" in asked.stderr, asked.stderr
            assert desk.stop() == 1, "a stop whose save fails"
        place.unmount()
        subprocess.run(["e2fsck", "-fy", str(tmp_path / "ext4.image")], check=False, capture_output=True)
        place.mount()
        saved = [int(first.split()[1])] if first.startswith("saved") else [BEFORE]
        require_nothing_lost(run, saved)


def test_fault_14_a_frozen_disk_holds_no_step_and_the_save_is_there_when_it_thaws(tmp_path: Path) -> None:
    """fsfreeze on the disk for a while: whoever writes to it waits in the kernel."""
    needs("fsfreeze", root=True)
    with disk(tmp_path) as place, training(place.with_base(), tmp_path / "said") as desk:
        subprocess.run(["fsfreeze", "-f", str(place.root)], check=True)
        try:
            desk.require_progress(20)
            desk.ask()
            desk.require_progress(20)
            assert not desk.answered()
        finally:
            subprocess.run(["fsfreeze", "-u", str(place.root)], check=True)
        saved = desk.answer()
        assert saved.startswith("saved"), saved
        assert desk.end() == 0
        require_nothing_lost(place.root / "run", [int(saved.split()[1])])


def test_fault_14_a_stop_that_meets_a_frozen_disk_ends_when_the_kernel_lets_it(tmp_path: Path) -> None:
    """SIGTERM while the disk is frozen, for longer than the grace of the stop."""
    needs("fsfreeze", root=True)
    with (
        disk(tmp_path) as place,
        training(run := place.with_base(), tmp_path / "said", stop_grace_seconds=1.0) as desk,
    ):
        subprocess.run(["fsfreeze", "-f", str(place.root)], check=True)
        assert desk.child is not None
        begun = time.monotonic()
        try:
            with pytest.raises(AssertionError, match="the end of a child"):
                desk.stop(3.0)
        finally:
            subprocess.run(["fsfreeze", "-u", str(place.root)], check=True)
        code = desk.child.wait(20)
        assert code in (75, 143), desk.child.said()
        assert time.monotonic() - begun < 20
        require_nothing_lost(run, [BEFORE])
