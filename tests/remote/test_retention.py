import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from helpers.memory_store import MemoryStore
from helpers.remote import start
from helpers.support import ASKED, RUN, SCHEDULED, commit_checkpoint
from holdfast.errors import MirrorTakenError, MirrorUnavailableError
from holdfast.remote import pins, retention
from holdfast.remote.catalog import RemoteCatalog
from holdfast.remote.keys import CheckpointKey
from holdfast.remote.listing import listing_of
from holdfast.remote.upload import upload
from holdfast.store.folder import Folder
from holdfast.store.retention import RetentionPolicy

KEEP_TWO = RetentionPolicy(2, None)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def sent(store: MemoryStore, root: Path, step: int, term: int = 1, **fields: Any) -> CheckpointKey:
    checkpoint = commit_checkpoint(root, step, **{"content": {"a": b"a", "b/c": b"c"}, **fields})
    with Folder.open(checkpoint) as folder:
        return upload(store, folder, term, None)


def steps(store: MemoryStore) -> list[int]:
    return [each.entry.step for each in RemoteCatalog(store).entries(listing_of(store, RUN))]


def retained(store: MemoryStore, policy: RetentionPolicy = KEEP_TWO, claimed: int = 1, **spoken: Any) -> list[int]:
    """The steps that are there afterwards."""
    retention.retain(store, RemoteCatalog(store), RUN, claimed, policy, **spoken)
    return steps(store)


def test_the_newest_stay_and_of_the_others_nothing_but_their_marks(tmp_path: Path, store: MemoryStore) -> None:
    keys = [sent(store, tmp_path, step) for step in (3, 1, 2)]
    assert retained(store) == [2, 1]
    listing = listing_of(store, RUN)
    assert [each.key for each in listing.checkpoints] == [keys[2], keys[1]]
    assert listing.doomed == {keys[0].attempt}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"reasons": (ASKED,)}, "all on-demand ones stay"),
        ({"reasons": ({**ASKED, "slot": "good"},)}, "it has the slot good"),
        ({"attempt": "f" * 32}, "pinned"),
        ({"attempt": "e" * 32}, "still needed"),
        ({"attempt": "d" * 32}, "all on-demand ones stay"),
        ({"step": 100}, "its step is a multiple of 100"),
        ({}, None),
    ],
)
def test_the_rules_are_those_of_the_disk(
    tmp_path: Path, store: MemoryStore, fields: Mapping[str, Any], why: str | None
) -> None:
    pins.pin(store, RUN, "f" * 32)
    sent(store, tmp_path, **{"step": 1, "reasons": (SCHEDULED,), **fields})
    for step in (2, 3):
        sent(store, tmp_path, step)
    listing = listing_of(store, RUN)
    policy = RetentionPolicy(2, None, every=100)
    spoken: dict[str, Any] = {"asked": ["d" * 32], "protected": ["e" * 32]}
    verdicts = retention.judge(RemoteCatalog(store).entries(listing), listing.pins, policy, **spoken)
    assert [verdict.kept for _, verdict in verdicts] == [
        "the newest good one",
        "one of the last 2 scheduled ones",
        why,
    ]
    assert retained(store, policy, **spoken) == [3, 2, *([fields.get("step", 1)] if why else [])]


def test_a_start_that_does_not_have_the_run_any_more_marks_nothing(tmp_path: Path, store: MemoryStore) -> None:
    for step in (1, 2, 3):
        sent(store, tmp_path, step)
    claimed = start(store)
    start(store, host="another machine")
    with pytest.raises(MirrorTakenError, match="another machine"):
        retained(store, claimed=claimed)
    assert steps(store) == [3, 2, 1] and listing_of(store, RUN).doomed == frozenset()


def test_what_the_newest_one_there_refers_to_stays(tmp_path: Path, store: MemoryStore) -> None:
    def state(best: str) -> dict[str, bytes]:
        return {"trainer_state.json": json.dumps({"best_model_checkpoint": best}).encode()}

    for step in range(1, 5):
        sent(store, tmp_path, step, attempt=f"{step}" * 32)
    sent(store, tmp_path, 5, content=state("elsewhere/checkpoint-2"), parent="3" * 32)
    assert retained(store, RetentionPolicy(1, 1)) == [5, 3, 2]
    sent(store, tmp_path, 6, content=state("../checkpoint-3\n"))
    assert retained(store, RetentionPolicy(1, 1)) == [6]


def test_the_newest_good_one_and_the_newest_finite_one_never_go(tmp_path: Path, store: MemoryStore) -> None:
    sent(store, tmp_path, 1)
    sent(store, tmp_path, 2, not_finite=("w",))
    sent(store, tmp_path, 3, not_finite=("w",))
    half = sent(store, tmp_path, 4)
    store.delete(half.of("a"))
    assert retained(store, RetentionPolicy(0, 0)) == [4, 3, 1]


