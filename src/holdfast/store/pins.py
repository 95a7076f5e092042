"""Pins: the checkpoints that are never to be deleted.

A published checkpoint is never opened for writing, so a pin is an empty file in the run's private directory. Its name
is the checkpoint's attempt, which stays when the checkpoint is renamed. Standard library alone.
"""

import os
from contextlib import suppress
from pathlib import Path

from holdfast.store import files, names


def pinned(root: Path) -> frozenset[str]:
    """Returns the attempts that are pinned in a run directory.

    Raises:
        OSError: They cannot be read. Whoever wants to delete something then may not.
    """
    try:
        with files.open_folder(_folder(root)) as folder, os.scandir(folder) as listing:
            return frozenset(item.name for item in listing if names.is_token(item.name))
    except FileNotFoundError:
        return frozenset()


def pin(root: Path, attempt: str) -> bool:
    """Pins a checkpoint, durably. False where it was pinned already."""
    folder = _folder(root)
    with suppress(FileExistsError):
        files.make_directory(folder)
    files.sync_directory(folder.parent)
    try:
        files.write_new(folder / attempt, b"")
        new = True
    except FileExistsError:
        new = False
    files.sync_directory(folder)
    return new


def unpin(root: Path, attempt: str) -> bool:
    """Takes a pin away, durably. False where there was none."""
    folder = _folder(root)
    try:
        files.remove(folder / attempt)
    except FileNotFoundError:
        return False
    files.sync_directory(folder)
    return True


def _folder(root: Path) -> Path:
    return root / names.CONTROL / "pins"
