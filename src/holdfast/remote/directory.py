"""A directory of another disk as a place beyond this one: each object is a file, synced as a commit is.

An object is written under `.incoming/`, synced, and gets its name by a rename, or by a hard link where none may be
there: that is the one call that every file system does at once, over a network as well. Nothing that is written there
is reached through a link.
"""

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from holdfast.errors import AbsentError, MirrorAccessError, MirrorUnavailableError
from holdfast.remote.object_store import Item
from holdfast.store import files
from holdfast.store.folder import Folder, Place, names_in, open_at, status_of, walk

_T = TypeVar("_T")

_INCOMING = ".incoming"
# Directories that become empty are removed, so one may go just when something is put into it.
_TRIES = 20

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


class DirectoryStore:
    """A directory as an object store. It is made when something is put there, if that which it lies in is there.

    Args:
        path: Its path.
        url: The address, for people to read.
    """

    def __init__(self, path: Path, url: str) -> None:
        self._path, self.url = path, url
        self._was_there = False
        self._has_swept = False

    def put_file(self, key: str, size: int, blocks: Iterator[bytes]) -> None:
        """Stores a file."""
        with self._translated(key), self._incoming() as (new, place):
            for block in _not_translated(blocks):
                files.write_all(new, block)
            os.fsync(new)
            self._name(place, key, _rename)

    def put_absent(self, key: str, data: bytes) -> bool:
        """Stores a small object where there is none of that key, and tells whether these bytes are there now."""
        with self._translated(key):
            try:
                with self._incoming() as (new, place):
                    files.write_all(new, data)
                    os.fsync(new)
                    self._name(place, key, _link)
                return True
            except FileExistsError:
                pass  # another's, or ours: over a network the answer that it is there may have been lost
            with self._root() as root, files.open_inside(root, key) as present:
                is_ours = os.fstat(present).st_size == len(data) and os.pread(present, len(data), 0) == data
            if is_ours:
                self._sync(key)
            return is_ours

    def get_range(self, key: str, start: int, end: int) -> bytes:
        """Returns the bytes from `start` to before `end`; fewer where the object ends before that, or none."""
        with self._translated(key):
            try:
                with self._root() as root, files.open_inside(root, _checked(key)) as fd:
                    return _read(fd, start, end - start)
            except FileNotFoundError as error:
                raise AbsentError(f"there is no {self.url}/{key}") from error

    def listed(self, prefix: str = "") -> Iterator[Item]:
        """Yields every object whose key begins with `prefix`, in the order of keys."""
        with self._translated(prefix):
            items = _tried(lambda: self._list(prefix))
        yield from sorted(items)

    def delete(self, key: str) -> None:
        """Deletes an object, and the directories that are empty then."""
        folder, _, name = _checked(key).rpartition("/")
        with self._translated(key), suppress(FileNotFoundError), self._root() as root:
            with files.below(root, folder) as inside:
                files.remove(inside / name)
                files.sync_directory(inside)
            while folder:
                folder, _, name = folder.rpartition("/")
                with files.below(root, folder) as above:
                    try:
                        os.rmdir(name, dir_fd=above.fd)
                    except OSError as error:
                        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                            return
                        raise
                    files.sync_directory(above)

    def _list(self, prefix: str) -> list[Item]:
        above = prefix.rpartition("/")[0]
        items = []
        with ExitStack() as entered:
            try:
                root = entered.enter_context(self._root())
                top = entered.enter_context(files.below(root, _checked(above) if above else ""))
            except FileNotFoundError:
                return []
            for level in walk(top):
                for name in level.others:
                    key = f"{above}/{level.inside(name)}" if above else level.inside(name)
                    if key.startswith(prefix) and not key.startswith(f"{_INCOMING}/"):
                        items += _items(level.folder / name, key)
        return items

    def _name(self, new: Place, key: str, give: Callable[[Place, Place], None]) -> None:
        """Gives a new file its name, and makes that durable."""
        above, _, name = _checked(key).rpartition("/")

        def at_once() -> None:
            with self._root() as root, files.below(root, above, make=True) as inside:
                give(new, inside / name)

        _tried(at_once)
        self._sync(key)

    def _sync(self, key: str) -> None:
        """Makes a name durable, and those of the directories that it is in, whoever has made them."""
        above = key
        with self._root() as root:
            while above:
                above = above.rpartition("/")[0]
                with files.below(root, above) as inside:
                    files.sync_directory(inside)

    @contextmanager
    def _incoming(self) -> Iterator[tuple[int, Place]]:
        """Opens a new file without a name yet, which is removed unless it gets one."""
        with self._root(make=True) as root, files.below(root, _INCOMING, make=True) as folder:
            self._sweep(folder)
            place, fd = _new_in(folder)
            try:
                yield fd, place
            finally:
                with suppress(OSError):  # it has its name; or it is left, and swept by a later one
                    files.remove(place)
                os.close(fd)

    def _sweep(self, folder: Folder) -> None:
        """Removes, once, what writers have left that are not any more: each holds a lock on its own."""
        if self._has_swept:
            return
        self._has_swept = True
        for name in names_in(folder):
            with suppress(OSError):
                fd = open_at(folder / name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    files.remove(folder / name)
                finally:
                    os.close(fd)

    @contextmanager
    def _root(self, *, make: bool = False) -> Iterator[Folder]:
        """Opens the directory, each time anew: it may be gone, and what was put into a deleted one would be, too."""
        was_there = self._was_there  # as of now: another thread may be about to make it
        if make and not was_there and self._path.parent.is_dir():
            with suppress(FileExistsError):
                files.make_directory(self._path)
                with suppress(PermissionError):  # who may make something in a directory need not be allowed to read it
                    files.sync_directory(self._path.parent)
        try:
            root = Folder.open(self._path, follow=True)
        except FileNotFoundError:
            if was_there:
                raise MirrorUnavailableError(f"{self._path} was there, and is not any more") from None
            if not self._path.parent.is_dir():
                raise MirrorAccessError(
                    f"{self.url}: there is no directory {self._path.parent}",
                    hint="mount the disk, or make it: of a mirror, only the last directory is made",
                ) from None
            raise
        with root:
            self._was_there = True
            yield root

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except _FromBlocksError as error:
            raise error.error from None
        except OSError as error:
            what = f"{self.url}/{key}: {error.strerror or error}"
            if error.errno in _FULL:
                raise MirrorUnavailableError(f"{self.url} is full: {error.strerror}") from error
            if error.errno in _REFUSED:
                raise MirrorAccessError(what, hint="look at the directory's owner, its rights and its mount") from error
            raise MirrorUnavailableError(what) from error


def _new_in(folder: Folder) -> tuple[Place, int]:
    """Makes a file that no sweep takes, and opens it."""
    while True:
        place = folder / secrets.token_hex(16)
        fd = files.open_new(place)
        with suppress(OSError):  # where nobody can lock, nobody sweeps
            fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return place, fd
        os.close(fd)  # a sweep came before the lock


class _FromBlocksError(Exception):
    """Carries what was raised where a file's bytes are read: it is not the directory's."""

    def __init__(self, error: OSError) -> None:
        self.error = error


def _not_translated(blocks: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield from blocks
    except OSError as error:
        raise _FromBlocksError(error) from error


def _checked(key: str) -> str:
    """Returns a key that leads to no other place. Keys are ours, but a name of another's must not become a path."""
    if any(part in ("", ".", "..") or "\0" in part for part in key.split("/")) or key.startswith(_INCOMING):
        raise ValueError(f"{key!r} is no key")
    return key


def _tried(do: Callable[[], _T]) -> _T:
    """Does something anew where a directory on the way has just gone."""
    for _ in range(_TRIES):
        with suppress(FileNotFoundError):
            return do()
    return do()


def _items(place: Place, key: str) -> list[Item]:
    """Returns a file as the items of a listing; none where it has gone meanwhile, or is something else."""
    try:
        status = status_of(place)
    except FileNotFoundError:
        return []
    if stat.S_ISLNK(status.st_mode):  # what it leads to would be passed over in silence
        raise OSError(errno.ELOOP, "it is a link, and none is followed here", str(place))
    return [Item(key, status.st_size)] if stat.S_ISREG(status.st_mode) else []


def _rename(new: Place, target: Place) -> None:
    os.rename(new.name, target.name, src_dir_fd=new.folder.fd, dst_dir_fd=target.folder.fd)


def _link(new: Place, target: Place) -> None:
    try:
        os.link(new.name, target.name, src_dir_fd=new.folder.fd, dst_dir_fd=target.folder.fd, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        raise MirrorAccessError(
            f"{target.folder}: this file system makes no hard links, and so no name only where there is none",
            hint="choose a directory of another one: ext4, XFS, Btrfs, ZFS and NFS do",
        ) from error


def _read(fd: int, start: int, size: int) -> bytes:
    parts = []
    while size > 0 and (part := os.pread(fd, size, start)):
        parts.append(part)
        start, size = start + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
