"""Directories that are held open. What is reached through one is in it, whatever has its name by now.

A path is walked anew by every call that is given it, and who may write to a directory on the way may have put another
one there since. So a directory is opened once, and the names in it are given to the kernel together with the open
directory, one component at a time, no link followed. Standard library alone.
"""

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC  # of one that is open by O_PATH nothing can be synced or listed
_DESCRIPTORS = Path("/proc/self/fd")

DEEPEST = 8
"""The levels below a directory that a walk goes down. A checkpoint has three; a stranger can make thousands."""


class Folder:
    """An open directory.

    Args:
        fd: Its descriptor, which is closed with this.
        path: The path by which it was opened, for people to read.
    """

    def __init__(self, fd: int, path: Path) -> None:
        self.fd = fd
        self.path = path
        status = os.fstat(fd)
        self._identity = (status.st_dev, status.st_ino)

    @classmethod
    def open(cls, where: "Where", *, follow: bool = False) -> "Folder":
        """Opens a directory itself; what a link at its name leads to only with `follow`.

        Raises:
            OSError: It cannot be opened, or is no directory.
        """
        return cls(open_at(where, _OPEN | (0 if follow else os.O_NOFOLLOW)), path_of(where))

    def __truediv__(self, name: str) -> "Place":
        return Place(self, name)

    def __enter__(self) -> "Folder":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __str__(self) -> str:
        return str(self.path)

    def close(self) -> None:
        """Lets go of the directory."""
        fd, self.fd = getattr(self, "fd", -1), -1
        if fd >= 0:
            os.close(fd)

    @property
    def through(self) -> Path:
        """A path for the code of others that leads to this directory, and to no other that has its name by now.

        Without /proc it is the path by which it was opened. It is for this process alone, and for no text.
        """
        through = _DESCRIPTORS / str(self.fd)
        return through if through.exists() else self.path

    def in_words(self, text: str) -> str:
        """Returns a text in which this directory has the path that people know, where it has that of a descriptor."""
        through = f"{_DESCRIPTORS}/{self.fd}"
        return re.sub(rf"{through}(?!\d)", lambda _: str(self.path), text) if through in text else text

    def is_at(self, where: "Where", *, follow: bool = False) -> bool:
        """Tells whether a name leads to this directory; through a link only with `follow`."""
        try:
            status = status_of(where, follow=follow)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity

    def status(self) -> os.stat_result:
        """Returns what the system says of it."""
        return os.fstat(self.fd)

    def names(self) -> list[str]:
        """Returns the names in it, sorted."""
        return names_in(self)


@dataclass(frozen=True)
class Place:
    """A name in an open directory, whether there is something or not."""

    folder: Folder
    name: str

    @property
    def path(self) -> Path:
        """The path for people to read."""
        return self.folder.path / self.name

    @property
    def parent(self) -> Folder:
        """The directory that it is a name in."""
        return self.folder

    def __str__(self) -> str:
        return str(self.path)

    def with_name(self, name: str) -> "Place":
        """Returns another name in the same directory."""
        return Place(self.folder, name)


Where = Path | Place
"""A path, which is walked by every call; or a name in a directory that is held open."""


Directory = Path | Folder
"""A directory: `directory / name` is a place in it."""


@contextmanager
def opened(where: Where | Folder) -> Iterator[Folder]:
    """Opens a directory for the context, no link followed; one that is open already is given as it is.

    Raises:
        OSError: It cannot be opened, or is no directory.
    """
    if isinstance(where, Folder):
        yield where
        return
    with Folder.open(where) as folder:
        yield folder


def names_in(directory: Directory) -> list[str]:
    """Returns the names in a directory, sorted."""
    with scanned(directory) as listing:
        return sorted(item.name for item in listing)


@contextmanager
def scanned(directory: Directory) -> Iterator[Iterator["os.DirEntry[str]"]]:
    """Yields what is in a directory. Several threads may list one at once: a held descriptor has but one position."""
    if not isinstance(directory, Folder):
        with os.scandir(directory) as listing:
            yield listing
        return
    own = os.open(".", _OPEN, dir_fd=directory.fd)
    try:
        with os.scandir(own) as listing:
            yield listing
    finally:
        os.close(own)


