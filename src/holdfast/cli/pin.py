"""`holdfast pin CHECKPOINT...`: never delete these."""

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli import naming
from holdfast.cli.output import as_json, tell
from holdfast.errors import CheckpointError
from holdfast.run.directory import RunDirectory
from holdfast.store import catalog, pins

Checkpoints = Annotated[list[Path], typer.Argument(metavar="CHECKPOINT...", help="Checkpoints in their run directory.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def pin(checkpoints: Checkpoints, json: Json = False) -> None:
    """Keep checkpoints for good: neither a running training nor `prune` deletes them."""
    meant = in_their_runs(checkpoints)
    for path, attempt, directory in meant:
        pins.pin(directory.control, attempt)
        if not _is_there(path, attempt):
            raise CheckpointError(f"{path} was deleted before it was pinned", hint=f"see: holdfast list {path.parent}")
        if not json:
            tell(f"{path.name}: pinned")
    if json:
        as_json({"checkpoints": [{"path": str(path), "pinned": True} for path, *_ in meant]})


def _is_there(path: Path, attempt: str) -> bool:
    """Tells whether a checkpoint is there now that its pin is; who deletes it from here on sees the pin in time."""
    entries = [catalog.read(path), *catalog.entries(path.parent)]  # a new one of the same step may have taken the name
    return any(entry.manifest is not None and entry.manifest.attempt == attempt for entry in entries)


def in_their_runs(checkpoints: list[Path]) -> list[tuple[Path, str, RunDirectory]]:
    """Returns the checkpoints' paths, attempts and run directories; all are found before anything is done to any.

    Raises:
        RunNotFoundError: One is not there, or in no run directory.
        CheckpointError: One has no manifest that says which it is.
    """
    meant = []
    for name in checkpoints:
        folder, manifest = naming.checkpoint(name)
        path = folder.path
        meant.append((path, manifest.attempt, RunDirectory.open(path.parent)))
    return meant
