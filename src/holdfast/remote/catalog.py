"""The checkpoints of a run in a mirror, each with its manifest, as a catalog has those of a run directory."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from holdfast.errors import AbsentError, DamagedCheckpointError
from holdfast.remote.keys import CheckpointKey
from holdfast.remote.listing import Listing, RemoteCheckpoint, manifest_of
from holdfast.remote.object_store import ObjectStore, read
from holdfast.store import digest, references
from holdfast.store.catalog import Entry
from holdfast.store.manifest import Manifest

# A Trainer's state has a line for each of a training's logs; of a larger one it is not known what is the best.
_MOST_STATE_BYTES = 32 << 20


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
        self._best: tuple[CheckpointKey, int | None] | None = None

    def entries(self, listing: Listing) -> list[RemoteEntry]:
        """Returns what has a manifest there, the newest first. Without a problem it is whole, as far as sizes tell.

        Raises:
            MirrorUnavailableError: A manifest could not be read this time.
        """
        before, self._known = self._known, {}
        listed = []
        for checkpoint in listing.published:
            entry = before.get(checkpoint.key) or _read(self._store, checkpoint.key)
            if entry is not None:
                self._known[checkpoint.key] = entry
                listed.append(RemoteEntry(checkpoint.key, _compared(entry, checkpoint)))
        return listed

    def references(self, entries: Sequence[RemoteEntry]) -> frozenset[str]:
        """Returns the attempts that the newest one there refers to: what it goes on from, and a Trainer's best.

        Args:
            entries: What `entries` returned.

        Raises:
            MirrorUnavailableError: It could not be read this time.
        """
        whole = [each for each in entries if each.entry.manifest is not None]
        if not whole:
            return frozenset()
        newest, manifest = whole[0], whole[0].entry.manifest
        assert manifest is not None
        if self._best is None or self._best[0] != newest.key:
            self._best = newest.key, _best_step(self._store, newest.key, manifest)
        step = self._best[1]
        best = next((each.key.attempt for each in whole if each.entry.step == step), None)
        return frozenset(attempt for attempt in (manifest.parent, best) if attempt is not None)


def _best_step(store: ObjectStore, key: CheckpointKey, manifest: Manifest) -> int | None:
    """Returns the step of the checkpoint that a Trainer's state names as the best; None where that is not known."""
    file = next((file for file in manifest.files if file.path == references.STATE), None)
    if file is None:
        return None
    try:
        data = read(store, key.of(file.path), _MOST_STATE_BYTES)
        return references.best_step(data) if digest.of_bytes(data) == file.digests else None
    except (AbsentError, ValueError):
        return None


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
