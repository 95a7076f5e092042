"""Mirrors in directories, and runs that have one, without a training."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers.remote import a_claim
from helpers.support import RUN, commit_checkpoint
from helpers.waiting import wait_until
from holdfast.log import RunLog
from holdfast.mirror.destination import Destination
from holdfast.mirror.queue import Kind, Queued
from holdfast.mirror.supervisor import Supervisor
from holdfast.remote import terms as remote_terms
from holdfast.remote.listing import listing_of
from holdfast.remote.object_store import ObjectStore
from holdfast.remote.opening import open_store
from holdfast.run.run import Run
from holdfast.store.catalog import Catalog


class MirroredRun:
    """A run that has claimed its mirror, with the mirror's real process.

    Args:
        root: The run directory; the mirror is a directory beside it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.place = root.with_name("mirror")
        self.place.mkdir(exist_ok=True)
        self.url = self.place.as_uri()
        self.said: list[str] = []
        self.run = Run.open(root, continues=RUN)
        self.store: ObjectStore = open_store(self.url)
        remote_terms.take_place(self.store, RUN)
        claimed = remote_terms.claim(self.store, a_claim(), listing_of(self.store, RUN))
        assert claimed.term is not None
        self.term = claimed.term
        self.supervisor = Supervisor(self.run, Destination(self.url, self.term, 3), RunLog(self.said.append))

    def save(self, step: int, kind: Kind = "scheduled") -> Queued:
        """Makes a checkpoint and queues it."""
        commit_checkpoint(self.root, step, term=self.term)
        manifest = next(entry.manifest for entry in Catalog(self.run.folder).entries() if entry.step == step)
        assert manifest is not None
        queued = Queued(manifest.attempt, step, manifest.sequence, manifest.size, kind)
        self.supervisor.put(queued)
        return queued

    def wait(self) -> None:
        """Waits until nothing waits for the mirror any more."""

        def is_empty() -> bool:
            self.supervisor.look()
            return not self.supervisor.waiting

        wait_until(is_empty, limit=60)

    def there(self) -> list[int]:
        """The numbers of the checkpoints in the mirror, the newest first."""
        return [each.key.sequence for each in listing_of(self.store, RUN).published]


@contextmanager
def mirrored_run(root: Path) -> Iterator[MirroredRun]:
    """A run whose mirror's process is there until the end."""
    mirrored = MirroredRun(root)
    mirrored.supervisor.start()
    try:
        yield mirrored
    finally:
        mirrored.supervisor.close()
        mirrored.run.close("finished", 0)
