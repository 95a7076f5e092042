"""`holdfast pull`: brings a run from a mirror into a directory that nothing else uses."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from holdfast.errors import AbsentError, ConfigError, DamagedCheckpointError, RunBusyError, RunNotFoundError
from holdfast.mirror.run_there import RunThere
from holdfast.remote import retention
from holdfast.remote.catalog import RemoteEntry
from holdfast.remote.download import download
from holdfast.remote.object_store import Progress
from holdfast.run import lease
from holdfast.run.directory import RunDirectory
from holdfast.store import catalog, names, pins
from holdfast.store.retention import RetentionPolicy
from holdfast.store.verify import verify
from holdfast.text import quoted

# What retention would never delete, and what has a label.
_WANTED = RetentionPolicy(0, 0, labelled=True)


@dataclass(frozen=True)
class Pulled:
    """The outcome for one checkpoint.

    Args:
        checkpoint: Its name in the mirror, and what its manifest says.
        path: Its path here; None where it did not come.
        was_here: True where it was here already.
        problems: The lines that say why it did not come.
    """

    checkpoint: RemoteEntry
    path: Path | None
    was_here: bool = False
    problems: tuple[str, ...] = ()


@contextmanager
def directory_for(root: Path, there: RunThere) -> Iterator[RunDirectory]:
    """Opens the directory that a run is brought into, and keeps it for that; makes it where there is none.

    Raises:
        ConfigError: It is used for something else.
        RunBusyError: A process trains there, or another brings something there.
        RunError: It cannot be used.
    """
    if root.is_dir():
        _require_unused(root, there)
    directory = RunDirectory.create(root)
    with lease.kept_free(directory):
        _require_unused(root, there)  # somebody may have been quicker
        yield directory


def _require_unused(root: Path, there: RunThere) -> None:
    entries = catalog.entries(root)
    if runs := {entry.manifest.run for entry in entries if entry.manifest is not None} - {there.run}:
        raise _used(f"{root} has checkpoints of run {min(runs)}, and {there.store.url} has those of run {there.run}")
    if foreign := next((entry for entry in entries if entry.foreign), None):
        raise _used(f"{root} is used: {foreign.path.name} in it was made by plain transformers")
    try:
        directory = RunDirectory.open(root)
    except RunNotFoundError:
        directory = None
    holder = None if directory is None else lease.read(directory)
    if directory is not None and holder is not None:
        if lease.is_alive(directory, holder):
            raise RunBusyError(f"a process is training the run in {root}", hint="pull into another directory")
        if holder.run != there.run:
            raise _used(f"{root} is that of run {holder.run}, and {there.store.url} has run {there.run}")
    elif not entries and (others := sorted(name for name in map(_name, root.iterdir()) if not _is_ours(name))):
        raise _used(f"{root} is used: it has {quoted(others[0])} in it")


def _name(path: Path) -> str:
    return path.name


def _is_ours(name: str) -> bool:
    return name in (names.CONTROL, names.JOURNAL) or names.is_staging(name) or names.is_temporary(name)


def _used(problem: str) -> ConfigError:
    return ConfigError([problem], hint="pull into a directory that is new or empty")


def pull(
    there: RunThere, directory: RunDirectory, name: str | None, begin: Callable[[RemoteEntry], Progress]
) -> Iterator[Pulled]:
    """Brings checkpoints of a run here, the newest first. What turns out to be damaged counts for nothing.

    Args:
        there: The run.
        directory: The directory.
        name: The one that is wanted; None: the newest good one, a Trainer's best, and those that have a slot, a label
            or a pin.
        begin: Called with each before it comes; hears of the bytes as they arrive.

    Raises:
        MirrorError: The place does not answer; what has come stays.
        NoSpaceError: The disk has no room.
    """
    tried: set[str] = set()
    left_out: set[str] = set()
    while (following := _next(there, name, tried, left_out)) is not None:
        tried.add(following.key.attempt)
        result = _pulled(there, directory, following, begin)
        if result.path is None:
            left_out.add(following.key.attempt)
        else:
            _mark(there, directory, following.key.attempt)
        yield result


def _mark(there: RunThere, directory: RunDirectory, attempt: str) -> None:
    """Has what is said there of a checkpoint beside its manifest be said of it here."""
    if attempt in there.listing.pins:
        pins.pin(directory.control, attempt)
    if attempt in there.listing.asked:
        pins.mark_as_asked_for(directory.control, attempt)


def _next(there: RunThere, name: str | None, tried: set[str], left_out: set[str]) -> RemoteEntry | None:
    """Returns the newest one that is to be brought, and was not yet."""
    if name is not None:
        return None if tried else there.named(name)
    entries = [each for each in there.checkpoints if each.key.attempt not in left_out]
    needed = there.catalog.references(entries)
    keys = {
        key
        for key, verdict in retention.judge(entries, there.listing.pins, _WANTED, protected=needed)
        if verdict.kept is not None
    }
    return next((each for each in entries if each.key in keys and each.key.attempt not in tried), None)


def _pulled(
    there: RunThere, directory: RunDirectory, checkpoint: RemoteEntry, begin: Callable[[RemoteEntry], Progress]
) -> Pulled:
    if checkpoint.entry.manifest is None:
        return Pulled(checkpoint, None, problems=(checkpoint.entry.problem or "damaged",))
    for entry in catalog.entries(directory.folder):
        is_same = entry.manifest is not None and entry.manifest.attempt == checkpoint.key.attempt
        if is_same and verify(entry.path, full=False).good:
            return Pulled(checkpoint, entry.path, was_here=True)
    try:
        path = download(there.store, checkpoint.key, directory.folder, begin(checkpoint))
    except DamagedCheckpointError as error:
        return Pulled(checkpoint, None, problems=tuple(error.problems) or (str(error),))
    except AbsentError:
        return Pulled(checkpoint, None, problems=("it was deleted there meanwhile",))
    return Pulled(checkpoint, path)
