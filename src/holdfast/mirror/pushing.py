"""`holdfast push`: sends what is on this disk only, without a claim, and so never past a later start."""

import time
from dataclasses import dataclass, replace

from holdfast.errors import (
    DamagedCheckpointError,
    MirrorAccessError,
    MirrorError,
    MirrorTakenError,
    MirrorUnavailableError,
)
from holdfast.mirror.queue import Answer, Queue
from holdfast.remote import pins
from holdfast.remote import terms as claims
from holdfast.remote.catalog import RemoteCatalog
from holdfast.remote.keys import CheckpointKey
from holdfast.remote.listing import Listing, listing_of
from holdfast.remote.object_store import ObjectStore, Progress
from holdfast.remote.upload import upload
from holdfast.run.directory import RunDirectory
from holdfast.run.needed import needed
from holdfast.store import catalog, retention, terms
from holdfast.store import pins as local_pins
from holdfast.store.catalog import Entry
from holdfast.store.folder import Folder
from holdfast.store.retention import RetentionPolicy
from holdfast.store.verify import verify

# What a person may want again: the newest, those that somebody asked for, and whatever retention would never delete.
_WANTED = RetentionPolicy(0, None, labelled=True)
_DELETED = "it was deleted there; the next start of the run lets it be sent again"


@dataclass(frozen=True)
class Pushed:
    """The outcome for one checkpoint.

    Args:
        entry: The checkpoint.
        key: Its name in the mirror; None where it is not there.
        seconds: The time that it took; 0 where it was there already.
        why: The reason why it is not there; empty where it is.
        is_damaged: True where that is that it is not what was saved.
        has_waited: True where it waited for the mirror until now: a training that lives writes that down.
    """

    entry: Entry
    key: CheckpointKey | None
    seconds: float = 0.0
    why: str = ""
    is_damaged: bool = False
    has_waited: bool = False


def to_send(directory: RunDirectory, run: str) -> list[Entry]:
    """Returns the checkpoints that are sent where they are not there, the newest first."""
    entries = catalog.entries(directory.folder)
    protected = needed(directory, entries)
    verdicts = retention.judge(directory.folder, directory.control, entries, run, _WANTED, protected)
    kept = [verdict.entry for verdict in verdicts if verdict.kept is not None]
    ours = [each for each in kept if each.manifest and each.manifest.run == run and each.doubt is None]
    return [each for each in ours if verify(directory.folder / each.path.name, full=False).good]


class Push:
    """Brings checkpoints of a run directory to a mirror, beside whatever else sends or starts there.

    Args:
        store: The mirror; it is made the run's own where it is nobody's.
        directory: The run directory.
        run: The identity of the run.

    Raises:
        MirrorTakenError: It belongs to another run, or does not know of this run's claims.
        MirrorError: It cannot be used.
    """

    def __init__(self, store: ObjectStore, directory: RunDirectory, run: str) -> None:
        claimed = terms.claimed(directory.control)
        self._claimed = [term.number for term in claimed if (term.run, term.mirror) == (run, store.url)]
        if claims.owner_of(store) is None:
            claims.require_nobodys(store, run)
            if self._claimed:
                raise _without_sign(store.url, self._claimed[-1])
        claims.take_place(store, run)
        self._store = store
        self._directory = directory
        self._queue = Queue(directory)
        self._listing = listing_of(store, run)
        entries = catalog.entries(directory.folder)
        self._sequences = {e.manifest.attempt: e.manifest.sequence for e in entries if e.manifest is not None}
        self._catalog = RemoteCatalog(store)
        pins.settle(store, self._listing, run, directory.control)
        pins.tell_asked(store, self._listing, run, directory.control)

    def is_there(self, entry: Entry) -> bool:
        """Tells whether a checkpoint is there already, whoever has sent it."""
        return _key_of(entry, self._listing) is not None

    def send(self, entry: Entry, progress: Progress) -> Pushed:
        """Sends one checkpoint, unless it is there; it waits for the mirror no more then.

        Raises:
            MirrorError: The mirror does not take it; another try may go well.
            OSError: The disk cannot be read.
        """
        manifest = entry.manifest
        assert manifest is not None
        waits = manifest.attempt in local_pins.queued(self._directory.control)
        if (key := _key_of(entry, self._listing)) is not None:
            self._answer(entry, key, 0.0)
            return Pushed(entry, key)
        if manifest.attempt in self._listing.doomed:
            return Pushed(entry, None, why=_DELETED)
        begun = time.monotonic()
        pins.tell_asked(self._store, self._listing, manifest.run, self._directory.control, manifest.attempt)
        term = self._term_of(entry)
        try:
            with Folder.open(self._directory.folder / entry.path.name) as folder:
                key = upload(self._store, folder, term, None, progress)
        except DamagedCheckpointError as error:
            return Pushed(entry, None, why="; ".join(error.problems) or str(error), is_damaged=True)
        except FileNotFoundError:
            return Pushed(entry, None, why="it was deleted here meanwhile")
        except (MirrorUnavailableError, MirrorAccessError, MirrorTakenError):
            raise
        except MirrorError:
            return Pushed(entry, None, why=_DELETED)
        seconds = round(time.monotonic() - begun, 3)
        self._answer(entry, key, seconds)
        return Pushed(entry, key, seconds, has_waited=waits)

    def newest_elsewhere(self, key: CheckpointKey) -> CheckpointKey | None:
        """Returns the newest one there, where that is newer than one that was sent and is not on this disk."""
        newest = max((each.key for each in self._listing.published), default=key)
        return newest if newest > key and newest.attempt not in self._sequences else None

    def _term_of(self, entry: Entry) -> int:
        """Returns the term under which a checkpoint is sent: the last one that was claimed here up to its own.

        The place may have had later ones since, that this is not of. Nor is it of its own one, if what has that term
        there went on from a later checkpoint than this one did: this directory is a copy, or that one is.
        """
        manifest = entry.manifest
        assert manifest is not None
        term = max((number for number in self._claimed if number <= entry.term), default=0)
        there = {each.key.attempt: each.key.sequence for each in self._listing.published}
        origin = (there | self._sequences).get(manifest.parent or "")
        if origin is None:
            return term
        later = [each for each in self._listing.published if each.key.term == term and each.key.sequence > origin]
        of_others = tuple(each for each in later if each.key.attempt not in self._sequences)
        for each in self._catalog.entries(replace(self._listing, checkpoints=of_others)):
            if each.entry.manifest is not None and each.entry.manifest.parent != manifest.parent:
                return max((number for number in self._claimed if number < term), default=0)
        return term

    def _answer(self, entry: Entry, key: CheckpointKey, seconds: float) -> None:
        manifest = entry.manifest
        assert manifest is not None
        self._queue.answer(
            Answer(manifest.attempt, manifest.step, manifest.sequence, True, key.term, "", manifest.size, seconds)
        )


def _key_of(entry: Entry, listing: Listing) -> CheckpointKey | None:
    """Returns the name that a checkpoint has there; None where it is not there, whole as far as sizes tell."""
    manifest = entry.manifest
    assert manifest is not None
    same = (each for each in listing.published if each.key.attempt == manifest.attempt)
    return next((each.key for each in same if each.problem_of(manifest) is None), None)


def _without_sign(url: str, term: int) -> MirrorTakenError:
    return MirrorTakenError(
        f"{url} has no sign of this run, which has claimed it (term {term})",
        hint="it was emptied, or it is another place of that name: look at the endpoint (--endpoint, AWS_ENDPOINT_URL),"
        " or at whether a disk is mounted; to send to a new place give another address",
    )
