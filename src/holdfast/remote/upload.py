"""The commit of a checkpoint to a mirror: files first, all seen there, the manifest last and only where none is.

Nothing that is read there is believed without a manifest, so an upload that is cut off at any request leaves nothing
that could be taken for a checkpoint, and the next try sends what is missing.
"""

import os
from collections.abc import Callable
from contextlib import suppress

from holdfast.errors import AbsentError, DamagedCheckpointError, MirrorTakenError, MirrorUnavailableError
from holdfast.remote import keys
from holdfast.remote.keys import CheckpointKey
from holdfast.remote.listing import Listing, listing_of
from holdfast.remote.object_store import ObjectStore, read
from holdfast.store import files, names
from holdfast.store.folder import Folder
from holdfast.store.manifest import MOST_BYTES, Manifest, decode
from holdfast.text import quoted

_MOST_BYTES_OF_TERM = 64 << 10

Progress = Callable[[int], None]
"""Called with the number of bytes that are there more than before."""


def upload(store: ObjectStore, folder: Folder, term: int, progress: Progress = lambda size: None) -> CheckpointKey:
    """Brings a checkpoint of this disk to a mirror. Returns when a reader there would find it, whole.

    Args:
        store: The place.
        folder: The checkpoint's directory, held open; nothing in it is changed.
        term: The term that it counts for where its manifest names none.
        progress: Hears of the bytes as they arrive.

    Raises:
        MirrorTakenError: A later start has claimed the run.
        DamagedCheckpointError: The directory is no whole checkpoint, or another has its name there.
        MirrorUnavailableError: It is to be tried again; what is there already is not sent again.
        MirrorAccessError: Trying again would end alike.
        OSError: The disk cannot be read.
    """
    data = files.read(folder / names.MANIFEST, limit=MOST_BYTES)
    manifest = decode(data)
    key = CheckpointKey(manifest.run, term, manifest.sequence, manifest.attempt)
    before = listing_of(store, key.run)
    _require_newest(store, before, key)
    present = _sizes(before, key)
    if names.MANIFEST not in present:
        for file in manifest.files:
            if present.get(file.path) != file.size:
                _send(store, folder, key, file.path, file.size)
            progress(file.size)
        after = listing_of(store, key.run)
        _require_newest(store, after, key)
        _require_all(manifest, _sizes(after, key))
    if not store.put_absent(key.manifest, data):
        raise DamagedCheckpointError(f"{store.url} has another checkpoint under the name of {folder}")
    return key


def _send(store: ObjectStore, folder: Folder, key: CheckpointKey, path: str, size: int) -> None:
    with files.open_inside(folder, path) as fd:
        there = os.fstat(fd).st_size
        if there != size:
            raise DamagedCheckpointError(f"{folder}: {path} has {there:,} bytes, and its manifest says {size:,}")
        store.put_file(key.of(path), fd, size)


def _sizes(listing: Listing, key: CheckpointKey) -> dict[str, int]:
    return next((each.sizes for each in listing.checkpoints if each.key == key), {})


def _require_all(manifest: Manifest, present: dict[str, int]) -> None:
    """Checks that every file is there before that is said: the answer to a request proves nothing by itself."""
    for file in manifest.files:
        if present.get(file.path) != file.size:
            raise MirrorUnavailableError(f"{file.path} is not there as it was sent ({present.get(file.path)} bytes)")


def _require_newest(store: ObjectStore, listing: Listing, key: CheckpointKey) -> None:
    """Refuses where a later start has the run: what is sent under an earlier term is never the newest."""
    if listing.newest_term <= key.term:
        return
    host = "another start"
    with suppress(AbsentError, ValueError):
        host = quoted(read(store, keys.term(key.run, listing.newest_term), _MOST_BYTES_OF_TERM).decode())
    raise MirrorTakenError(f"{store.url} was taken over by {host} (term {listing.newest_term}, and this is {key.term})")
