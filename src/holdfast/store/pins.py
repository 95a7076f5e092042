"""Pins: the checkpoints that are never to be deleted. Beside them: those that were asked for when they were there.

A published checkpoint is never opened for writing, so a pin is an empty file in the run's private directory. Its name
is the checkpoint's attempt, which stays when the checkpoint is renamed. Standard library alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from holdfast.store import files, names
from holdfast.store.folder import Directory, Folder

_PINS = "pins"
_ASKED = "asked"


def pinned(root: Directory) -> frozenset[str]:
    """Returns the attempts that are pinned in a run directory.

    Raises:
        OSError: They cannot be read. Whoever wants to delete something then may not.
    """
    return _marked(root, _PINS)


def pin(root: Directory, attempt: str) -> bool:
    """Pins a checkpoint, durably. False where it was pinned already."""
    return _mark(root, _PINS, attempt)


def asked_for(root: Directory) -> frozenset[str]:
    """Returns the attempts that somebody asked for after they had been saved for another reason.

    Raises:
        OSError: They cannot be read.
    """
    return _marked(root, _ASKED)


def mark_as_asked_for(root: Directory, attempt: str) -> bool:
    """Notes, durably, that somebody has asked for a checkpoint that was there. False where that was noted already."""
    return _mark(root, _ASKED, attempt)


def unpin(root: Directory, attempt: str) -> bool:
    """Takes a pin away, durably. False where there was none."""
    try:
        with _opened(root, _PINS) as folder:
            files.remove(folder / attempt)
            files.sync_directory(folder)
    except FileNotFoundError:
        return False
    return True


def _marked(root: Directory, kind: str) -> frozenset[str]:
    try:
        with _opened(root, kind) as folder:
            return frozenset(filter(names.is_token, folder.names()))
    except FileNotFoundError:
        return frozenset()


def _mark(root: Directory, kind: str, attempt: str) -> bool:
    with Folder.open(root / names.CONTROL) as control:
        with suppress(FileExistsError):
            files.make_directory(control / kind)
        files.sync_directory(control)
    with _opened(root, kind) as folder:
        try:
            files.write_new(folder / attempt, b"")
            new = True
        except FileExistsError:
            new = False
        files.sync_directory(folder)
    return new


@contextmanager
def _opened(root: Directory, kind: str) -> Iterator[Folder]:
    with Folder.open(root / names.CONTROL) as control, Folder.open(control / kind) as folder:
        yield folder
