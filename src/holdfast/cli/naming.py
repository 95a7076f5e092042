"""Finds the checkpoint that a path on the command line means, and the pinned ones."""

import os
from pathlib import Path

from holdfast.errors import DamagedCheckpointError, RunNotFoundError, UnsupportedError
from holdfast.store import catalog, names, pins
from holdfast.store.catalog import Entry
from holdfast.store.folder import Folder
from holdfast.store.manifest import Manifest
from holdfast.text import shown


def checkpoint(path: Path) -> tuple[Folder, Manifest]:
    """Finds a checkpoint, opens it and reads its manifest; a link to one, or `.` in one, is a way to name it.

    Raises:
        RunNotFoundError: There is no checkpoint there.
        UnsupportedError: It was made by plain transformers, so that nothing says what it is.
        DamagedCheckpointError: Its manifest cannot be trusted.
    """
    if not path.is_dir():
        hint = "give a checkpoint: holdfast list RUN shows a run's"
        if path.name.isdecimal():
            hint = f"that of step {path.name} is RUN/{names.checkpoint(int(path.name))}"
        raise RunNotFoundError(f"there is no directory {shown(str(path))}", hint=hint)
    path = path.resolve()
    if not is_checkpoint(path):
        hint = f"see whether there are some in it: holdfast list {path}"
        if entries := catalog.entries(path):
            hint = f"the newest in it is {entries[0].path}"
        raise RunNotFoundError(f"{shown(str(path))} is not a checkpoint", hint=hint)
    try:
        folder = Folder.open(path)
    except OSError as error:
        raise DamagedCheckpointError(f"{path} cannot be opened: {error.strerror or error}") from error
    entry = catalog.read(folder)
    if entry.manifest is not None:
        return folder, entry.manifest
    if entry.foreign:
        raise UnsupportedError(
            f"{path} was made by plain transformers and has no manifest",
            hint="nothing says what it is; Holdfast never deletes it, and resumes from it when it is named",
        )
    raise DamagedCheckpointError(f"{path}: {entry.problem}", hint=f"see what else is wrong: holdfast verify {path}")


def is_checkpoint(path: Path) -> bool:
    """Tells if a directory has a checkpoint's name, or a manifest; `path` has no links and no dots in it."""
    return names.step_of(path.name) is not None or os.path.lexists(path / names.MANIFEST)


def require_run(path: Path) -> None:
    """Checks that a run directory is meant.

    Raises:
        RunNotFoundError: There is no directory, or it is a checkpoint.
    """
    if not path.is_dir():
        raise RunNotFoundError(f"there is no directory {shown(str(path))}", hint="give the output_dir of a training")
    if is_checkpoint(resolved := path.resolve()):
        raise RunNotFoundError(
            f"{shown(str(path))} is a checkpoint, and a run is meant",
            hint=f"its run is {_beside(path, resolved.parent)}",
        )


def _beside(path: Path, run: Path) -> Path:
    """Returns a run's directory as its user writes paths."""
    return run if path.is_symlink() or path.name in ("", "..") or not path.parent.name else path.parent


def asked_by(entry: Entry) -> str:
    """Returns what a checkpoint was saved for, in the words of those who asked."""
    reasons = entry.manifest.reasons if entry.manifest is not None else ()
    return ", ".join(str(reason.get("why") or reason.get("door")) for reason in reasons)


def pinned_in(run: Path) -> frozenset[str] | None:
    """Returns the pins; None where they cannot be read: by a stranger, or because something else has their name."""
    try:
        with Folder.open(run / names.CONTROL) as control:
            return pins.pinned(control)
    except FileNotFoundError:
        return frozenset()
    except OSError:
        return None
