"""The file operations that everything durable is made of. All of the commit core's changes to the disk go through here.

Standard library alone, so that a fault test costs a tenth of a second. The order of these calls is the protocol; see
`docs/format.md`.
"""

import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from holdfast.store import names

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_STAGED = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

# The answers of file systems that cannot sync a directory at all (SMB, some FUSE). Not EIO: that is a loss.
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP)
# The answers of renameat2 where the kernel or the file system has no RENAME_NOREPLACE.
_NO_SUCH_RENAME = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1


def make_directory(path: Path) -> None:
    """Makes a directory that only its owner may enter. Fails if anything has that name."""
    path.mkdir(mode=0o700)


def make_directories(path: Path) -> None:
    """Makes a directory and what is missing above it, each under a durable name. One that is there is left as it is."""
    if path.is_dir():
        return
    make_directories(path.parent)
    path.mkdir(exist_ok=True)
    with suppress(PermissionError):  # who may make something in a directory need not be allowed to read it
        sync_directory(path.parent)


def make_private(path: Path) -> None:
    """Takes a directory that somebody else may have made away from everybody but its owner."""
    path.chmod(0o700)


def open_new(path: Path) -> int:
    """Opens a file for writing that must not exist yet, readable by its owner alone."""
    return os.open(path, _NEW, 0o600)


def write_new(path: Path, data: bytes) -> None:
    """Writes and syncs a file that must not exist yet, readable by its owner alone."""
    fd = open_new(path)
    try:
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Writes all of `data`. The system takes a short write for no error (seen at a file-size limit), so we loop."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def replace(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Gives `path` new content in one step: readers see the old or the new, never a part. `durable` syncs both."""
    with _replacing(path, durable=durable) as fd:
        write_all(fd, data)
    if durable:
        sync_directory(path.parent)


def copy(source: Path, target: Path) -> None:
    """Copies a file's content to `target` in one step, synced; the rename is made durable by syncing the directory."""
    with open_regular(source) as origin, _replacing(target, durable=True) as fd:
        while part := os.read(origin, 1 << 20):
            write_all(fd, part)


@contextmanager
def _replacing(path: Path, *, durable: bool) -> Iterator[int]:
    """Opens a new file that takes the place of `path` at the end, or is removed."""
    # What lies in its way is never opened: whoever may write to the directory could have planted a link there.
    temporary = path.with_name(names.temporary(path.name, os.getpid()))
    with suppress(FileNotFoundError):
        remove(temporary)
    try:
        fd = open_new(temporary)
        try:
            yield fd
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        temporary.rename(path)
    except OSError:
        with suppress(OSError):
            remove(temporary)
        raise


def append(path: Path, data: bytes) -> None:
    """Adds `data` to the end of a file of ours in one write; never through a link, never to anything but a file."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
        write_all(fd, data)
    finally:
        os.close(fd)


def read(path: str | Path, *, limit: int, folder: int | None = None) -> bytes:
    """Reads a regular file of at most `limit` bytes, not through a link at its name.

    Raises:
        OSError: It cannot be opened, is no regular file, or is larger than `limit` (EFBIG).
    """
    with open_regular(path, folder=folder) as fd:
        parts = []
        left = limit + 1
        while left and (part := os.read(fd, min(left, 1 << 20))):
            parts.append(part)
            left -= len(part)
    if not left:
        raise OSError(errno.EFBIG, f"is larger than {limit} bytes", str(path))
    return b"".join(parts)


@contextmanager
def open_regular(path: str | Path, *, folder: int | None = None) -> Iterator[int]:
    """Opens a regular file for reading; never follows a link at its name, never waits (a FIFO would)."""
    fd = os.open(path, _READ, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
        yield fd
    finally:
        os.close(fd)


@contextmanager
def open_staged(path: Path) -> Iterator[int]:
    """Opens a file that anybody may have written, once it is durable and its owner's alone.

    Raises:
        OSError: It cannot be opened or synced, is no regular file, or has another name beside this.
    """
    fd = os.open(path, _STAGED)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise OSError(errno.EINVAL, "is not a plain file with one name", str(path))
        os.fchmod(fd, 0o600)
        os.fsync(fd)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def open_folder(path: str | Path, *, folder: int | None = None) -> Iterator[int]:
    """Opens a directory itself, not what a link at its name points to."""
    fd = os.open(path, _FOLDER, dir_fd=folder)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def open_inside(folder: int, relative: str) -> Iterator[int]:
    """Opens a regular file below `folder`, following no link on the way."""
    first, _, rest = relative.partition("/")
    if not rest:
        with open_regular(first, folder=folder) as fd:
            yield fd
    else:
        with open_folder(first, folder=folder) as inner, open_inside(inner, rest) as fd:
            yield fd


def sync_directory(path: Path) -> bool:
    """Makes the names in a directory durable. False where the file system cannot; an I/O error is raised.

    A run directory may be a link to one: what is made under its path is made behind the link, so that is synced.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
        return False
    finally:
        os.close(fd)
    return True


def rename_new(source: Path, target: Path) -> None:
    """Renames, and fails with FileExistsError rather than replace anything. A plain rename replaces an empty directory.

    Where the kernel or the file system cannot promise that, looks first and then renames: what could still be
    replaced in between is an empty directory, which holds nothing.
    """
    moving = source.lstat()
    try:
        _rename_new(source, target)
    except OSError:
        # A network file system whose answer got lost tries again, and then finds nothing to rename, or the name taken.
        if os.path.lexists(source) or not os.path.lexists(target) or not os.path.samestat(moving, target.lstat()):
            raise


def _rename_new(source: Path, target: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        paths = (os.fsencode(source), os.fsencode(target))
        if libc.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_NOREPLACE) == 0:
            return
        number = ctypes.get_errno()
        if number not in _NO_SUCH_RENAME:
            raise OSError(number, os.strerror(number), str(source), None, str(target))
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    source.rename(target)


def remove(path: Path) -> None:
    """Removes a file's name."""
    path.unlink()


def remove_tree(path: Path) -> None:
    """Removes a directory and all in it."""
    shutil.rmtree(path)


def free_space(path: Path) -> tuple[int, int]:
    """Returns the bytes and inodes that an ordinary user may still take; -1 inodes where nobody counts them."""
    system = os.statvfs(path)
    return system.f_bavail * system.f_frsize, system.f_favail if system.f_files else -1
