import itertools
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from helpers.memory_store import MemoryStore
from helpers.support import RUN
from holdfast.remote import pins as there
from holdfast.remote import retention
from holdfast.remote.keys import CheckpointKey
from holdfast.remote.listing import listing_of
from holdfast.store import pins as here

FIRST, SECOND = "a" * 32, "b" * 32


def both(*attempts: str) -> tuple[frozenset[str], frozenset[str]]:
    return frozenset(attempts), frozenset(attempts)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def settled(store: MemoryStore, control: Path) -> tuple[frozenset[str], frozenset[str]]:
    """The pins on both sides afterwards."""
    there.settle(store, listing_of(store, RUN), RUN, control)
    return here.pinned(control), listing_of(store, RUN).pins


def test_what_is_pinned_is_not_doomed_and_what_is_doomed_is_not_pinned(store: MemoryStore) -> None:
    assert there.pin(store, RUN, FIRST) and there.doom(store, RUN, SECOND)
    assert not there.doom(store, RUN, FIRST) and not there.pin(store, RUN, SECOND)
    assert there.pin(store, RUN, FIRST) and there.doom(store, RUN, SECOND)
    there.unpin(store, RUN, SECOND)
    listing = listing_of(store, RUN)
    assert [*listing.pins, *listing.doomed] == [FIRST, SECOND]
    there.unpin(store, RUN, FIRST)
    there.unpin(store, RUN, FIRST)
    there.forget(store, RUN, SECOND)
    assert store.objects == {}


def test_a_pin_made_on_either_side_is_on_both(tmp_path: Path, store: MemoryStore) -> None:
    here.pin(tmp_path, FIRST)
    there.pin(store, RUN, SECOND)
    assert settled(store, tmp_path) == both(FIRST, SECOND)


def test_a_pin_taken_away_here_goes_there_and_one_lost_there_comes_back(tmp_path: Path, store: MemoryStore) -> None:
    here.pin(tmp_path, FIRST)
    here.pin(tmp_path, SECOND)
    settled(store, tmp_path)
    here.unpin(tmp_path, FIRST)
    there.unpin(store, RUN, SECOND)
    assert settled(store, tmp_path) == both(SECOND)
    assert settled(store, tmp_path) == both(SECOND)


def test_a_pin_of_what_is_deleted_there_stays_here_and_is_told(tmp_path: Path, store: MemoryStore) -> None:
    here.pin(tmp_path, FIRST)
    there.doom(store, RUN, FIRST)
    assert there.settle(store, listing_of(store, RUN), RUN, tmp_path) == {FIRST}
    assert (here.pinned(tmp_path), listing_of(store, RUN).doomed) == both(FIRST)
    here.unpin(tmp_path, FIRST)
    there.settle(store, listing_of(store, RUN), RUN, tmp_path)
    assert listing_of(store, RUN).doomed == {FIRST}


def test_what_was_asked_for_here_is_known_there_as_soon_as_there_is_something_of_it(
    tmp_path: Path, store: MemoryStore
) -> None:
    for attempt in (FIRST, SECOND):
        here.mark_as_asked_for(tmp_path, attempt)
    there.tell_asked(store, listing_of(store, RUN), RUN, tmp_path)
    assert store.objects == {}
    there.tell_asked(store, listing_of(store, RUN), RUN, tmp_path, SECOND)
    store.objects[CheckpointKey(RUN, 1, 1, FIRST).manifest] = b""
    there.tell_asked(store, listing_of(store, RUN), RUN, tmp_path)
    assert listing_of(store, RUN).asked == {FIRST, SECOND}
    retention.sweep(store, RUN, 2, (), ())
    assert listing_of(store, RUN).asked == {FIRST}


def test_a_settlement_that_is_cut_off_loses_no_pin(tmp_path: Path) -> None:
    for count in itertools.count(1):
        control, store = tmp_path / str(count), MemoryStore()
        control.mkdir()
        here.pin(control, FIRST)
        there.pin(store, RUN, SECOND)
        with pytest.MonkeyPatch.context() as patch:
            cut = Cut(count)
            for owner, name in ((os, "open"), (os, "rename"), (os, "fsync"), (store, "put_absent")):
                patch.setattr(owner, name, cut.wrapped(getattr(owner, name)))
            with suppress(InterruptedError):
                settled(store, control)
        assert settled(store, control) == both(FIRST, SECOND)
        if cut.left > 0:
            assert count > 5
            return


class Cut:
    """Cuts a story off at one of its operations, and whatever is still tried after that."""

    def __init__(self, at: int) -> None:
        self.left = at

    def wrapped(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left <= 0:
                raise InterruptedError
            return real(*args, **kwargs)

        return operation
