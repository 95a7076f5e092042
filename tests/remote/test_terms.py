import pytest

from helpers.memory_store import MemoryStore
from helpers.remote import a_claim, start
from helpers.support import OTHER_RUN, RUN
from holdfast.errors import MirrorAccessError, MirrorTakenError
from holdfast.remote import keys, pins, terms
from holdfast.remote.keys import CheckpointKey
from holdfast.remote.listing import listing_of
from holdfast.remote.terms import Claimed
from holdfast.store import names


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def test_a_place_belongs_to_one_run(store: MemoryStore) -> None:
    assert terms.owner_of(store) is None
    terms.take_place(store, RUN)
    terms.take_place(store, RUN)
    assert terms.owner_of(store) == RUN
    with pytest.raises(MirrorTakenError, match=f"run {RUN}, and this is run {OTHER_RUN}"):
        terms.take_place(store, OTHER_RUN)


@pytest.mark.parametrize(
    "content", [b"", b"nothing of ours\x1b[2J", bytes(70 << 10)], ids=["nothing", "text", "too large"]
)
def test_an_owner_that_is_none_is_told(store: MemoryStore, content: bytes) -> None:
    store.put_absent(keys.OWNER, content)
    with pytest.raises(MirrorAccessError, match=f"{keys.OWNER} that is none of Holdfast's") as raised:
        terms.owner_of(store)
    assert str(raised.value).isprintable()


def test_a_claim_says_who_it_is(store: MemoryStore) -> None:
    claim = a_claim("b" * 32)
    assert terms.claim(store, claim, listing_of(store, RUN)) == Claimed(1, is_current=True)
    assert terms.claim_of(store, RUN, 1) == claim
    assert terms.claim_of(store, RUN, 2) is None


def test_of_starts_that_saw_the_same_one_gets_the_number(store: MemoryStore) -> None:
    seen = listing_of(store, RUN)
    claims = [terms.claim(store, a_claim(), seen) for _ in range(3)]
    assert claims == [Claimed(1, is_current=True), Claimed(None, False), Claimed(None, False)]
    assert terms.claim(store, a_claim(), listing_of(store, RUN)) == Claimed(2, is_current=True)


def test_a_number_is_greater_than_that_of_every_checkpoint(store: MemoryStore) -> None:
    store.put_absent(CheckpointKey(RUN, 4, 1, "a" * 32).manifest, b"")
    assert start(store) == 5


def test_what_was_published_since_it_was_looked_is_to_be_looked_at(store: MemoryStore) -> None:
    seen = listing_of(store, RUN)
    store.put_absent(CheckpointKey(RUN, 0, 1, "a" * 32).of("weights"), b"")
    assert terms.claim(store, a_claim(), seen) == Claimed(1, is_current=True)
    seen = listing_of(store, RUN)
    store.put_absent(CheckpointKey(RUN, 0, 1, "a" * 32).manifest, b"")
    assert terms.claim(store, a_claim(), seen) == Claimed(2, is_current=False)


def test_a_claim_by_another_since_then_too(store: MemoryStore) -> None:
    class Busy(MemoryStore):
        def put_absent(self, key: str, data: bytes) -> bool:
            stored = super().put_absent(key, data)
            super().put_absent(keys.term(RUN, 2), b"{}")
            return stored

    busy = Busy()
    assert terms.claim(busy, a_claim(), listing_of(busy, RUN)) == Claimed(1, is_current=False)


def test_a_choice_that_is_deleted_since_then_is_to_be_made_again(store: MemoryStore) -> None:
    store.put_absent(CheckpointKey(RUN, 0, 1, "a" * 32).manifest, b"")
    seen = listing_of(store, RUN)
    pins.doom(store, RUN, "a" * 32)
    assert terms.claim(store, a_claim("a" * 32), seen) == Claimed(1, is_current=False)
    assert terms.claim(store, a_claim("a" * 32), listing_of(store, RUN)) == Claimed(2, is_current=True)


def test_a_number_that_somebody_made_up_is_told(store: MemoryStore) -> None:
    store.put_absent(keys.term(RUN, names.NUMBERS_END - 1), b"")
    with pytest.raises(MirrorAccessError, match="no greater one is left"):
        start(store)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", a_claim().encode().replace(RUN.encode(), OTHER_RUN.encode()), bytes(70 << 10)],
    ids=["nothing", "a list", "no fields", "another run", "too large"],
)
def test_a_claim_that_is_none_says_nothing(store: MemoryStore, content: bytes) -> None:
    store.put_absent(keys.term(RUN, 1), content)
    assert terms.claim_of(store, RUN, 1) is None
