"""Pins: the checkpoints that are never to be deleted; those that were asked for when they were there; those queued.

A published checkpoint is never opened for writing, so a pin is an empty file in the run's private directory. Its name
is the checkpoint's attempt, which stays when the checkpoint is renamed. Standard library alone.
"""

from contextlib import suppress

from holdfast.store import files, names
from holdfast.store.folder import Directory, Folder

QUEUE = "mirror-queue"
"""The directory of what waits for the mirror: a file for each checkpoint, whose name is its attempt."""

_PINS = "pins"
_ASKED = "asked"


def pinned(control: Directory) -> frozenset[str]:
    """Returns the attempts that are pinned in a run.

    Args:
        control: The private directory of the run.

    Raises:
        OSError: They cannot be read. Whoever wants to delete something then may not.
    """
    return _marked(control, _PINS)


def pin(control: Directory, attempt: str) -> bool:
    """Pins a checkpoint, durably. False where it was pinned already."""
    return _mark(control, _PINS, attempt)


def asked_for(control: Directory) -> frozenset[str]:
    """Returns the attempts that somebody asked for after they had been saved for another reason.

    Raises:
        OSError: They cannot be read.
    """
    return _marked(control, _ASKED)


def mark_as_asked_for(control: Directory, attempt: str) -> bool:
    """Notes, durably, that somebody has asked for a checkpoint that was there. False where that was noted already."""
    return _mark(control, _ASKED, attempt)


def queued(control: Directory) -> frozenset[str]:
    """Returns the attempts that wait for the mirror: they are held as if they were pinned, until they are there.

    Raises:
        OSError: They cannot be read. Whoever wants to delete something then may not.
    """
    return _marked(control, QUEUE)


def unpin(control: Directory, attempt: str) -> bool:
    """Takes a pin away, durably. False where there was none."""
    try:
        with Folder.open(control / _PINS) as folder:
            files.remove(folder / attempt)
            files.sync_directory(folder)
    except FileNotFoundError:
        return False
    return True


def _marked(control: Directory, kind: str) -> frozenset[str]:
    try:
        with Folder.open(control / kind) as folder:
            return frozenset(filter(names.is_token, folder.names()))
    except FileNotFoundError:
        return frozenset()


def _mark(control: Directory, kind: str, attempt: str) -> bool:
    with suppress(FileExistsError):
        files.make_directory(control / kind)
    files.sync_directory(control)
    with Folder.open(control / kind) as folder:
        try:
            files.write_new(folder / attempt, b"")
            new = True
        except FileExistsError:
            new = False
        files.sync_directory(folder)
    return new
