"""Deletion in a mirror: by the rules of the disk, and what uploads that were cut off have left.

A checkpoint is marked first (`remote/pins.py`): from then on nobody pins it, and nobody is told that it is mirrored.
Its manifest goes next, and only then its files, so that what is there is whole or is no checkpoint. A deletion that is
cut off in between is gone on with the next time.
"""

from collections.abc import Callable, Iterable

from holdfast.remote import keys, pins, terms
from holdfast.remote.catalog import RemoteCatalog, RemoteEntry
from holdfast.remote.keys import CheckpointKey
from holdfast.remote.listing import listing_of
from holdfast.remote.object_store import ObjectStore
from holdfast.store import retention
from holdfast.store.retention import Marks, RetentionPolicy, Verdict


def judge(
    entries: Iterable[RemoteEntry],
    pinned: frozenset[str],
    policy: RetentionPolicy,
    asked: Iterable[str] = (),
    protected: Iterable[str] = (),
) -> list[tuple[CheckpointKey, Verdict]]:
    """Decides for each checkpoint of a run in a mirror whether it stays, and why, by the rules of the disk.

    Args:
        entries: The catalog there, newest first.
        pinned: The attempts that are pinned there.
        policy: The rules.
        asked: The attempts that somebody asked for after they had been saved for another reason.
        protected: The attempts that something still needs: the best one, and the one that was resumed from.
    """
    listed = list(entries)
    needed = frozenset(protected)
    by_path = {each.entry.path: each.key for each in listed}
    left_alone = {each.entry.path: f"damaged: {each.entry.problem}" for each in listed if each.entry.manifest is None}
    paths = frozenset(path for path, key in by_path.items() if key.attempt in needed)
    verdicts = retention.judged(
        [each.entry for each in listed], left_alone, policy, Marks(pinned, frozenset(asked), paths)
    )
    return [(by_path[verdict.entry.path], verdict) for verdict in verdicts]


def retain(
    store: ObjectStore,
    catalog: RemoteCatalog,
    run: str,
    claimed: int,
    policy: RetentionPolicy,
    asked: Iterable[str] = (),
    protected: Iterable[str] = (),
) -> list[CheckpointKey]:
    """Deletes the checkpoints of a run that no rule speaks for, oldest first, and what earlier deletions have left.

    Args:
        store: The place.
        catalog: The catalog there.
        run: The identity of the run.
        claimed: The term that this start has claimed.
        policy: The rules.
        asked: As `judge` has it, beside those of which that is known there.
        protected: The attempts that something still needs, beside those that the newest one there refers to: what is
            to be sent next may refer to others.

    Returns:
        Those that were deleted.

    Raises:
        MirrorTakenError: A later start has claimed the run; nothing more is deleted.
        MirrorUnavailableError: It is to be tried again.
    """
    listing = listing_of(store, run)
    if listing.newest_term > claimed:  # before a checkpoint is marked that then stays
        raise terms.taken_over(store, run, listing.newest_term, claimed)
    entries = catalog.entries(listing)
    whole = {each.key for each in entries if each.entry.manifest is not None}
    going = [each.key for each in listing.checkpoints if each.key.attempt in listing.doomed and each.key not in whole]
    verdicts = judge(
        entries, listing.pins, policy, {*asked, *listing.asked}, {*protected, *catalog.references(entries)}
    )
    going += [key for key, verdict in reversed(verdicts) if verdict.kept is None]
    return [key for key in going if delete(store, key, lambda: require_claim(store, run, claimed))]


def delete(store: ObjectStore, key: CheckpointKey, check: Callable[[], None] = lambda: None) -> bool:
    """Deletes a checkpoint. False where it is pinned.

    Args:
        store: The place.
        key: The checkpoint.
        check: Called when it is marked, and before anything of it goes; raises if this process may not delete it.
    """
    if not pins.doom(store, key.run, key.attempt):
        return False
    check()
    store.delete(key.manifest)
    for item in list(store.listed(key.prefix)):
        store.delete(item.key)
    return True


def sweep(
    store: ObjectStore, run: str, claimed: int, sendable: Iterable[str], marked: Iterable[str]
) -> list[CheckpointKey]:
    """Removes what uploads under earlier terms have left, and the marks of what is gone. For a start that has claimed.

    Whoever still sends under an earlier term, with or without a claim, is told that it was not mirrored, or has been
    before: then it has its manifest, and is left. What is marked here stays marked until the next start: a store may
    delete it once more, long after it was asked to, and it must not be sent again before.

    Args:
        store: The place.
        run: The identity of the run.
        claimed: The term that this start has claimed.
        sendable: The attempts that are on this disk: what there is of them is not sent again.
        marked: The attempts that had a mark when this start began.

    Returns:
        Those of which something was removed.
    """
    spared, removed = frozenset(sendable), []
    for checkpoint in listing_of(store, run).checkpoints:
        key = checkpoint.key
        if checkpoint.is_published or key.term >= claimed or key.attempt in spared:
            continue
        if pins.doom(store, run, key.attempt):
            left = [item.key for item in store.listed(key.prefix)]
            if key.manifest not in left:
                for name in left:
                    store.delete(name)
                removed.append(key)
    after = listing_of(store, run)
    there = {each.key.attempt for each in after.checkpoints}
    for attempt in after.doomed.intersection(marked) - there:
        pins.forget(store, run, attempt)
    for attempt in after.asked - there:
        store.delete(keys.asked(run, attempt))
    return removed


def require_claim(store: ObjectStore, run: str, claimed: int) -> None:
    """Raises `MirrorTakenError` where a later start has claimed the run."""
    newest = max((keys.term_of(item.key) or 0 for item in store.listed(keys.terms(run))), default=0)
    if newest > claimed:
        raise terms.taken_over(store, run, newest, claimed)