def at(where: Where) -> tuple[str | Path, int | None]:
    """Returns what a system call is given: a name, and the descriptor of its directory."""
    return (where.name, where.folder.fd) if isinstance(where, Place) else (where, None)


def open_at(where: Where, flags: int) -> int:
    """Opens what has a name, and returns the descriptor. A new file is readable by its owner alone.

    Raises:
        OSError: It cannot be opened. The error has the whole path, and not the name alone.
    """
    name, above = at(where)
    try:
        return os.open(name, flags, 0o600, dir_fd=above)
    except OSError as error:
        error.filename = str(where)
        raise


def path_of(where: Where) -> Path:
    """Returns the path of a place, for people to read."""
    return where.path if isinstance(where, Place) else where


def status_of(where: Where, *, follow: bool = False) -> os.stat_result:
    """Returns what the system says of the thing that has a name: of a link itself, or with `follow` of its target.

    Raises:
        OSError: There is nothing, or it cannot be looked at.
    """
    name, above = at(where)
    return os.stat(name, dir_fd=above, follow_symlinks=follow)


def exists(where: Where) -> bool:
    """Tells whether something has a name, be it a link that leads nowhere."""
    try:
        status_of(where)
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
    return True


def is_file(where: Where, *, follow: bool = False) -> bool:
    """Tells whether a regular file has a name; through a link only with `follow`."""
    try:
        return stat.S_ISREG(status_of(where, follow=follow).st_mode)
    except OSError:
        return False


def is_folder(where: Where) -> bool:
    """Tells whether a directory has a name; a link to one is none."""
    try:
        return stat.S_ISDIR(status_of(where).st_mode)
    except OSError:
        return False


@dataclass(frozen=True)
class Level:
    """One directory of a walk.

    Args:
        folder: The directory, open until the walk goes on.
        path: Its path from where the walk began; empty for that one.
        folders: The names of the directories in it that have been walked.
        others: The names of all else in it, links included.
        deeper: The names of the directories in it that were not entered: they lie too deep.
    """

    folder: Folder
    path: str
    folders: list[str]
    others: list[str]
    deeper: list[str]

    def inside(self, name: str) -> str:
        """Returns the path of a name in it, from where the walk began."""
        return f"{self.path}/{name}" if self.path else name


def walk(top: Folder) -> Iterator[Level]:
    """Yields a directory and all below it, to a depth of `DEEPEST`, each after those that are in it.

    It holds one descriptor a level, and calls itself nowhere: those of the library do, and a tree of some thousand
    levels, which anybody can make, ends them with a RecursionError.

    Raises:
        OSError: A directory cannot be listed.
    """
    entered = [(_level(top, "", 0), 0)]  # each with the number of the directories in it that have been entered
    try:
        while entered:
            level, begun = entered[-1]
            if begun == len(level.folders):
                yield level
                entered.pop()
                if level.folder is not top:
                    level.folder.close()
                continue
            entered[-1] = (level, begun + 1)
            name = level.folders[begun]
            entered.append((_level(Folder.open(level.folder / name), level.inside(name), len(entered)), 0))
    finally:
        for level, _ in entered:
            if level.folder is not top:
                level.folder.close()


def files_below(top: Folder) -> list[str]:
    """Returns the paths of all in a directory that is none itself, to the depth of a walk, sorted."""
    return sorted(level.inside(name) for level in walk(top) for name in level.others)


def _level(folder: Folder, path: str, depth: int) -> Level:
    with scanned(folder) as listing:
        kinds = {item.name: item.is_dir(follow_symlinks=False) for item in listing}
    folders = sorted(name for name, is_dir in kinds.items() if is_dir)
    others = sorted(kinds.keys() - set(folders))
    below = depth < DEEPEST
    return Level(folder, path, folders if below else [], others, [] if below else folders)
