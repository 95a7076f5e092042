"""A run in a mirror, as the command line shows it: its checkpoints have the names that they would have on a disk."""

from dataclasses import dataclass, replace
from pathlib import Path

from holdfast.errors import RunNotFoundError
from holdfast.remote.catalog import RemoteCatalog, RemoteEntry
from holdfast.remote.keys import CheckpointKey
from holdfast.remote.listing import Listing, RemoteCheckpoint, listing_of
from holdfast.remote.object_store import ObjectStore
from holdfast.remote.opening import open_store
from holdfast.remote.terms import owner_of
from holdfast.store import names
from holdfast.store.catalog import Entry


@dataclass(frozen=True)
class RunThere:
    """One look at the run in a mirror.

    Args:
        store: The place.
        run: The identity of the run that it belongs to.
        listing: What is there.
        catalog: What its manifests say.
        checkpoints: The checkpoints, the newest first. The path of each is its name: `checkpoint-STEP` for the newest
            of a step, as in a run directory.
    """

    store: ObjectStore
    run: str
    listing: Listing
    catalog: RemoteCatalog
    checkpoints: list[RemoteEntry]

    @property
    def entries(self) -> list[Entry]:
        """The checkpoints as a catalog has them."""
        return [each.entry for each in self.checkpoints]

    def named(self, name: str) -> RemoteEntry:
        """Returns the checkpoint of a name.

        Raises:
            RunNotFoundError: There is none.
        """
        match = next((each for each in self.checkpoints if each.entry.path.name == name), None)
        if match is None:
            hint = f"see what there is: holdfast list {self.store.url}"
            raise RunNotFoundError(f"there is no {name} in {self.store.url}", hint=hint)
        return match

    def listed(self, key: CheckpointKey) -> RemoteCheckpoint:
        """Returns the files of a checkpoint."""
        return self.listing.of(key)


def split(url: str) -> tuple[str, str | None]:
    """Takes the name of a checkpoint from an address: `URL/checkpoint-STEP`. None where it has none."""
    place, _, last = url.rstrip("/").rpartition("/")
    return (url, None) if names.step_of(last) is None else (place, last)


def look(url: str, endpoint: str | None, region: str | None) -> RunThere:
    """Opens a mirror, and looks at the run in it.

    Raises:
        ConfigError: It is no address.
        RunNotFoundError: No run has it.
        MirrorError: It cannot be looked at.
    """
    store = open_store(url, endpoint, region)
    run = owner_of(store)
    if run is None:
        hint = "give what mirror: says, with its whole prefix"
        if names.step_of(url.rstrip("/").rpartition("/")[2]) is not None:
            hint += "; one checkpoint of it is for verify, inspect and pull"
        raise RunNotFoundError(f"there is no run in {store.url}", hint=hint)
    listing, catalog = listing_of(store, run), RemoteCatalog(store)
    return RunThere(store, run, listing, catalog, _named(catalog.entries(listing)))


def _named(entries: list[RemoteEntry]) -> list[RemoteEntry]:
    taken: set[int] = set()
    named = []
    for each in entries:
        step = each.entry.step
        if each.entry.manifest is None and not step:
            name = Path(each.key.prefix).name  # nobody knows of which step it is
        else:
            name = names.superseded(step, each.key.attempt) if step in taken else names.checkpoint(step)
            taken.add(step)
        named.append(RemoteEntry(each.key, replace(each.entry, path=Path(name))))
    return named
