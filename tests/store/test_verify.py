import os
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.support import RESUMABLE, commit_checkpoint
from holdfast.store.verify import verify


def test_a_checkpoint_as_it_was_written_is_good(tmp_path: Path) -> None:
    report = verify(commit_checkpoint(tmp_path, 7, {**RESUMABLE, "folder/inner/part": b""}))
    assert report.good and (report.problems, report.notices, report.unlisted) == ((), (), ())


def test_every_flipped_bit_of_a_small_checkpoint_is_found(tmp_path: Path) -> None:
    checkpoint = commit_checkpoint(tmp_path, 7, {"a": b"ab", "b": b"c"})
    for path in ("a", "b"):
        data = (checkpoint / path).read_bytes()
        for place in range(len(data) * 8):
            flipped = bytearray(data)
            flipped[place // 8] ^= 1 << place % 8
            (checkpoint / path).write_bytes(flipped)
            assert verify(checkpoint).problems == (f"{path}: its bytes have changed since it was written",)
        (checkpoint / path).write_bytes(data)
    assert verify(checkpoint).good


def test_a_change_in_a_large_file_is_found_at_its_beginning_middle_and_end(tmp_path: Path) -> None:
    size = (8 << 20) + 1
    checkpoint = commit_checkpoint(tmp_path, 7, {"large": bytes(size)})
    for place in (0, size // 2, size - 1):
        with (checkpoint / "large").open("r+b") as file:
            file.seek(place)
            file.write(b"\1")
            file.flush()
            assert not verify(checkpoint).good
            file.seek(place)
            file.write(b"\0")
    assert verify(checkpoint).good


def test_a_look_at_names_and_sizes_alone_reads_no_bytes(tmp_path: Path) -> None:
    checkpoint = commit_checkpoint(tmp_path, 7)
    (checkpoint / "model.safetensors").write_bytes(b"WEIGHTS")
    assert verify(checkpoint, full=False).good and not verify(checkpoint).good
    (checkpoint / "model.safetensors").write_bytes(b"weights and more")
    assert verify(checkpoint, full=False).problems == ("model.safetensors: is 16 bytes long, was written with 7",)


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    checkpoint = commit_checkpoint(tmp_path, 7)
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "optimizer.pt").write_bytes(b"short")
    (checkpoint / "scheduler.pt").write_bytes(b"SCHEDULE")
    assert [problem.split(":")[0] for problem in verify(checkpoint).problems] == [
        "model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
    ]


def test_a_file_that_the_manifest_does_not_list_is_a_notice(tmp_path: Path) -> None:
    checkpoint = commit_checkpoint(tmp_path, 7)
    (checkpoint / "merged").mkdir()
    (checkpoint / "merged" / "model.safetensors").write_bytes(b"x")
    (checkpoint / "README.md").write_bytes(b"x")
    report = verify(checkpoint)
    assert report.good and report.unlisted == ("README.md", "merged/model.safetensors")
    assert report.notices[0] == "README.md: not in the manifest, and never read"


def test_what_lies_behind_a_link_to_a_folder_is_seen(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "deeper").mkdir(parents=True)
    (tmp_path / "elsewhere" / "adapter_model.bin").touch()
    checkpoint = commit_checkpoint(tmp_path, 7)
    (checkpoint / "adapter").symlink_to(tmp_path / "elsewhere")
    (checkpoint / "endless").symlink_to(checkpoint)
    (checkpoint / "nowhere").symlink_to(tmp_path / "nothing")
    assert {"adapter/adapter_model.bin", "nowhere"} <= set(verify(checkpoint).unlisted)


def test_a_name_that_would_move_the_cursor_or_is_no_text_is_shown_harmlessly(tmp_path: Path) -> None:
    checkpoint = commit_checkpoint(tmp_path, 7)
    (checkpoint / "a\x1b[2Jb").touch()
    Path(os.fsdecode(os.fsencode(checkpoint) + b"/c\xff")).touch()
    notices = verify(checkpoint).notices
    assert len(notices) == 2 and all(notice.isprintable() for notice in notices)


def replaced_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replaced_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replaced_by_link_to_itself(path: Path) -> None:
    path.rename(path.parent.parent / "moved")
    path.symlink_to(path.parent.parent / "moved")


@pytest.mark.parametrize("change", [replaced_by_fifo, replaced_by_folder, replaced_by_link_to_itself])
def test_a_file_that_is_no_regular_file_any_more_is_a_problem_and_never_waited_for(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    checkpoint = commit_checkpoint(tmp_path, 7)
    change(checkpoint / "optimizer.pt")
    (problem,) = verify(checkpoint).problems
    assert problem.startswith("optimizer.pt: cannot be read")


def test_a_folder_of_it_that_became_a_link_is_a_problem(tmp_path: Path) -> None:
    checkpoint = commit_checkpoint(tmp_path, 7, {**RESUMABLE, "folder/part": b"x"})
    (checkpoint / "folder").rename(tmp_path / "moved")
    (checkpoint / "folder").symlink_to(tmp_path / "moved")
    (problem,) = verify(checkpoint).problems
    assert problem.startswith("folder/part: cannot be read")


def test_what_is_not_there_or_not_a_checkpoint_is_no_good(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not verify(tmp_path / "missing").good
    assert not verify(tmp_path / "file").good
    assert not verify(tmp_path).good
