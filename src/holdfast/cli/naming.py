"""Finds the checkpoint that a path on the command line means, and the pinned ones."""

import os
from pathlib import Path

from holdfast.errors import DamagedCheckpointError, RunNotFoundError, UnsupportedError
from holdfast.store import catalog, names, pins
from holdfast.store.manifest import Manifest


def checkpoint(path: Path) -> tuple[Path, Manifest]:
    """Finds a checkpoint and reads its manifest; a link to one, or `.` in one, is a way to name it.

    Raises:
        RunNotFoundError: There is no checkpoint there.
        UnsupportedError: It was made by plain transformers, so that nothing says what it is.
        DamagedCheckpointError: Its manifest cannot be trusted.
    """
    if not path.is_dir():
        raise RunNotFoundError(
            f"there is no directory {path}", hint="give a checkpoint: holdfast list RUN shows a run's"
        )
    path = path.resolve()
    if names.step_of(path.name) is None and not os.path.lexists(path / names.MANIFEST):
        raise RunNotFoundError(
            f"{path} is not a checkpoint", hint=f"see whether there are some in it: holdfast list {path}"
        )
    entry = catalog.read(path)
    if entry.manifest is not None:
        return path, entry.manifest
    if entry.foreign:
        raise UnsupportedError(
            f"{path} was made by plain transformers and has no manifest",
            hint="nothing says what it is; Holdfast never deletes it, and resumes from it when it is named",
        )
    raise DamagedCheckpointError(f"{path}: {entry.problem}", hint=f"see what else is wrong: holdfast verify {path}")


def pinned_in(run: Path) -> frozenset[str] | None:
    """Returns the pins; None for who may look at the checkpoints and not into the private directory."""
    try:
        return pins.pinned(run)
    except PermissionError:
        return None
