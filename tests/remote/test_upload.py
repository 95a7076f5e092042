from pathlib import Path

import pytest

from helpers.memory_store import MemoryStore
from helpers.support import RUN, commit_checkpoint, content_of
from holdfast.errors import MirrorTakenError
from holdfast.remote import terms
from holdfast.remote.download import download
from holdfast.remote.listing import listing_of
from holdfast.remote.terms import Claim
from holdfast.remote.upload import upload
from holdfast.store.folder import Folder


def start(token: str = "c" * 32, parent: str | None = None) -> Claim:
    return Claim(RUN, token, "a host", parent, 1.0)


def test_what_is_sent_comes_back_as_it_was(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    store, content = MemoryStore(), {"a": bytes(5 << 20), "b/c": b"", "d": b"d"}
    checkpoint = commit_checkpoint(tmp_path / "one", 7, content)
    with Folder.open(checkpoint) as folder:
        key = upload(store, folder, terms.claim(store, start()))
    assert [each.key for each in listing_of(store, RUN).published] == [key]
    arrived = download(store, key, tmp_path / "two")
    assert content_of(arrived) == content_of(checkpoint)


def test_an_earlier_start_sends_nothing_once_a_later_one_has_the_run(tmp_path: Path) -> None:
    store, checkpoint = MemoryStore(), commit_checkpoint(tmp_path, 7)
    first, second = terms.claim(store, start()), terms.claim(store, start("d" * 32))
    assert (first, second) == (1, 2)
    with Folder.open(checkpoint) as folder, pytest.raises(MirrorTakenError, match="taken over"):
        upload(store, folder, first)
    assert listing_of(store, RUN).checkpoints == ()


def test_a_place_belongs_to_one_run() -> None:
    store = MemoryStore()
    assert terms.owner_of(store) is None
    terms.take_place(store, RUN)
    terms.take_place(store, RUN)
    with pytest.raises(MirrorTakenError, match=RUN):
        terms.take_place(store, "f" * 32)
