import itertools
import os
import socket
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from helpers.support import (
    RESUMABLE,
    RUN,
    commit_checkpoint,
    content_of,
    every_crash,
    manifest,
    meets_error_at,
    stage,
)
from holdfast.errors import LeaseLostError
from holdfast.store import catalog, digest, files, names, retention
from holdfast.store.commit import Attempt, Published, marked, open_marked
from holdfast.store.folder import Where, path_of
from holdfast.store.manifest import ManifestError, decode
from holdfast.store.verify import verify


def staged(root: Path, step: int = 7, content: Mapping[str, bytes] = RESUMABLE) -> Attempt:
    attempt = Attempt(root, RUN, step)
    stage(attempt.folder.path, content)
    return attempt


def publish(attempt: Attempt, fence: Callable[[], None] = lambda: None) -> Published:
    sealed = attempt.seal(digest.of_descriptor)
    sequence = catalog.next_sequence(catalog.entries(attempt.root), RUN)
    return attempt.publish(manifest(attempt.step, attempt=attempt.token, files=sealed, sequence=sequence), fence)


def test_a_commit_makes_one_directory_that_verifies_and_holds_what_was_staged(tmp_path: Path) -> None:
    attempt = staged(tmp_path)
    published = publish(attempt)
    assert published == Published(tmp_path / "checkpoint-7", durable=True)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-7"]
    report = verify(published.path)
    assert report.good and not report.notices
    found = content_of(published.path)
    assert decode(found.pop("MANIFEST.json")).attempt == attempt.token
    assert found == RESUMABLE


def test_what_is_staged_lies_under_a_name_that_nobody_takes_for_a_checkpoint(tmp_path: Path) -> None:
    attempt = staged(tmp_path)
    assert names.is_staging(attempt.folder.path.name) and attempt.folder.path.parent == tmp_path
    assert catalog.entries(tmp_path) == [] and not list(tmp_path.glob("checkpoint-*"))


def test_a_run_directory_may_be_a_link_to_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for _ in range(2):
        assert publish(staged(tmp_path / "link")).durable
    assert all(verify(entry.path).good for entry in catalog.entries(tmp_path / "real"))
    retention.sweep(tmp_path / "link", tmp_path / "link" / ".holdfast")


def test_no_two_attempts_share_a_name(tmp_path: Path) -> None:
    assert staged(tmp_path).folder.path != staged(tmp_path).folder.path


def test_files_are_listed_by_name_with_size_and_digest_folders_included(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, RUN, 7)
    stage(attempt.folder.path, {"b": b"", "a": b"abc", "folder/inner/.metadata": b"x"})
    sealed = attempt.seal(digest.of_descriptor)
    assert [(file.path, file.size) for file in sealed] == [("a", 3), ("b", 0), ("folder/inner/.metadata", 1)]
    assert sealed[0].digests == "06b05ab6733a618578af5f94892f3950", "what xxhsum -H2 says of 'abc'"


def test_whatever_the_writer_left_is_its_owners_alone(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, RUN, 7)
    (attempt.folder.path / "folder").mkdir(mode=0o777)
    (attempt.folder.path / "folder" / "file").write_bytes(b"x")
    for path in (attempt.folder.path, *attempt.folder.path.rglob("*")):
        path.chmod(0o777)
    published = publish(attempt).path
    modes = {p.name: stat.S_IMODE(p.lstat().st_mode) for p in (published, *published.rglob("*"))}
    assert modes == {"checkpoint-7": 0o700, "folder": 0o700, "file": 0o600, "MANIFEST.json": 0o600}


def leave_link(folder: Path) -> None:
    (folder / "odd").symlink_to("model.safetensors")


