"""The checkpoints that a run still needs, as far as another process can tell."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from holdfast.errors import DamagedCheckpointError, RunError
from holdfast.run import lease, outcome
from holdfast.run.directory import RunDirectory
from holdfast.store import reading, references
from holdfast.store.catalog import Entry
from holdfast.store.folder import Folder
from holdfast.store.verify import verify


def identity_of(directory: RunDirectory | None, entries: Sequence[Entry]) -> str:
    """Returns the run that was trained here last; without a lease, that of the newest checkpoint."""
    holder = None if directory is None else lease.read(directory)
    return holder.run if holder is not None else next((e.manifest.run for e in entries if e.manifest), "")


def needed(directory: RunDirectory | None, entries: Sequence[Entry]) -> dict[Path, str]:
    """Returns the checkpoints that must stay whatever the rule is, each with the reason.

    Raises:
        DamagedCheckpointError: The newest one does not tell which is the best, as it should.
        RunError: A process trains the run, and what it was resumed from cannot be read.
    """
    why: dict[Path, str] = {}
    run = identity_of(directory, entries)
    ours = [entry for entry in entries if entry.manifest is not None and entry.manifest.run == run]
    newest = next((entry for entry in ours if verify(entry.path, full=False).good), None)
    best = None if newest is None else _best_step(newest)
    parents = set(_parents(directory, newest))
    for entry in ours:
        if entry.step == best:
            why[entry.path] = "the best one"
        if entry.manifest is not None and entry.manifest.attempt in parents:
            why[entry.path] = "the training was resumed from it"
    return why


def _best_step(newest: Entry) -> int | None:
    """Returns the step of the checkpoint that a Trainer holds for the best; its directory may have been moved since."""
    listed = () if newest.manifest is None else newest.manifest.files
    file = next((file for file in listed if file.path == references.STATE), None)
    if file is None:
        return None
    try:
        with Folder.open(newest.path) as folder:
            data, problem = reading.read_small(folder, file, references.MOST_STATE_BYTES)
        if problem is not None:
            raise ValueError(problem)
        return references.best_step(data)
    except (OSError, ValueError) as error:
        raise DamagedCheckpointError(
            f"{newest.path / references.STATE} cannot be read, so nobody knows which checkpoint is the best: {error}",
            hint=f"see what is wrong: holdfast verify {newest.path}",
        ) from error


def _parents(directory: RunDirectory | None, newest: Entry | None) -> Iterator[str]:
    """Yields the attempts that a live run was resumed from: by its newest checkpoint, and by its own word."""
    holder = None if directory is None else lease.read(directory)
    if directory is None or holder is None or not lease.is_alive(directory, holder):
        return
    if newest is not None and newest.manifest is not None and newest.manifest.parent is not None:
        yield newest.manifest.parent
    start = outcome.read(directory)
    if start is None or start.token != holder.token:
        raise RunError(
            f"nobody knows which checkpoint the training in {directory.root} was resumed from:"
            f" {directory.outcome} does not speak of it",
            hint="it may have begun just now: do the same again; if that does not help, when it has ended",
        )
    if start.parent is not None:
        yield start.parent
