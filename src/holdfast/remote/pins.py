"""The pins of a run in a mirror, and the marks of what is deleted there: under one key, so that only one can be.

An empty `<run>/pins/<attempt>` is a pin, one with content says that the checkpoint is being deleted or is gone. Both
are put only where none is: whoever comes first has decided, and the other sees it. So nothing that is pinned is ever
deleted, whoever pins it and when, and nothing is half deleted that somebody counts on.

An empty `<run>/asked/<attempt>` says that somebody asked for a checkpoint that had been saved for another reason. It is
put and never taken away before its checkpoint, and decides nothing among several: a rule of retention counts by it.
"""

from holdfast.errors import AbsentError
from holdfast.remote import keys
from holdfast.remote.listing import Listing
from holdfast.remote.object_store import ObjectStore, read
from holdfast.store import files, names, pins
from holdfast.store.folder import Directory

_DOOMED = b"deleted\n"
_MOST_BYTES = 4096

# The pins that were here and there when they were last compared: what is missing on one side was taken away there.
_AGREED = "mirror-pins"
_MOST_AGREED_BYTES = 1 << 20


def pin(store: ObjectStore, run: str, attempt: str) -> bool:
    """Pins a checkpoint, whether it is there yet or not. False where it is being deleted, or was."""
    return store.put_absent(keys.pin(run, attempt), b"")


def unpin(store: ObjectStore, run: str, attempt: str) -> None:
    """Takes a pin away."""
    key = keys.pin(run, attempt)
    try:
        is_pin = not read(store, key, _MOST_BYTES)
    except (AbsentError, ValueError):
        return
    if is_pin:
        store.delete(key)


def doom(store: ObjectStore, run: str, attempt: str) -> bool:
    """Marks a checkpoint as one that is deleted. From then on nobody can pin or send it. False where it is pinned."""
    return store.put_absent(keys.pin(run, attempt), _DOOMED)


def forget(store: ObjectStore, run: str, attempt: str) -> None:
    """Takes the mark of a checkpoint away of which nothing is left. It can be sent again then."""
    store.delete(keys.pin(run, attempt))


def settle(store: ObjectStore, listing: Listing, run: str, control: Directory) -> frozenset[str]:
    """Has the pins of a run directory and of its mirror be the same: what was pinned or unpinned here is so there.

    What is pinned there alone is pinned here, unless the pin was taken away here since they were last the same.

    Args:
        store: The place.
        listing: What is there.
        run: The identity of the run.
        control: The private directory of the run directory.

    Returns:
        Those that are pinned here and cannot be there, because they have been deleted.

    Raises:
        OSError: The pins here cannot be read or written.
    """
    here, agreed = pins.pinned(control), _agreed(control)
    refused = frozenset(attempt for attempt in sorted(here - listing.pins) if not pin(store, run, attempt))
    for attempt in sorted((agreed - here) & listing.pins):
        unpin(store, run, attempt)
    for attempt in sorted(listing.pins - here - agreed):
        pins.pin(control, attempt)
    settled = (here - refused) | (listing.pins - agreed)
    if settled != agreed:
        files.replace(control / _AGREED, "".join(f"{attempt}\n" for attempt in sorted(settled)).encode())
    return refused


def tell_asked(store: ObjectStore, listing: Listing, run: str, control: Directory, sending: str | None = None) -> None:
    """Has the mirror know what was asked for here, of what is there or is about to be.

    Args:
        store: The place.
        listing: What is there.
        run: The identity of the run.
        control: The private directory of the run directory.
        sending: The attempt that is sent next.

    Raises:
        OSError: The marks here cannot be read.
    """
    there = {each.key.attempt for each in listing.published} | {sending}
    for attempt in sorted((pins.asked_for(control) & there) - listing.asked):
        store.put_absent(keys.asked(run, attempt), b"")


def _agreed(control: Directory) -> frozenset[str]:
    try:
        data = files.read(control / _AGREED, limit=_MOST_AGREED_BYTES)
    except FileNotFoundError:
        return frozenset()
    return frozenset(filter(names.is_token, data.decode("ascii", "replace").split()))
