import errno
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.support import content_of
from holdfast.errors import AbsentError, MirrorAccessError, MirrorUnavailableError
from holdfast.remote.directory import DirectoryStore
from holdfast.store import files


def store_at(path: Path) -> DirectoryStore:
    return DirectoryStore(path, path.as_uri())


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return store_at(tmp_path / "mirror")


def put(store: DirectoryStore, key: str, data: bytes = b"content") -> None:
    store.put_file(key, len(data), iter([data]))


def test_of_a_mirror_only_the_last_directory_is_made(tmp_path: Path) -> None:
    missing = store_at(tmp_path / "disk" / "mirror")
    for do in (lambda: put(missing, "a"), lambda: [*missing.listed()], lambda: missing.get_range("a", 0, 1)):
        with pytest.raises(MirrorAccessError, match="there is no directory") as caught:
            do()
        assert "mount the disk" in str(caught.value.hint)
    (tmp_path / "disk").mkdir()
    assert [*missing.listed()] == []
    assert not (tmp_path / "disk" / "mirror").exists(), "who only looks makes nothing"
    put(missing, "a")
    assert (tmp_path / "disk" / "mirror").stat().st_mode & 0o777 == 0o700


def test_a_directory_that_goes_is_not_taken_for_an_empty_one(store: DirectoryStore, tmp_path: Path) -> None:
    put(store, "a")
    (tmp_path / "mirror").rename(tmp_path / "away")
    for do in (lambda: put(store, "b"), lambda: [*store.listed()], lambda: store.get_range("a", 0, 1)):
        with pytest.raises(MirrorUnavailableError, match="is not any more"):
            do()
    (tmp_path / "away").rename(tmp_path / "mirror")
    assert store.get_range("a", 0, 100) == b"content"


def test_an_object_has_its_name_only_once_it_is_synced(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, rename, link = os.fsync, os.rename, os.link

    def synced(fd: int) -> None:
        done.append(f"sync {Path(f'/proc/self/fd/{fd}').readlink().name}")
        fsync(fd)

    def named(call: Any, source: str, target: str, **options: Any) -> None:
        done.append(f"name {target}")
        call(source, target, **options)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", lambda *names, **options: named(rename, *names, **options))
    monkeypatch.setattr(os, "link", lambda *names, **options: named(link, *names, **options))
    put(store, "a/b/c")
    made, incoming, *rest = done
    assert made.startswith("sync test_") and len(incoming.removeprefix("sync ")) == 32
    assert rest == ["name c", "sync b", "sync a", "sync mirror"], "the file, its name, and those of its directories"
    done.clear()
    assert store.put_absent("a/b/d", b"mine")
    assert done[1:] == ["name d", "sync b", "sync a", "sync mirror"]
    done.clear()
    assert store.put_absent("a/b/d", b"mine")
    assert done[2:] == ["sync b", "sync a", "sync mirror"], "an earlier try may not have come so far"


def test_what_a_killed_writer_leaves_is_no_object_and_is_swept(store: DirectoryStore, tmp_path: Path) -> None:
    program = (
        "import sys, os, pathlib; from holdfast.remote.directory import DirectoryStore\n"
        "def blocks():\n    yield b'half'\n    print('half', flush=True)\n    sys.stdin.read()\n"
        f"DirectoryStore(pathlib.Path({str(tmp_path / 'mirror')!r}), '').put_file('a/b', 8, blocks())\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert writer.stdout and writer.stdout.readline() == "half\n"
    incoming = tmp_path / "mirror" / ".incoming"
    put(store, "c")
    assert len([*incoming.iterdir()]) == 1, "that of a writer that is alive stays"
    writer.kill()
    writer.communicate()
    assert [item.key for item in store.listed()] == ["c"]
    put(store_at(tmp_path / "mirror"), "d")
    assert [*incoming.iterdir()] == []


def test_no_link_is_followed(store: DirectoryStore, tmp_path: Path) -> None:
    put(store, "a/b")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "secret").write_text("secret")
    (tmp_path / "mirror" / "linked").symlink_to(tmp_path / "other")
    (tmp_path / "mirror" / "a" / "c").symlink_to(tmp_path / "other" / "secret")
    for do in (
        lambda: put(store, "linked/x"),
        lambda: store.put_absent("linked/x", b""),
        lambda: store.get_range("linked/secret", 0, 10),
        lambda: store.get_range("a/c", 0, 10),
        lambda: [*store.listed()],
        lambda: store.delete("linked/secret"),
    ):
        with pytest.raises(MirrorAccessError):
            do()
    store.put_file("a/c", 3, iter([b"new"]))
    assert content_of(tmp_path / "other") == {"secret": b"secret"}
    assert store.get_range("a/c", 0, 10) == b"new"


@pytest.mark.parametrize("key", ["../x", "a/../../x", "a//b", "", "/a", "a/.", ".incoming/x", "a\0b"])
def test_no_key_leads_elsewhere(store: DirectoryStore, key: str) -> None:
    for do in (
        lambda: put(store, key),
        lambda: store.put_absent(key, b""),
        lambda: store.get_range(key, 0, 1),
        lambda: store.delete(key),
    ):
        with pytest.raises(ValueError, match="is no key"):
            do()


def test_directories_that_are_empty_go_while_others_put_into_them(store: DirectoryStore, tmp_path: Path) -> None:
    ended = threading.Event()

    def delete_all() -> None:
        while not ended.is_set():
            for item in [*store.listed("a/")]:
                store.delete(item.key)

    deleter = threading.Thread(target=delete_all)
    deleter.start()
    try:
        for number in range(50):
            try:
                put(store, f"a/{number % 3}/b")
            except MirrorUnavailableError:
                continue  # deleted between its name and its sync: it is not said to be there
    finally:
        ended.set()
        deleter.join()
    for item in [*store.listed()]:
        store.delete(item.key)
    assert [path.name for path in (tmp_path / "mirror").iterdir()] == [".incoming"]


def test_a_file_system_without_hard_links_is_refused(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*names: Any, **options: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(MirrorAccessError, match="hard links"):
        store.put_absent("a", b"1")
    with pytest.raises(AbsentError):
        store.get_range("a", 0, 1)


@pytest.mark.parametrize(
    ("number", "error", "words"),
    [
        (errno.ENOSPC, MirrorUnavailableError, "is full"),
        (errno.EDQUOT, MirrorUnavailableError, "is full"),
        (errno.EIO, MirrorUnavailableError, "Input/output"),
        (errno.ESTALE, MirrorUnavailableError, "Stale"),
        (errno.EROFS, MirrorAccessError, "Read-only"),
    ],
)
def test_a_disk_that_refuses_is_said_and_nothing_is_there(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, number: int, error: type, words: str
) -> None:
    def write(fd: int, data: bytes) -> None:
        raise OSError(number, os.strerror(number))

    put(store, "there")
    monkeypatch.setattr(files, "write_all", write)
    for do in (lambda: put(store, "a"), lambda: store.put_absent("b", b"1")):
        with pytest.raises(error, match=words):
            do()
    assert [item.key for item in store.listed()] == ["there"]


def test_a_disk_that_is_full_in_the_middle_of_a_file(store: DirectoryStore) -> None:
    def blocks() -> Iterator[bytes]:
        for _ in range(64):
            yield bytes(1 << 16)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))  # the kernel's own answer, though of a file's limit
    try:
        with pytest.raises(MirrorUnavailableError, match="File too large"):
            store.put_file("a", 64 << 16, blocks())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [*store.listed()] == []
