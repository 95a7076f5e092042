"""Pins: the checkpoints that are never to be deleted. Beside them: those that were asked for when they were there.

A published checkpoint is never opened for writing, so a pin is an empty file in the run's private directory. Its name
is the checkpoint's attempt, which stays when the checkpoint is renamed. Standard library alone.
"""

import os
from contextlib import suppress
from pathlib import Path

from holdfast.store import files, names

_ASKED = "asked"


def pinned(root: Path) -> frozenset[str]:
    """Returns the attempts that are pinned in a run directory.

    Raises:
        OSError: They cannot be read. Whoever wants to delete something then may not.
    """
    return _marked(_folder(root))


def pin(root: Path, attempt: str) -> bool:
    """Pins a checkpoint, durably. False where it was pinned already."""
    return _mark(_folder(root), attempt)


def asked_for(root: Path) -> frozenset[str]:
    """Returns the attempts that somebody asked for after they had been saved for another reason.

    Raises:
        OSError: They cannot be read.
    """
    return _marked(_folder(root, _ASKED))


def mark_as_asked_for(root: Path, attempt: str) -> bool:
    """Notes, durably, that somebody has asked for a checkpoint that was there. False where that was noted already."""
    return _mark(_folder(root, _ASKED), attempt)


def _marked(path: Path) -> frozenset[str]:
    try:
        with files.open_folder(path) as folder, os.scandir(folder) as listing:
            return frozenset(item.name for item in listing if names.is_token(item.name))
    except FileNotFoundError:
        return frozenset()


def _mark(folder: Path, attempt: str) -> bool:
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


def _folder(root: Path, kind: str = "pins") -> Path:
    return root / names.CONTROL / kind
