"""The work of the mirror's process: it sends what waits, one checkpoint after another, and tries again for ever."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from holdfast.errors import (
    DamagedCheckpointError,
    MirrorAccessError,
    MirrorError,
    MirrorTakenError,
    MirrorUnavailableError,
)
from holdfast.mirror import bringing, state, turns
from holdfast.mirror.destination import Assignment
from holdfast.mirror.queue import Answer, Queue, Queued
from holdfast.mirror.state import State
from holdfast.mirror.wanted import WantedList
from holdfast.remote import pins, retention
from holdfast.remote.catalog import RemoteCatalog
from holdfast.remote.keys import CheckpointKey
from holdfast.remote.listing import Listing, listing_of
from holdfast.remote.object_store import ObjectStore, Progress
from holdfast.remote.upload import upload
from holdfast.run import lease
from holdfast.run.directory import RunDirectory
from holdfast.run.status import Rate
from holdfast.store import digest, terms
from holdfast.store import pins as local_pins
from holdfast.store.catalog import Catalog, Entry
from holdfast.store.folder import Folder
from holdfast.store.manifest import Manifest
from holdfast.store.retention import RetentionPolicy

_LOOK_SECONDS = 1.0
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 300.0
# The state is written for people while bytes arrive.
_SHOWN_SECONDS = 0.5


class Wake(threading.Event):
    """The sign that there may be something to do; a pause after a failure ends by it."""

    ends_at: float | None = None
    """The time on the monotonic clock at which training ends, and this process with it; None as long as none is."""
    trains: bool = False
    """True once training has made a step: until then it has the disk and the processors for itself."""


class GivesWayError(Exception):
    """An upload makes way for that of a stop. Whatever is there of it stays there."""


class Sender:
    """Sends the checkpoints of one run to its mirror.

    Args:
        directory: The run directory.
        assignment: The run and its mirror.
        opening: Opens the mirror; called again where its credentials seem to have run out.
        wake: The sign that there may be something to do.
    """

    def __init__(
        self,
        directory: RunDirectory,
        assignment: Assignment,
        opening: Callable[[], ObjectStore],
        wake: Wake,
    ) -> None:
        self._directory = directory
        self._token = assignment.token
        self._run = assignment.run
        self._destination = destination = assignment.destination
        self._opening = opening
        self._wake = wake
        self._queue = Queue(directory)
        self._wanted = WantedList(directory)
        self._catalog = Catalog(directory.folder, terms.claimed(directory.control))
        self._store: ObjectStore | None = None
        self._remote: RemoteCatalog
        self._is_renewed = False
        self._state = State(destination.url, destination.term, endpoint=destination.endpoint, region=destination.region)
        self._written = 0.0
        self._pause = 0.0
        self._newest_was_last = False
        self._newest_sent: Queued | None = None
        self._begun: dict[str, float] = {}
        self._looked = False
        self._marked: frozenset[str] | None = None
        self._marks: tuple[frozenset[str], ...] = (frozenset(), frozenset())

    def serve(self) -> None:
        """Serves for ever: whoever wants it to end ends the process."""
        while True:
            self._wake.clear()
            lease.follow(self._directory, self._token)
            if not self.serve_one():
                self._wake.wait(max(self._pause, _LOOK_SECONDS))

    def serve_one(self) -> bool:
        """Answers one of those that wait, or brings one that is wanted; False where there is none, or it has failed."""
        try:
            waiting = self._queue.waiting()
            if self._state.taken_over:
                self._queue.give_up(self._state.taken_over)
                return False
            skipped = turns.overtaken(waiting)
            for queued in skipped:
                self._queue.refuse(queued, f"step {waiting[-1].step} came before it was sent")
            waiting = [queued for queued in waiting if queued not in skipped]
            if not self._looked:
                return self._try(self._look_around) and bool(waiting)
            if not waiting:
                self._show(force=False)
                # The machine may go before there is something to send again.
                if self._marks_here() != self._marks:
                    self._try(lambda: self._settle_marks(self._opened()))
                return self._bring_one()
            queued = turns.next_of(waiting, newest_was_last=self._newest_was_last)
            if not self._try(lambda: self._send(queued)):
                return False
            self._newest_was_last = queued is waiting[-1] and len(waiting) > 1
            return True
        except OSError as error:
            self._fail(error)  # the run directory, which may be there again
            return False

    def _try(self, work: Callable[[], object]) -> bool:
        """Does some work with the store; False where it is to be done again, after a pause."""
        try:
            work()
        except MirrorTakenError as error:
            self._show(taken_over=f"{error}", uploading=None, failing_since=None, next_try_at=None)
            return True
        except MirrorAccessError as error:
            self._store = None  # what it signed in with may have run out, and there may be newer by now
            if not self._is_renewed:
                self._is_renewed = True
                return True
            self._fail(error)
        except (MirrorUnavailableError, OSError) as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001 - whatever a store has, the next try may go well
            self._store = None
            self._fail(error)
        else:
            self._pause, self._is_renewed = 0.0, False
            self._show(uploading=None, failing_since=None, why="", next_try_at=None)
            return True
        return False

    def _look_around(self) -> None:
        """Learns what is there already, and removes what uploads of earlier starts have left."""
        store = self._opened()
        listing = self._settle_marks(store)
        whole = (each for each in self._remote.entries(listing) if each.entry.manifest is not None)
        if (newest := next(whole, None)) is not None:
            self._state = replace(self._state, mirrored=_place(newest.entry.step, newest.key))
        here = [entry.manifest.attempt for entry in self._catalog.entries() if entry.manifest is not None]
        if self._marked is None:
            self._marked = listing.doomed
        retention.sweep(store, self._run, self._destination.term, here, self._marked)
        self._looked = True

    def _marks_here(self) -> tuple[frozenset[str], ...]:
        return local_pins.pinned(self._directory.control), local_pins.asked_for(self._directory.control)

    def _settle_marks(self, store: ObjectStore, sending: str | None = None) -> Listing:
        """Lists what is there, and has the pins there and here be the same, and what was asked for here be known there.

        Raises:
            MirrorUnavailableError: This start's own claim is not there. Then it is another place, such as the empty
                directory that an unmounted disk has left, and nobody would look there.
        """
        listing = listing_of(store, self._run)
        if self._destination.term not in listing.terms:
            raise MirrorUnavailableError(
                f"{store.url} has no sign of this run's start (term {self._destination.term}): it was emptied, or"
                " another place has its name by now; is a disk not mounted?"
            )
        marks = self._marks_here()
        refused = pins.settle(store, listing, self._run, self._directory.control)
        pins.tell_asked(store, listing, self._run, self._directory.control, sending)
        self._marks = marks
        pinned = local_pins.pinned(self._directory.control)
        there = {each.key.attempt for each in listing.published} | {each.attempt for each in self._queue.waiting()}
        not_pinned, not_sent = self._steps_of(refused), self._steps_of(pinned - refused - there)
        self._state = replace(self._state, not_pinned=not_pinned, not_sent=not_sent)
        return listing

    def _steps_of(self, attempts: frozenset[str]) -> tuple[int, ...]:
        """Returns the steps of those of a set of attempts that are on this disk."""
        here = [entry.manifest for entry in self._catalog.entries() if entry.manifest is not None] if attempts else []
        return tuple(sorted({manifest.step for manifest in here if manifest.attempt in attempts}))

    def _send(self, queued: Queued) -> None:
        entry = self._entry_of(queued)
        if entry is None:
            self._queue.refuse(queued, "it is no longer on this disk")
            return
        manifest = entry.manifest
        assert manifest is not None
        begun = self._begun.setdefault(queued.attempt, time.time())
        progress = self._progress_of(queued, manifest)
        store = self._opened()
        progress(0)
        self._settle_marks(store, queued.attempt)
        try:
            with Folder.open(self._directory.folder / entry.path.name) as folder:
                key = upload(store, folder, entry.term, self._destination.term, progress)
        except GivesWayError:
            self._show(uploading=None)
            return
        except (MirrorUnavailableError, MirrorAccessError, MirrorTakenError):
            raise
        except (DamagedCheckpointError, MirrorError) as error:
            self._queue.refuse(queued, str(error))  # another try would end alike
            return
        except FileNotFoundError:
            if self._entry_of(queued) is not None:
                raise
            self._queue.refuse(queued, "it was deleted while it was being sent")
            return
        seconds = round(time.time() - begun, 3)
        answer = Answer(queued.attempt, manifest.step, manifest.sequence, True, key.term, "", manifest.size, seconds)
        self._state = self._with_mirrored(answer.place())
        self._show(uploading=None)  # whoever hears the answer finds it said
        self._queue.answer(answer)
        self._begun.pop(queued.attempt, None)
        self._retain(store, queued)

    def _progress_of(self, queued: Queued, manifest: Manifest) -> Progress:
        """Returns what hears of the bytes of an upload: it shows them, and may give the upload up."""
        sent, rate = 0, Rate(0)

        def progress(size: int) -> None:
            nonlocal sent, rate
            sent = min(sent + size, manifest.size)
            self._show(uploading={"step": manifest.step, "bytes": sent, "of": manifest.size}, force=False)
            if size > digest.BLOCK_BYTES:
                rate = Rate(sent)  # a file that was there already
            self._make_way(queued, manifest.size - sent, rate.at(sent, time.monotonic()))

        return progress

    def _make_way(self, queued: Queued, left: int, rate: float | None) -> None:
        """Gives up what is being sent where training ends before the checkpoint of its stop would be there.

        Raises:
            GivesWayError: It is given up.
        """
        if self._wake.ends_at is None or rate is None or queued.kind == "stop":
            return
        seconds = self._wake.ends_at - time.monotonic()
        stops = [each for each in self._queue.waiting() if each.kind == "stop"]
        if stops and turns.gives_way(left, stops[-1].bytes, rate, seconds):
            raise GivesWayError

    def _bring_one(self) -> bool:
        """Brings one of those that this start wants; False where it wants none, or that is to be tried again."""
        if not self._wake.trains:
            return False
        wanted = next((each for each in self._wanted.all() if not each.is_over and each.run == self._run), None)
        if wanted is None:
            return False
        show = partial(self._show, force=False)
        return self._try(lambda: bringing.bring(self._opened(), self._directory, wanted, self._catalog.entries(), show))

    def _retain(self, store: ObjectStore, sent: Queued) -> None:
        """Deletes from the mirror what no rule keeps there. What fails is tried again after the next checkpoint."""
        there = self._destination
        newest = self._newest_sent
        self._newest_sent = newest = sent if newest is None or newest.sequence <= sent.sequence else newest
        needed = set(local_pins.pinned(self._directory.control))  # whoever takes a pin away there, it is one here
        for each in (sent, newest, *self._queue.waiting()[-1:]):
            if each.protected is None:
                why = f"this disk did not show which checkpoints are needed beside step {each.step}"
                self._state = replace(self._state, not_deleted=why)
                return
            needed.update(each.protected)
        asked = local_pins.asked_for(self._directory.control)
        policy = RetentionPolicy(there.keep, there.keep_asked, every=there.keep_every)
        try:
            retention.retain(store, self._remote, self._run, there.term, policy, asked, needed)
        except MirrorTakenError:
            raise
        except MirrorError as error:
            self._state = replace(self._state, not_deleted=str(error))
        else:
            self._state = replace(self._state, not_deleted="")

    def _entry_of(self, queued: Queued) -> Entry | None:
        """Returns the checkpoint as it is called by now; None where it is gone, or is another run's."""
        for entry in self._catalog.entries():
            manifest = entry.manifest
            if manifest is not None and (manifest.run, manifest.attempt) == (self._run, queued.attempt):
                return entry
        return None

    def _opened(self) -> ObjectStore:
        if self._store is None:
            self._store = self._opening()
            self._remote = RemoteCatalog(self._store)
        return self._store

    def _with_mirrored(self, place: dict[str, Any]) -> State:
        before = self._state.mirrored
        newer = before is None or (before["term"], before["sequence"]) <= (place["term"], place["sequence"])
        return replace(self._state, mirrored=place) if newer else self._state

    def _fail(self, error: Exception) -> None:
        """Takes in that something is to be tried again: after as long as it has failed by now, within limits."""
        hint = getattr(error, "hint", None)
        why = (f"{error}: {hint}" if hint else str(error)) or type(error).__name__
        now = time.time()
        since = self._state.failing_since or now
        self._pause = min(max(now - since, _FIRST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)
        self._show(uploading=None, failing_since=since, why=why, next_try_at=now + self._pause)

    def _show(self, *, force: bool = True, **changes: Any) -> None:
        """Changes the state and writes it down; without `force` not more often than people look."""
        self._state = replace(self._state, **changes)
        if force or time.monotonic() - self._written >= _SHOWN_SECONDS:
            self._written = time.monotonic()
            with suppress(OSError):
                state.write(self._directory, self._state)


def _place(step: int, key: CheckpointKey) -> dict[str, Any]:
    return {"term": key.term, "sequence": key.sequence, "step": step, "attempt": key.attempt, "at": time.time()}
