"""The checkpoints of a run in a mirror, each with its manifest, as a catalog has those of a run directory."""

from dataclasses import dataclass, replace
from pathlib import Path

from holdfast.errors import AbsentError, DamagedCheckpointError
from holdfast.remote.keys import CheckpointKey
from holdfast.remote.listing import Listing, RemoteCheckpoint, manifest_of
from holdfast.remote.object_store import ObjectStore
from holdfast.store.catalog import Entry


@dataclass(frozen=True)
class RemoteEntry:
    """A checkpoint of a mirror.

    Args:
        key: Its name there.
        entry: What its manifest says, or why it cannot be used; its path is the name there.
    """

    key: CheckpointKey
    entry: Entry


class RemoteCatalog:
    """The checkpoints of a run in one mirror, for somebody who asks again and again: a manifest is read once.

    Args:
        store: The place.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._known: dict[CheckpointKey, Entry] = {}

    def entries(self, listing: Listing) -> list[RemoteEntry]:
        """Returns what has a manifest there, the newest first. Without a problem it is whole, as far as sizes tell.

        Raises:
            MirrorUnavailableError: A manifest could not be read this time.
        """
        before, self._known = self._known, {}
        read = []
        for checkpoint in listing.published:
            entry = before.get(checkpoint.key) or _read(self._store, checkpoint.key)
            if entry is not None:
                self._known[checkpoint.key] = entry
                read.append(RemoteEntry(checkpoint.key, _compared(entry, checkpoint)))
        return read


def _read(store: ObjectStore, key: CheckpointKey) -> Entry | None:
    """Reads a manifest, without where the pieces of tensors lie; None where it is gone."""
    path = Path(key.prefix)
    try:
        manifest = manifest_of(store, key)[1]
    except AbsentError:
        return None
    except DamagedCheckpointError as error:
        return Entry(path, 0, None, error.problems[0], term=key.term)
    return Entry(path, manifest.step, replace(manifest, tensors={}), None, term=key.term)


def _compared(entry: Entry, checkpoint: RemoteCheckpoint) -> Entry:
    """Returns an entry with the first problem that the listing shows."""
    if entry.manifest is None:
        return entry
    problem = checkpoint.problem_of(entry.manifest)
    return entry if problem is None else replace(entry, problem=problem, manifest=None)