def test_what_cannot_be_read_is_left_and_counts_for_nothing(tmp_path: Path, store: MemoryStore) -> None:
    keys = [sent(store, tmp_path, step) for step in (1, 2, 3)]
    store.objects[keys[2].manifest] = b"{}"
    store.objects[keys[1].manifest] = store.objects[keys[0].manifest]
    retained(store, RetentionPolicy(0, 0))
    problems = [each.entry.problem for each in RemoteCatalog(store).entries(listing_of(store, RUN))]
    assert problems == [
        "the manifest is cut short or is not one of ours",
        "its manifest is that of another checkpoint",
        None,
    ]


def test_a_pin_that_comes_at_the_last_moment_keeps_it(tmp_path: Path) -> None:
    class Pinning(MemoryStore):
        def put_absent(self, key: str, data: bytes) -> bool:
            if "/pins/" in key and data:
                super().put_absent(key, b"")
            return super().put_absent(key, data)

    store = Pinning()
    for step in (1, 2, 3):
        sent(store, tmp_path, step)
    assert retained(store) == [3, 2, 1]


def test_nothing_is_deleted_for_a_start_that_has_the_run_no_more(tmp_path: Path) -> None:
    class Claiming(MemoryStore):
        claims = False

        def put_absent(self, key: str, data: bytes) -> bool:
            stored = super().put_absent(key, data)
            if self.claims and "/pins/" in key:
                start(self, host="the other")
            return stored

    store = Claiming()
    claimed = start(store)
    for step in (1, 2, 3, 4):
        sent(store, tmp_path, step)
    store.claims = True
    with pytest.raises(MirrorTakenError, match="taken over by a later start on 'the other'"):
        retained(store, claimed=claimed)
    assert steps(store) == [4, 3, 2, 1]


def test_a_deletion_that_was_cut_off_is_gone_on_with(tmp_path: Path) -> None:
    class Failing(MemoryStore):
        left = 0

        def delete(self, key: str) -> None:
            self.left -= 1
            if self.left < 0:
                raise MirrorUnavailableError("it does not answer")
            super().delete(key)

    for left in range(3):
        store, root = Failing(), tmp_path / str(left)
        root.mkdir()
        for step in (1, 2, 3):
            sent(store, root, step)
        store.left = left
        with pytest.raises(MirrorUnavailableError):
            retained(store)
        store.left = 100
        assert retained(store) == [3, 2]
        assert len(listing_of(store, RUN).checkpoints) == 2


def test_a_start_removes_what_earlier_ones_have_left_and_no_more(tmp_path: Path, store: MemoryStore) -> None:
    keys = [sent(store, tmp_path, step, term) for step, term in ((1, 1), (2, 1), (3, 2), (4, 1))]
    for key in keys[1:]:
        store.delete(key.manifest)
    store.put_absent(f"{RUN}/something else", b"x")
    claimed = start(store)
    assert claimed == 3
    assert retention.sweep(store, RUN, claimed, [keys[3].attempt], []) == [keys[2], keys[1]]
    listing = listing_of(store, RUN)
    assert [each.key for each in listing.checkpoints] == [keys[3], keys[0]]
    assert listing.doomed == {keys[2].attempt, keys[1].attempt}
    assert f"{RUN}/something else" in store.objects


def test_a_start_leaves_what_is_pinned_and_what_is_published_while_it_looks(tmp_path: Path) -> None:
    class Publishing(MemoryStore):
        manifest: tuple[str, bytes] | None = None

        def put_absent(self, key: str, data: bytes) -> bool:
            if self.manifest is not None and data == b"deleted\n":
                super().put_absent(*self.manifest)
            return super().put_absent(key, data)

    store = Publishing()
    first, second = (sent(store, tmp_path, step, term=0) for step in (1, 2))
    pins.pin(store, RUN, first.attempt)
    store.delete(first.manifest)
    store.manifest = (second.manifest, store.objects[second.manifest])
    store.delete(second.manifest)
    assert retention.sweep(store, RUN, start(store), [], []) == []
    assert [each.sizes.keys() for each in listing_of(store, RUN).checkpoints] == [
        {"MANIFEST.json", "a", "b/c"},
        {"a", "b/c"},
    ]


def test_the_marks_of_what_is_gone_go_with_the_next_start(tmp_path: Path, store: MemoryStore) -> None:
    for step in (1, 2, 3):
        sent(store, tmp_path, step)
    retained(store)
    assert len(listing_of(store, RUN).doomed) == 1
    marked = listing_of(store, RUN).doomed
    retention.sweep(store, RUN, start(store), [], [])
    assert listing_of(store, RUN).doomed == marked
    retention.sweep(store, RUN, start(store), [], marked)
    assert listing_of(store, RUN).doomed == frozenset()


def test_a_manifest_is_read_once(tmp_path: Path) -> None:
    class Counting(MemoryStore):
        reads = 0

        def get_range(self, key: str, start: int, end: int) -> bytes:
            self.reads += 1
            return super().get_range(key, start, end)

    store = Counting()
    for step in (1, 2, 3):
        sent(store, tmp_path, step, content={"trainer_state.json": b"{}"})
    catalog = RemoteCatalog(store)
    for _ in range(3):
        retention.retain(store, catalog, RUN, 1, KEEP_TWO)
    assert store.reads == 3 + 1
