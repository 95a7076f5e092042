from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.memory_store import MemoryStore
from helpers.remote import start
from helpers.support import RUN, commit_checkpoint, content_of
from holdfast.errors import DamagedCheckpointError, MirrorError, MirrorTakenError, MirrorUnavailableError
from holdfast.remote import keys, terms
from holdfast.remote.download import download
from holdfast.remote.keys import CheckpointKey
from holdfast.remote.listing import listing_of, manifest_of
from holdfast.remote.upload import upload
from holdfast.store import catalog, names
from holdfast.store.folder import Folder

CONTENT = {"a": bytes(5 << 20), "b/c": b"", "d": b"d"}


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def sent(store: MemoryStore, checkpoint: Path, claimed: int | None, term: int = 1) -> CheckpointKey:
    with Folder.open(checkpoint) as folder:
        return upload(store, folder, term, claimed)


def test_what_is_sent_comes_back_as_it_was(tmp_path: Path, store: MemoryStore) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    checkpoint = commit_checkpoint(tmp_path / "one", 7, CONTENT)
    key = sent(store, checkpoint, start(store))
    assert [each.key for each in listing_of(store, RUN).published] == [key]
    arrived = download(store, key, tmp_path / "two")
    assert content_of(arrived) == content_of(checkpoint)


def test_progress_is_of_every_byte_once_sent_or_there(tmp_path: Path, store: MemoryStore) -> None:
    checkpoint = commit_checkpoint(tmp_path, 7, CONTENT)
    heard: list[int] = []
    with Folder.open(checkpoint) as folder:
        for _ in range(2):
            upload(store, folder, 1, None, heard.append)
    assert heard == [4 << 20, 1 << 20, 1, 5 << 20, 0, 1]


def test_an_earlier_start_sends_nothing_once_a_later_one_has_the_run(tmp_path: Path, store: MemoryStore) -> None:
    checkpoint, first, second = commit_checkpoint(tmp_path, 7), start(store), start(store, host="the other")
    assert (first, second) == (1, 2)
    with pytest.raises(MirrorTakenError, match=r"taken over by a later start on 'the other' \(term 2, .* term 1\)"):
        sent(store, checkpoint, first)
    assert listing_of(store, RUN).checkpoints == ()
    assert sent(store, checkpoint, second, term=first).term == first  # what an earlier start has left on this disk
    assert sent(store, checkpoint, claimed=None, term=0).term == 0


def test_what_is_sent_by_hand_may_count_for_less_than_its_manifest_says_and_never_for_more(
    tmp_path: Path, store: MemoryStore
) -> None:
    checkpoint = commit_checkpoint(tmp_path, 7, term=2)
    for term in (0, 1, 2):
        assert manifest_of(store, sent(store, checkpoint, None, term))[1].term == 2
    with pytest.raises(DamagedCheckpointError, match="that of another checkpoint"):
        manifest_of(store, sent(store, checkpoint, None, 3))


def test_bytes_that_changed_on_the_disk_are_never_there(tmp_path: Path, store: MemoryStore) -> None:
    checkpoint = commit_checkpoint(tmp_path, 7, CONTENT)
    changed = bytearray(CONTENT["a"])
    changed[-1] = 1
    (checkpoint / "a").write_bytes(changed)
    with pytest.raises(DamagedCheckpointError, match="a: its bytes have changed since it was written"):
        sent(store, checkpoint, None)
    assert store.objects == {}
    (checkpoint / "a").write_bytes(b"short")
    with pytest.raises(DamagedCheckpointError, match="a: is 5 bytes long"):
        sent(store, checkpoint, None)
    (checkpoint / names.MANIFEST).write_bytes(b"{}")
    with pytest.raises(DamagedCheckpointError, match="cut short"):
        sent(store, checkpoint, None)
    assert store.objects == {}


def test_a_file_that_does_not_arrive_is_seen_before_the_manifest_is_sent(tmp_path: Path) -> None:
    class Losing(MemoryStore):
        def put_file(self, key: str, size: int, blocks: Iterator[bytes]) -> None:
            if not key.endswith("/d"):
                super().put_file(key, size, blocks)

    store = Losing()
    with pytest.raises(MirrorUnavailableError, match="has not all that was sent: d: is missing"):
        sent(store, commit_checkpoint(tmp_path, 7, CONTENT), None)
    assert listing_of(store, RUN).published == []


def test_another_manifest_under_the_name_is_told(tmp_path: Path, store: MemoryStore) -> None:
    checkpoint = commit_checkpoint(tmp_path, 7)
    key = sent(store, checkpoint, None)
    store.objects[key.manifest] = b"another"
    with pytest.raises(DamagedCheckpointError, match="another checkpoint"):
        sent(store, checkpoint, None)


def test_what_is_deleted_there_is_not_sent_again(tmp_path: Path, store: MemoryStore) -> None:
    checkpoint = commit_checkpoint(tmp_path, 7)
    store.put_absent(keys.pin(RUN, attempt_of(checkpoint)), b"deleted")
    with pytest.raises(MirrorError, match="has deleted this checkpoint"):
        sent(store, checkpoint, None)
    assert list(store.objects) == [keys.pin(RUN, attempt_of(checkpoint))]


def attempt_of(checkpoint: Path) -> str:
    manifest = catalog.read(checkpoint).manifest
    assert manifest is not None
    return manifest.attempt


def test_a_claim_while_the_manifest_is_sent_is_seen_before_anything_is_said(tmp_path: Path) -> None:
    class Claiming(MemoryStore):
        def put_absent(self, key: str, data: bytes) -> bool:
            stored = super().put_absent(key, data)
            if key.endswith(names.MANIFEST):
                super().put_absent(keys.term(RUN, 2), b"another start")
            return stored

    store = Claiming()
    claimed = start(store)
    with pytest.raises(MirrorTakenError, match="taken over by a later start"):
        sent(store, commit_checkpoint(tmp_path, 7), claimed)
    assert terms.claim_of(store, RUN, 2) is None
