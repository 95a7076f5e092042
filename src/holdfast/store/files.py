"""The file operations that everything durable is made of. All of the commit core's changes to the disk go through here.

Standard library alone, so that a fault test costs a tenth of a second. The order of these calls is the protocol; see
`docs/format.md`.
"""

import ctypes
import errno
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from holdfast.store import names
from holdfast.store.folder import DEEPEST, Directory, Folder, Where, at, exists, open_at, status_of, walk

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_STAGED = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

# The answers of file systems that cannot sync a directory at all (SMB, some FUSE). Not EIO: that is a loss.
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP)
# The answers of renameat2 where the kernel or the file system has no RENAME_NOREPLACE.
_NO_SUCH_RENAME = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1


def make_directory(where: Where) -> None:
    """Makes a directory that only its owner may enter. Fails if anything has that name."""
    name, above = at(where)
    try:
        os.mkdir(name, 0o700, dir_fd=above)
    except OSError as error:
        error.filename = str(where)  # the whole path, and not the name alone
        raise


def make_directories(path: Path) -> None:
    """Makes a directory and what is missing above it, each under a durable name. One that is there is left as it is."""
    if path.is_dir():
        return
    make_directories(path.parent)
    path.mkdir(exist_ok=True)
    with suppress(PermissionError):  # who may make something in a directory need not be allowed to read it
        sync_directory(path.parent)


def make_private(folder: Folder) -> None:
    """Takes a directory that somebody else may have made away from everybody but its owner."""
    os.fchmod(folder.fd, 0o700)


def open_new(where: Where) -> int:
    """Opens a file for writing that must not exist yet, readable by its owner alone."""
    return open_at(where, _NEW)


def write_new(where: Where, data: bytes) -> None:
    """Writes and syncs a file that must not exist yet, readable by its owner alone."""
    fd = open_new(where)
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


def replace(where: Where, data: bytes, *, durable: bool = True) -> None:
    """Gives a file new content in one step: readers see the old or the new, never a part. `durable` syncs both."""
    with _replacing(where, durable=durable) as fd:
        write_all(fd, data)
    if durable:
        sync_directory(where.parent)


def copy(source: Where, target: Where) -> None:
    """Copies a file's content to `target` in one step, synced; the rename is made durable by syncing the directory."""
    with open_regular(source) as origin, _replacing(target, durable=True) as fd:
        while part := os.read(origin, 1 << 20):
            write_all(fd, part)


def replace_by_link(where: Where, leads_to: str) -> None:
    """Has a name lead to a path in one step; the rename is made durable by syncing the directory."""
    temporary = _temporary(where)
    name, above = at(temporary)
    os.symlink(leads_to, name, dir_fd=above)
    _rename(temporary, where)


@contextmanager
def _replacing(where: Where, *, durable: bool) -> Iterator[int]:
    """Opens a new file that takes the place of another at the end, or is removed."""
    temporary = _temporary(where)
    try:
        fd = open_new(temporary)
        try:
            yield fd
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
    except OSError:
        with suppress(OSError):
            remove(temporary)
        raise
    _rename(temporary, where)


def _temporary(where: Where) -> Where:
    """Returns a free name beside another, of what is to take its place."""
    # What lies in its way is never opened: whoever may write to the directory could have planted a link there.
    temporary = where.with_name(names.temporary(where.name, threading.get_native_id()))
    with suppress(FileNotFoundError):
        remove(temporary)
    return temporary


def _rename(temporary: Where, where: Where) -> None:
    (source, above), (target, other) = at(temporary), at(where)
    try:
        os.rename(source, target, src_dir_fd=above, dst_dir_fd=other)
    except OSError:
        with suppress(OSError):
            remove(temporary)
        raise


def read(where: Where, *, limit: int) -> bytes:
    """Reads a regular file of at most `limit` bytes, not through a link at its name.

    Raises:
        OSError: It cannot be opened, is no regular file, or is larger than `limit` (EFBIG).
    """
    with open_regular(where) as fd:
        return read_open(fd, limit, str(where))


def read_open(fd: int, limit: int, path: str) -> bytes:
    """Reads an open file of at most `limit` bytes; `path` is for the error.

    Raises:
        OSError: It cannot be read, or is larger than `limit` (EFBIG).
    """
    parts = []
    left = limit + 1
    while left and (part := os.read(fd, min(left, 1 << 20))):
        parts.append(part)
        left -= len(part)
    if not left:
        raise OSError(errno.EFBIG, f"is larger than {limit} bytes", path)
    return b"".join(parts)


@contextmanager
def open_regular(where: Where) -> Iterator[int]:
    """Opens a regular file for reading; never follows a link at its name, never waits (a FIFO would)."""
    fd = open_at(where, _READ)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(where))
        yield fd
    finally:
        os.close(fd)


@contextmanager
def open_staged(where: Where) -> Iterator[int]:
    """Opens a file that anybody may have written, once it is durable and its owner's alone.

    Raises:
        OSError: It cannot be opened or synced, is no regular file, or has another name beside this.
    """
    fd = open_at(where, _STAGED)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise OSError(errno.EINVAL, "is not a plain file with one name", str(where))
        os.fchmod(fd, 0o600)
        os.fsync(fd)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def open_inside(folder: Folder, relative: str) -> Iterator[int]:
    """Opens a regular file below `folder`, following no link on the way."""
    above, _, last = relative.rpartition("/")
    with below(folder, above) as inside, open_regular(inside / last) as fd:
        yield fd


