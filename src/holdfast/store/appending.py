"""Files of ours that grow: what has the name of one is added to only where it is this user's alone.

A name in a directory that others may write to can be taken before us, or given to something else at any moment. So
what is open is looked at, each time. Standard library alone.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from holdfast.store import files
from holdfast.store.folder import Where, open_at, status_of

_ADDED = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def append(where: Where, data: bytes) -> None:
    """Adds `data` to the end of a file of ours in one write; one that is missing is made.

    Raises:
        NotOursError: What has that name is no file that this user alone may write to.
        OSError: The disk does not take it.
    """
    with open_to_append(where) as fd:
        files.write_all(fd, data)


class NotOursError(OSError):
    """The error of something in the place of a file of ours that is none; `strerror` has the reason."""


@contextmanager
def open_to_append(where: Where) -> Iterator[int]:
    """Opens a file of ours for reading and for adding to its end; one that is missing is made.

    Never follows a link at its name, never waits, and takes nothing that others made or may write to.

    Raises:
        NotOursError: What has that name is no file that this user alone may write to.
        OSError: It cannot be opened.
    """
    try:
        fd = open_at(where, _ADDED)
    except OSError as error:
        with suppress(FileNotFoundError):
            _require_ours(where, status_of(where))
        raise error
    try:
        _require_ours(where, os.fstat(fd))
        yield fd
    finally:
        os.close(fd)


def _require_ours(where: Where, status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise NotOursError(errno.EPERM, "is a symbolic link", str(where))
    if not stat.S_ISREG(status.st_mode):
        raise NotOursError(errno.EPERM, "is not a regular file", str(where))
    if status.st_uid != os.geteuid():
        raise NotOursError(errno.EPERM, f"belongs to another user (uid {status.st_uid})", str(where))
    if status.st_mode & 0o022:
        mode = stat.S_IMODE(status.st_mode)
        raise NotOursError(errno.EPERM, f"may be written to by others (mode {mode:04o})", str(where))
    if status.st_nlink > 1:  # a link to another journal of this user's, which anybody may make where kernels let him
        raise NotOursError(errno.EPERM, "has another name as well (a hard link)", str(where))
