"""The checkpoints of a run in a mirror: one listing, and no object that points anywhere."""

from dataclasses import dataclass, field

from holdfast.errors import DamagedCheckpointError
from holdfast.remote import keys
from holdfast.remote.keys import CheckpointKey
from holdfast.remote.object_store import ObjectStore, read
from holdfast.store import names, reading
from holdfast.store.manifest import MOST_BYTES, Manifest, ManifestError, decode


@dataclass
class RemoteCheckpoint:
    """The files under one checkpoint's name in a mirror.

    Args:
        key: Its name.
        sizes: The sizes of the files there, by their paths; the manifest is among them where it is there.
    """

    key: CheckpointKey
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def is_published(self) -> bool:
        """True where it has a manifest. Without one there is no checkpoint, only what an upload has left so far."""
        return names.MANIFEST in self.sizes

    def problem_of(self, manifest: Manifest) -> str | None:
        """Returns the first file of its manifest that is not there as it was sent; None where all are."""
        for file in manifest.files:
            if (size := self.sizes.get(file.path)) is None:
                return f"{file.path}: is missing"
            if size != file.size:
                return reading.size_problem(file, size)
        return None


@dataclass(frozen=True)
class Listing:
    """All of a run that lies in a mirror, as of one moment.

    Args:
        checkpoints: Those that have files there, the newest first, published or not.
        terms: The numbers of the starts that have claimed the run, in order.
        pins: The attempts that are never to be deleted.
        doomed: The attempts that are being deleted, or are gone: none of them is ever there again.
        asked: The attempts that somebody asked for after they had been saved for another reason.
    """

    checkpoints: tuple[RemoteCheckpoint, ...]
    terms: tuple[int, ...]
    pins: frozenset[str]
    doomed: frozenset[str]
    asked: frozenset[str] = frozenset()

    @property
    def published(self) -> list[RemoteCheckpoint]:
        """The checkpoints, the newest first."""
        return [each for each in self.checkpoints if each.is_published]

    def of(self, key: CheckpointKey) -> RemoteCheckpoint:
        """Returns what is there under the name of one checkpoint, which may be nothing."""
        return next((each for each in self.checkpoints if each.key == key), RemoteCheckpoint(key))

    @property
    def newest_term(self) -> int:
        """The greatest number that a start has claimed, or that a checkpoint has; 0 for none."""
        return max((*self.terms, *(each.key.term for each in self.checkpoints)), default=0)


def listing_of(store: ObjectStore, run: str) -> Listing:
    """Lists all of a run. Keys that are none of ours are passed over."""
    by_key: dict[CheckpointKey, RemoteCheckpoint] = {}
    claimed: list[int] = []
    pinned: set[str] = set()
    doomed: set[str] = set()
    asked: set[str] = set()
    for item in store.listed(keys.below(run)):
        if (file := keys.file_of(item.key)) is not None:
            key, path = file
            by_key.setdefault(key, RemoteCheckpoint(key)).sizes[path] = item.size
        elif (number := keys.term_of(item.key)) is not None:
            claimed.append(number)
        elif (attempt := keys.pinned_by(item.key)) is not None:
            (doomed if item.size else pinned).add(attempt)
        elif (attempt := keys.asked_by(item.key)) is not None:
            asked.add(attempt)
    newest_first = sorted(by_key.values(), key=lambda each: each.key, reverse=True)
    marks = (frozenset(pinned), frozenset(doomed), frozenset(asked))
    return Listing(tuple(newest_first), tuple(sorted(claimed)), *marks)


def manifest_of(store: ObjectStore, key: CheckpointKey) -> tuple[bytes, Manifest]:
    """Reads the manifest of a published checkpoint, and believes nothing that it does not prove.

    Returns:
        Its bytes, and what they say.

    Raises:
        AbsentError: It has none (any more).
        DamagedCheckpointError: It is none, or that of another checkpoint.
    """
    try:
        data = read(store, key.manifest, MOST_BYTES)
        manifest = decode(data)
    except ManifestError as error:
        raise _damaged(key, str(error)) from error
    except ValueError as error:
        raise _damaged(key, f"its manifest is too large: {error}") from error
    # What is sent by hand may count for less than its manifest says: for the last term that was claimed on its disk.
    is_its_own = (manifest.run, manifest.sequence, manifest.attempt) == (key.run, key.sequence, key.attempt)
    if not is_its_own or 0 < manifest.term < key.term:
        raise _damaged(key, "its manifest is that of another checkpoint")
    return data, manifest


def _damaged(key: CheckpointKey, problem: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(f"{key.prefix.rstrip('/')} cannot be used: {problem}", [problem])
