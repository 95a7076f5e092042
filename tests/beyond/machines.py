"""The processes of a story: a training that mirrors, a start on another machine, somebody who pins or sends by hand."""

import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from beyond.place import Client, CutError
from beyond.promises import Promises
from helpers.support import RUN, commit_checkpoint, content_of
from holdfast.errors import AbsentError, DamagedCheckpointError, MirrorError, MirrorTakenError, MirrorUnavailableError
from holdfast.remote import pins, retention, terms
from holdfast.remote.catalog import RemoteCatalog
from holdfast.remote.download import download
from holdfast.remote.keys import CheckpointKey
from holdfast.remote.listing import Listing, listing_of
from holdfast.remote.terms import Claim
from holdfast.remote.upload import upload
from holdfast.store import catalog, names
from holdfast.store.folder import Folder
from holdfast.store.retention import RetentionPolicy

KEEP = RetentionPolicy(1, None)
_TRIES = 8
T = TypeVar("T")


@dataclass(frozen=True)
class Disk:
    """Checkpoints on one machine's disk, in order."""

    checkpoints: tuple[Path, ...]
    attempts: tuple[str, ...]

    @property
    def saved(self) -> dict[str, dict[str, bytes]]:
        """The files of each, without the manifest."""
        contents = zip(self.attempts, map(content_of, self.checkpoints), strict=True)
        return {attempt: {k: v for k, v in files.items() if k != names.MANIFEST} for attempt, files in contents}


def written(root: Path, first: int, count: int) -> Disk:
    """A disk with so many checkpoints, numbered from `first` on."""
    root.mkdir()
    paths = [
        commit_checkpoint(root, n, {"a": b"weights %d" % n, "b/c": b"state %d" % n}, sequence=n)
        for n in range(first, first + count)
    ]
    manifests = [catalog.read(path).manifest for path in paths]
    return Disk(tuple(paths), tuple(manifest.attempt for manifest in manifests if manifest is not None))


@dataclass
class Machine:
    """One process of a run, which tries again what may go well then."""

    store: Client
    disk: Disk
    promises: Promises
    term: int = 0
    parent: CheckpointKey | None = None
    ended: str = ""
    """Why it has ended, where it has not come to its end."""
    chosen: list[CheckpointKey] = field(default_factory=list)
    said: list[CheckpointKey] = field(default_factory=list)
    """What it said to be mirrored under its claim."""
    chooses: int = 0
    """The place, from the newest on, of what it goes on from: somebody may want an older one."""

    def retried(self, action: Callable[[], T]) -> T:
        for _ in range(_TRIES):
            try:
                return action()
            except MirrorUnavailableError as error:
                last = error
        raise last

    @contextmanager
    def story(self) -> Iterator[None]:
        """Ends where the process is cut off, or its run is another's."""
        try:
            yield
        except (CutError, MirrorError) as error:
            self.ended = type(error).__name__

    def start(self) -> None:
        """Takes the place, chooses what to go on from, claims the run, and sweeps."""
        self.retried(lambda: terms.take_place(self.store, RUN))
        token = uuid.uuid4().hex
        while not self.retried(lambda: self._claimed(token)):
            pass
        marked = self.retried(lambda: listing_of(self.store, RUN)).doomed
        self.retried(lambda: retention.sweep(self.store, RUN, self.term, self.disk.attempts, marked))

    def _claimed(self, token: str) -> bool:
        seen = listing_of(self.store, RUN)
        self.parent = self.choice(seen)
        claim = Claim(RUN, token, "a host", self.parent.attempt if self.parent else None, float(seen.newest_term))
        claimed = terms.claim(self.store, claim, seen)
        self.term = claimed.term or 0
        if claimed.is_current and self.parent is not None:
            self.chosen.append(self.parent)
            self.promises.begin(self.term, self.parent.attempt)
        return claimed.is_current

    def choice(self, seen: Listing) -> CheckpointKey | None:
        """What a start goes on from."""
        whole = [each.key for each in RemoteCatalog(self.store).entries(seen) if each.entry.manifest is not None]
        wanted = [key for key in whole if key.attempt not in seen.doomed] if self.chooses else whole
        return wanted[min(self.chooses, len(wanted) - 1)] if wanted else None

    def pull(self) -> None:
        """Brings what it goes on from to its own disk, and compares it."""
        if self.parent is None:
            self.promises.problems.append("a start goes on from nothing")
            return
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            try:
                content = content_of(download(self.store, self.parent, Path(folder)))
            except (AbsentError, DamagedCheckpointError) as error:
                self.promises.problems.append(f"a start could not pull what it goes on from: {error}")
                return
        content.pop(names.MANIFEST)
        if content != self.promises.saved[self.parent.attempt]:
            self.promises.problems.append("what was pulled is not what was saved")

    def best(self, number: int) -> str:
        """The best checkpoint as of one of its own: every second one is better than all before."""
        if number or self.parent is None:
            return self.disk.attempts[max(number - 1 + number % 2, 0)]
        # That of an older one may be gone with good reason.
        return self.parent.attempt if self.chooses else self.promises.best[self.parent.attempt]

    def send(self, number: int, *, term: int | None = None, claims: bool = True) -> None:
        """Sends one of its checkpoints, under its term or an earlier one, and says so when it is there."""
        attempt = self.disk.attempts[number]
        self.promises.best[attempt] = self.best(number)
        try:
            with Folder.open(self.disk.checkpoints[number]) as folder:
                key = self.retried(lambda: upload(self.store, folder, term or self.term, self.term if claims else None))
        except MirrorTakenError:
            raise
        except (MirrorUnavailableError, DamagedCheckpointError, MirrorError):
            return  # it is not mirrored, and nobody is told so
        self.promises.say(key)
        self.said += [key] if claims else []

    def retain(self, number: int) -> None:
        """Deletes what no rule speaks for, when one of its checkpoints was sent."""
        needed = {self.best(each) for each in range(number, min(number + 2, len(self.disk.attempts)))}
        needed |= {self.parent.attempt} if self.parent else set()
        at = RemoteCatalog(self.store)
        try:
            self.retried(lambda: retention.retain(self.store, at, RUN, self.term, KEEP, protected=needed))
        except MirrorUnavailableError:
            return

    def train(self, *numbers: int) -> None:
        """Sends checkpoints one after another, with retention after each."""
        for number in numbers:
            self.send(number)
            self.retain(number)

    def pin(self, number: int) -> None:
        """Pins a checkpoint, and says so where it is there afterwards."""
        attempt = self.disk.attempts[number]
        if not self.retried(lambda: pins.pin(self.store, RUN, attempt)):
            return
        entries = self.retried(lambda: RemoteCatalog(self.store).entries(listing_of(self.store, RUN)))
        if any(each.key.attempt == attempt and each.entry.manifest is not None for each in entries):
            self.promises.pin(attempt)


def recovered(machine: Machine) -> None:
    """A fresh machine goes on: it finds the newest that was said to be mirrored, whole, and mirrors on."""
    said, problems = max(machine.promises.mirrored, default=None), machine.promises.problems
    machine.start()
    if said is not None and (machine.parent is None or machine.parent < said):
        problems.append("a start found an older one than was said")
    if machine.parent is not None:
        machine.pull()
    machine.train(0, 1, 2)
    if max(machine.promises.mirrored).attempt != machine.disk.attempts[2]:
        problems.append("a start could not mirror on")