@contextmanager
def below(folder: Folder, relative: str, *, make: bool = False) -> Iterator[Folder]:
    """Opens a directory below `folder`, following no link on the way; an empty path is the directory itself.

    Args:
        folder: The directory.
        relative: The path from there.
        make: Makes what is missing of it.
    """
    with ExitStack() as opened:
        for name in filter(None, relative.split("/")):
            if make:
                with suppress(FileExistsError):
                    make_directory(folder / name)
            folder = opened.enter_context(Folder.open(folder / name))
        yield folder


def sync_directory(directory: Directory) -> bool:
    """Makes the names in a directory durable. False where the file system cannot; an I/O error is raised.

    A run directory may be a link to one: what is made under its path is made behind the link, so that is synced.
    """
    folder = directory if isinstance(directory, Folder) else Folder.open(directory, follow=True)
    try:
        os.fsync(folder.fd)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
        return False
    return True


def rename_new(source: Where, target: Where) -> None:
    """Renames, and fails with FileExistsError rather than replace anything. A plain rename replaces an empty directory.

    Where the kernel or the file system cannot promise that, looks first and then renames: what could still be
    replaced in between is an empty directory, which holds nothing.
    """
    moving = status_of(source)
    try:
        _rename_new(source, target)
    except OSError:
        # A network file system whose answer got lost tries again, and then finds nothing to rename, or the name taken.
        if exists(source) or not exists(target) or not os.path.samestat(moving, status_of(target)):
            raise


def _rename_new(source: Where, target: Where) -> None:
    if _rename_at_once(source, target):
        return
    if exists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    (old, above), (new, other) = at(source), at(target)
    os.rename(old, new, src_dir_fd=above, dst_dir_fd=other)


def _rename_at_once(source: Where, target: Where) -> bool:
    """Renames by the one call that replaces nothing; False where the kernel or the file system has none."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    (old, above), (new, other) = at(source), at(target)
    folders = [_AT_FDCWD if fd is None else fd for fd in (above, other)]
    if libc.renameat2(folders[0], os.fsencode(old), folders[1], os.fsencode(new), _RENAME_NOREPLACE) == 0:
        return True
    number = ctypes.get_errno()
    if number not in _NO_SUCH_RENAME:
        raise OSError(number, os.strerror(number), str(source), None, str(target))
    return False


def lacking(folder: Folder) -> list[str]:
    """Returns a line for each thing that the system has not, which says what is lost without it.

    Args:
        folder: The run directory, in which a file is made and renamed for that.
    """
    lines = []
    if folder.through == folder.path:
        lines.append(
            "/proc is missing: a Trainer writes and loads checkpoints by their paths, and one that somebody exchanges"
            " meanwhile is refused only afterwards"
        )
    ours, other = (folder / names.temporary(name, threading.get_native_id()) for name in ("old", "new"))
    with suppress(OSError):
        os.close(open_new(ours))
        try:
            renamed = _rename_at_once(ours, other)
        finally:
            for place in (ours, other):
                with suppress(FileNotFoundError):
                    remove(place)
        if not renamed:
            lines.append(
                f"renameat2 is missing in {folder}: before a rename it is looked whether the new name is free, and what"
                " takes it right then is replaced if it is an empty directory"
            )
    return lines


def remove(where: Where) -> None:
    """Removes a file's name."""
    name, above = at(where)
    try:
        os.unlink(name, dir_fd=above)
    except OSError as error:
        error.filename = str(where)
        raise


def remove_tree(where: Where) -> None:
    """Removes a directory and all in it, as `remove_open` does."""
    with Folder.open(where) as folder:
        remove_open(folder, where)


def remove_open(folder: Folder, where: Where) -> None:
    """Removes all that is in an open directory, and its name, if that still leads to it.

    Raises:
        OSError: Something cannot be removed; or, once all else is, something that lies deeper than a walk goes.
    """
    empty(folder)
    if folder.is_at(where):
        name, above = at(where)
        os.rmdir(name, dir_fd=above)


def empty(folder: Folder) -> None:
    """Removes all that is in a directory, whatever name it has by now.

    Raises:
        OSError: Something cannot be removed; or, once all else is, something that lies deeper than a walk goes.
    """
    holding: set[str] = set()  # the paths of directories that something too deep is left in
    for level in walk(folder):
        for name in level.others:
            remove(level.folder / name)
        left = {level.inside(name) for name in level.folders} & holding
        for name in level.folders:
            if level.inside(name) not in left:
                os.rmdir(name, dir_fd=level.folder.fd)
        if left or level.deeper:
            holding.add(level.path)
    if holding:
        raise OSError(
            errno.ENOTEMPTY, f"it holds directories more than {DEEPEST} levels deep, which are left", str(folder)
        )


def free_space(directory: Directory) -> tuple[int, int]:
    """Returns the bytes and inodes that an ordinary user may still take; -1 inodes where nobody counts them."""
    system = os.statvfs(directory.fd if isinstance(directory, Folder) else directory)
    return system.f_bavail * system.f_frsize, system.f_favail if system.f_files else -1


def free_share(directory: Directory) -> float:
    """Returns the part that is free of the space that ordinary users have on a file system, as `df` counts it."""
    system = os.statvfs(directory.fd if isinstance(directory, Folder) else directory)
    theirs = system.f_blocks - system.f_bfree + system.f_bavail
    return system.f_bavail / theirs if theirs else 1.0
