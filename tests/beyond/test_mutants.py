"""Whether the model can see: without any one of the steps that the commit is made of, a promise is broken."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from beyond import test_two_writers as two
from beyond.conftest import Disks
from beyond.place import Fate
from beyond.test_requests import mirrored
from holdfast.remote import pins, retention, terms, upload
from holdfast.remote.keys import CheckpointKey
from holdfast.remote.listing import Listing, RemoteCheckpoint, listing_of
from holdfast.remote.object_store import ObjectStore

Looked = Callable[..., RemoteCheckpoint]


def said_without_a_look(real: Looked) -> Looked:
    """The look after the manifest was sent sees no later start."""
    looks: Counter[ObjectStore] = Counter()

    def looked_at(store: ObjectStore, key: CheckpointKey, claimed: int | None) -> RemoteCheckpoint:
        looks[store] += 1
        return real(store, key, None if looks[store] % 3 == 0 else claimed)

    return looked_at


def sent_without_a_look(real: Looked) -> Looked:
    """No look sees a later start."""
    return lambda store, key, claimed: real(store, key, None)


def claimed_without_a_look(real: Callable[..., terms.Claimed]) -> Callable[..., terms.Claimed]:
    """A start does not look again when it has claimed."""
    return lambda *arguments: terms.Claimed(term := real(*arguments).term, term is not None)


def claimed_without_a_look_for_marks(real: Callable[..., Listing]) -> Callable[..., Listing]:
    """A start does not see that its choice is being deleted."""

    def listed(store: ObjectStore, run: str) -> Listing:
        listing = real(store, run)
        return Listing(listing.checkpoints, listing.terms, listing.pins, frozenset())

    return listed


def deleted_without_a_mark(real: Callable[..., bool]) -> Callable[..., bool]:
    """The pins are read before a deletion, and nothing is put in their place."""
    return lambda store, run, attempt: attempt not in listing_of(store, run).pins


def deleted_files_first(real: Callable[..., bool]) -> Callable[..., bool]:
    def delete(store: ObjectStore, key: CheckpointKey, check: Callable[[], None] = lambda: None) -> bool:
        if not pins.doom(store, key.run, key.attempt):
            return False
        check()
        for item in sorted(store.listed(key.prefix), key=lambda item: item.key == key.manifest):
            store.delete(item.key)
        return True

    return delete


def deleted_without_a_claim(real: Callable[..., None]) -> Callable[..., None]:
    return lambda *arguments: None


def swept_whatever_was_published(real: Callable[..., Any]) -> Callable[..., Any]:
    """What a start saw at first is removed, whatever is there by then."""

    def sweep(store: ObjectStore, run: str, claimed: int, sendable: Any, marked: Any) -> None:
        for each in listing_of(store, run).checkpoints:
            if not each.is_published and each.key.term < claimed and each.key.attempt not in set(sendable):
                for path in each.sizes:
                    store.delete(each.key.of(path))

    return sweep


def in_a_pair(pair: Callable[[two.Pair], list[str]], disks: Disks) -> bool:
    return any(pair(two.Pair(disks, plan)) for plan in two.plans(pair, disks))


def in_a_life(disks: Disks) -> bool:
    return any(mirrored(disks, {number: Fate("cut before")})[1] for number in range(1, 60))


MUTANTS: list[tuple[Any, str, Callable[[Any], Any], Callable[[Disks], bool]]] = [
    (upload, "_looked_at", said_without_a_look, partial(in_a_pair, two.a_copied_directory)),
    (upload, "_looked_at", sent_without_a_look, partial(in_a_pair, two.a_life_and_a_start)),
    (terms, "claim", claimed_without_a_look, partial(in_a_pair, two.a_life_and_a_start)),
    (terms, "listing_of", claimed_without_a_look_for_marks, partial(in_a_pair, two.a_deletion_and_a_branch)),
    (pins, "doom", deleted_without_a_mark, partial(in_a_pair, two.a_life_and_a_pin)),
    (retention, "delete", deleted_files_first, in_a_life),
    (retention, "require_claim", deleted_without_a_claim, partial(in_a_pair, two.a_life_and_a_branch)),
    (retention, "sweep", swept_whatever_was_published, partial(in_a_pair, two.sent_by_hand_and_a_start)),
]


@pytest.mark.parametrize(("owner", "name", "mutant", "finds"), MUTANTS, ids=[row[2].__name__ for row in MUTANTS])
def test_without_any_step_a_promise_is_broken(
    disks: Disks, owner: Any, name: str, mutant: Callable[[Any], Any], finds: Callable[[Disks], bool]
) -> None:
    with changed(owner, name, mutant(getattr(owner, name))):
        assert finds(disks)


@contextmanager
def changed(owner: Any, name: str, value: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, value)
        yield
