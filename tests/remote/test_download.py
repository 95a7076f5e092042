import errno
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from helpers.memory_store import MemoryStore
from helpers.support import commit_checkpoint, content_of
from holdfast.errors import AbsentError, DamagedCheckpointError, NoSpaceError
from holdfast.remote.download import download
from holdfast.remote.keys import CheckpointKey
from holdfast.remote.upload import upload
from holdfast.store import files, names
from holdfast.store.folder import Folder
from holdfast.store.manifest import decode
from holdfast.store.verify import verify

CONTENT = {"a": os.urandom(9 << 20), "b/c": b"", "b/d": b"d", "e": os.urandom(4 << 20)}


class Sent:
    """A checkpoint that was sent, and an empty run directory."""

    def __init__(self, root: Path, store: MemoryStore) -> None:
        for name in ("there", "here"):
            (root / name).mkdir()
        self.store, self.here = store, root / "here"
        self.checkpoint = commit_checkpoint(root / "there", 7, CONTENT)
        with Folder.open(self.checkpoint) as folder:
            self.key: CheckpointKey = upload(store, folder, 1, None)

    def is_nothing_left(self) -> bool:
        return list(self.here.iterdir()) == []


@pytest.fixture
def sent(tmp_path: Path) -> Sent:
    return Sent(tmp_path, MemoryStore())


def test_it_is_what_was_sent_with_modes_of_our_own(sent: Sent) -> None:
    heard: list[int] = []
    with Folder.open(sent.here) as root:
        path = download(sent.store, sent.key, root, heard.append)
    assert path == sent.here / "checkpoint-7" and verify(path).good
    assert content_of(path) == content_of(sent.checkpoint)
    assert sum(heard) == sum(map(len, CONTENT.values()))
    assert {oct(each.stat().st_mode & 0o777) for each in path.rglob("*") if each.is_file()} == {"0o600"}


def test_several_blocks_are_fetched_at_once(tmp_path: Path) -> None:
    class Waiting(MemoryStore):
        both = threading.Barrier(2, timeout=30)

        def get_range(self, key: str, start: int, end: int) -> bytes:
            if key.endswith("/a") and start < 8 << 20:
                self.both.wait()
            return super().get_range(key, start, end)

    sent = Sent(tmp_path, Waiting())
    assert verify(download(sent.store, sent.key, sent.here)).good


def test_what_has_the_name_makes_way_and_what_was_cut_off_goes(sent: Sent) -> None:
    other = commit_checkpoint(sent.here, 7)
    before = content_of(other)
    left = sent.here / names.staging(sent.key.run, 7, sent.key.attempt)
    (left / "b").mkdir(parents=True)
    (left / "b" / "c").write_bytes(b"half")
    assert verify(download(sent.store, sent.key, sent.here)).good
    moved, pulled = sorted(sent.here.iterdir(), key=lambda path: path.name, reverse=True)
    assert (pulled.name, content_of(moved)) == ("checkpoint-7", before)


@pytest.mark.parametrize("path", ["a/x", "b"])
def test_a_manifest_with_a_file_inside_of_a_file_is_damage_and_not_the_disks_fault(sent: Sent, path: str) -> None:
    there = decode(sent.store.objects[sent.key.manifest])
    sent.store.objects[sent.key.of(path)] = b"d"
    made_up = replace(there.files[2], path=path)
    sent.store.objects[sent.key.manifest] = replace(there, files=(*there.files, made_up)).encode()
    with (
        Folder.open(sent.here) as root,
        pytest.raises(DamagedCheckpointError, match=f"{path}: the manifest has another"),
    ):
        download(sent.store, sent.key, root)
    assert sent.is_nothing_left()


@pytest.mark.parametrize("path", ["a", "b/d", names.MANIFEST])
@pytest.mark.parametrize("change", ["altered", "cut short", "gone"])
def test_what_is_not_what_was_sent_is_nothing_here(sent: Sent, path: str, change: str) -> None:
    key = sent.key.of(path)
    data = sent.store.objects.pop(key)
    if change != "gone":
        sent.store.objects[key] = data[:-1] + (b"" if change == "cut short" else bytes([data[-1] ^ 1]))
    with pytest.raises(AbsentError if change == "gone" else DamagedCheckpointError):
        download(sent.store, sent.key, sent.here)
    assert sent.is_nothing_left()


def test_a_disk_without_room_is_told_before_anything_is_fetched(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "free_space", lambda root: (13 << 20, -1))
    with pytest.raises(
        NoSpaceError, match=r"checkpoint-7 of memory:// has 13,631,489 bytes, and .* has 13,631,488 free"
    ):
        download(sent.store, sent.key, sent.here)
    assert sent.is_nothing_left()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_disk_that_fails_ends_it_and_nothing_is_left(sent: Sent, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fails(*arguments: Any) -> NoReturn:
        raise OSError(errno.EIO, "it fails")

    before = descriptors()
    monkeypatch.setattr(os, call, fails)
    with pytest.raises(OSError, match="it fails"):
        download(sent.store, sent.key, sent.here)
    assert sent.is_nothing_left() and descriptors() == before


def test_once_it_has_its_name_it_stays(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    real = files.sync_directory

    def fails(directory: Any) -> bool:
        if directory == sent.here:
            raise OSError(errno.EIO, "it fails")
        return real(directory)

    monkeypatch.setattr(files, "sync_directory", fails)
    with pytest.raises(OSError, match="it fails"):
        download(sent.store, sent.key, sent.here)
    assert verify(sent.here / "checkpoint-7").good