def leave_link_to_folder(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir()
    (folder / "odd").symlink_to(folder.parent / "elsewhere")


def leave_fifo(folder: Path) -> None:
    os.mkfifo(folder / "odd")


def leave_socket(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(folder)  # a socket's path has at most 108 bytes
        made.bind("odd")
        os.chdir(here)


def leave_hard_link(folder: Path) -> None:
    (folder / "odd").hardlink_to(folder / "model.safetensors")


def leave_hidden(folder: Path) -> None:
    (folder / ".hidden").write_bytes(b"x")


def leave_deep(folder: Path) -> None:
    (folder / "a/b/c/d").mkdir(parents=True)
    (folder / "a/b/c/d/e").write_bytes(b"x")


def leave_line_end(folder: Path) -> None:
    (folder / "a\nb").write_bytes(b"x")


def leave_no_text(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff")).write_bytes(b"x")


def leave_manifest(folder: Path) -> None:
    (folder / "MANIFEST.json").write_bytes(b"{}")


def leave_twins(folder: Path) -> None:
    (folder / "twin").write_bytes(b"x")
    (folder / "TWIN").write_bytes(b"x")


@pytest.mark.parametrize(
    "leave",
    [
        leave_link,
        leave_link_to_folder,
        leave_fifo,
        leave_socket,
        leave_hard_link,
        leave_hidden,
        leave_deep,
        leave_line_end,
        leave_no_text,
        leave_manifest,
        leave_twins,
    ],
)
def test_what_a_manifest_could_not_vouch_for_is_not_published(tmp_path: Path, leave: Callable[[Path], None]) -> None:
    before = commit_checkpoint(tmp_path, 6)
    attempt = staged(tmp_path)
    leave(attempt.folder.path)
    with pytest.raises((OSError, ManifestError)):
        publish(attempt)
    attempt.discard()
    assert not (tmp_path / "checkpoint-7").exists() and not list(tmp_path.glob(".tmp-*"))
    assert verify(before).good


def test_an_empty_checkpoint_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="lists 0 files"):
        publish(Attempt(tmp_path, RUN, 7))
    assert not (tmp_path / "checkpoint-7").exists()


def test_a_manifest_that_could_not_be_read_again_is_not_published(tmp_path: Path) -> None:
    attempt = staged(tmp_path)
    sealed = attempt.seal(digest.of_descriptor)
    with pytest.raises(ManifestError, match="'sequence' is out of range"):
        attempt.publish(manifest(attempt=attempt.token, files=sealed, sequence=2**63), lambda: None)
    assert not (tmp_path / "checkpoint-7").exists()


def test_the_fence_is_asked_when_all_is_written_and_nothing_is_published(tmp_path: Path) -> None:
    attempt = staged(tmp_path)
    seen = []
    publish(attempt, lambda: seen.append((tmp_path / "checkpoint-7").exists()) or verify_staged(attempt))  # type: ignore[func-returns-value]
    assert seen == [False]


def verify_staged(attempt: Attempt) -> None:
    assert verify(attempt.folder.path).good


def test_a_process_that_the_fence_stops_publishes_nothing_and_moves_nothing(tmp_path: Path) -> None:
    before = commit_checkpoint(tmp_path, 7)
    attempt = staged(tmp_path)

    def fence() -> None:
        raise LeaseLostError("taken over")

    with pytest.raises(LeaseLostError):
        publish(attempt, fence)
    attempt.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-7"]
    assert verify(before).good


def test_a_name_that_is_taken_is_given_up_by_the_earlier_checkpoint_which_stays_good(tmp_path: Path) -> None:
    before = commit_checkpoint(tmp_path, 7, {**RESUMABLE, "model.safetensors": b"earlier"})
    token = decode((before / "MANIFEST.json").read_bytes()).attempt
    published = publish(staged(tmp_path))
    superseded = tmp_path / f"superseded-7-{token}"
    assert verify(superseded).good and verify(published.path).good
    assert (superseded / "model.safetensors").read_bytes() == b"earlier"
    assert (published.path / "model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize("kind", ["foreign", "empty", "file", "link", "damaged"])
def test_nothing_that_has_the_name_is_replaced(tmp_path: Path, kind: str) -> None:
    taken = tmp_path / "checkpoint-7"
    if kind == "file":
        taken.write_bytes(b"mine")
    elif kind == "link":
        taken.symlink_to("nowhere")
    else:
        taken.mkdir()
    if kind in ("foreign", "damaged"):
        (taken / "trainer_state.json").write_bytes(b"{}")
    if kind == "damaged":
        (taken / "MANIFEST.json").write_bytes(b"{}")
    before = content_of(tmp_path)
    published = publish(staged(tmp_path))
    (superseded,) = tmp_path.glob("superseded-7-*")
    assert verify(published.path).good
    kept = {name.replace(superseded.name, "checkpoint-7"): data for name, data in content_of(tmp_path).items()}
    assert {name: kept[name] for name in before if "MANIFEST" not in name} == {
        name: data for name, data in before.items() if "MANIFEST" not in name
    }


def test_fault_17_46_a_published_checkpoint_is_never_written_to_again(tmp_path: Path) -> None:
    """A step is committed twice; the files of the first are compared by inode and time."""
    before = commit_checkpoint(tmp_path, 7)
    inodes = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in before.iterdir()}
    publish(staged(tmp_path))
    (superseded,) = tmp_path.glob("superseded-7-*")
    assert {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in superseded.iterdir()} == inodes


def test_discard_leaves_nothing_and_may_be_repeated(tmp_path: Path) -> None:
    attempt = staged(tmp_path)
    for _ in range(2):
        attempt.discard()
        assert not list(tmp_path.iterdir())


# Few files: each is a dozen crashes.
EARLIER = {"model.safetensors": b"earlier weights"}
LATER = {"model.safetensors": b"weights", "folder/part": b"part"}


def good_models(root: Path) -> list[bytes]:
    """The weights of every checkpoint that verifies, newest commit first; anything else in the catalog is a failure."""
    reports = [verify(entry.path) for entry in catalog.entries(root)]
    assert all(report.good and not report.notices for report in reports), reports
    return [(report.entry.path / "model.safetensors").read_bytes() for report in reports]


@pytest.mark.parametrize("step", [7, 8], ids=["of the same step", "of a later step"])
def test_a_crash_at_any_change_leaves_the_earlier_checkpoint_and_the_whole_new_one_or_none(
    tmp_path: Path, step: int
) -> None:
    seen = []
    for root in every_crash(
        tmp_path, lambda root: commit_checkpoint(root, 7, EARLIER), lambda root: commit_checkpoint(root, step, LATER)
    ):
        left = good_models(root)
        assert left in ([b"earlier weights"], [b"weights", b"earlier weights"]), left
        litter = bool(list(root.glob(".tmp-*")))
        retention.sweep(root, root / ".holdfast")
        assert good_models(root) == left, "the sweep changed what was good"
        assert not list(root.glob(".*"))
        seen.append((len(left), litter))
    assert (1, True) in seen, "no crash left anything staged: the test shows nothing"
    assert seen[-1] == (2, False) and sorted(seen, key=lambda state: state[0]) == seen


def test_a_crash_at_any_change_of_a_recovery_leaves_what_was_good(tmp_path: Path) -> None:
    def prepare(root: Path) -> None:
        commit_checkpoint(root, 7, EARLIER)
        staged(root, 8, LATER)
        (root / names.trash("0" * 32)).mkdir()
        stage(root / names.trash("0" * 32), LATER)
        (root / names.temporary("model.safetensors", 1)).write_bytes(b"half")

    for root in every_crash(tmp_path, prepare, lambda root: retention.sweep(root, root / ".holdfast")):
        assert good_models(root) == [b"earlier weights"]
        retention.sweep(root, root / ".holdfast")
        assert [path.name for path in root.iterdir()] == ["checkpoint-7"]


@pytest.mark.parametrize("step", [7, 8], ids=["of the same step", "of a later step"])
def test_an_error_at_any_change_ends_the_attempt_and_leaves_the_earlier_checkpoint(tmp_path: Path, step: int) -> None:
    def save(root: Path) -> None:
        try:
            attempt = Attempt(root, RUN, step)
        except OSError:
            return
        try:
            stage(attempt.folder.path, LATER)
            publish(attempt)
        except OSError as error:
            attempt.discard()
            (root / "said").write_text(str(error))
        else:
            (root / "said").write_text("saved")

    for count in itertools.count(1):
        root = tmp_path / str(count)
        root.mkdir()
        commit_checkpoint(root, 7, EARLIER)
        failed = meets_error_at(count, lambda root=root: save(root))  # type: ignore[misc]
        left = good_models(root)
        assert left in ([b"earlier weights"], [b"weights", b"earlier weights"]) and not list(root.glob(".tmp-*"))
        said = (root / "said").read_text() if (root / "said").exists() else ""
        assert (said == "saved") == (not failed), "saved was said although something failed"
        if failed and len(left) == 2:
            assert "is there, but may not survive a power cut" in said
        if not failed:
            assert count > 20 and len(left) == 2
            return


def test_another_process_knows_the_staging_directory_by_its_mark_and_writes_into_no_other(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, RUN, 7)
    place = attempt.folder.path
    with marked(attempt.folder) as mark:
        with open_marked(place, mark) as folder:
            assert folder.is_at(place)
        place.rename(tmp_path / "aside")
        place.mkdir()
        (place / "staged-by-rank-0").write_text("0" * 32)
        with pytest.raises(OSError, match="is not the directory that rank 0 has made"), open_marked(place, mark):
            pass
        (place / "staged-by-rank-0").unlink()
        with pytest.raises(FileNotFoundError), open_marked(place, mark):
            pass
    assert not list((tmp_path / "aside").iterdir()), "the mark is no file of the checkpoint"


def test_a_file_system_that_keeps_no_modes_takes_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = files.make_directory

    def shown_as_0755(where: Where) -> None:
        make(where)
        path_of(where).chmod(0o755)

    monkeypatch.setattr(files, "make_directory", shown_as_0755)
    assert verify(publish(staged(tmp_path)).path).good
