"""What tests of a mirror share that train: a directory as the mirror, and checkpoints that are brought there."""

from pathlib import Path

from holdfast.remote.directory import DirectoryStore
from holdfast.remote.keys import CheckpointKey
from holdfast.remote.listing import Listing, listing_of
from holdfast.remote.location import location_of
from holdfast.remote.terms import owner_of
from holdfast.remote.upload import upload
from holdfast.store import catalog
from holdfast.store.folder import Folder


class DirectoryMirror:
    """A mirror in a directory.

    Args:
        path: The directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = location_of(path.as_uri()).url
        self.store = DirectoryStore(path, self.url)

    def send(self, run: Path, step: int | None = None) -> list[CheckpointKey]:
        """Brings the checkpoints of a run there, the oldest first, each under the term that it counts for."""
        sent = []
        for entry in reversed(catalog.entries(run)):
            if entry.manifest is not None and step in (None, entry.step):
                with Folder.open(entry.path) as folder:
                    sent.append(upload(self.store, folder, entry.term, None))
        return sent

    @property
    def owner(self) -> str | None:
        """The run that it belongs to."""
        return owner_of(self.store)

    @property
    def listing(self) -> Listing:
        """All of that run that is there."""
        assert self.owner is not None
        return listing_of(self.store, self.owner)

    def file(self, key: CheckpointKey, path: str) -> Path:
        """The file in which an object is kept."""
        return self.path / key.of(path)
