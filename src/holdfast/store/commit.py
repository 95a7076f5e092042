"""From staged files to a checkpoint: staged aside, synced, manifest last, one rename, directory synced.

Standard library alone; the digest is handed in. The steps are those of `docs/format.md`, "How it is written".
"""

import os
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from holdfast.store import files, names
from holdfast.store.folder import Directory, Folder, Where, exists, path_of, walk
from holdfast.store.manifest import MOST_BYTES, File, Manifest, ManifestError, decode

Digest = Callable[[int], str]

# Beside what a rank writes meanwhile; it has gone when the files are sealed.
_MARK = "staged-by-rank-0"


@dataclass(frozen=True)
class Published:
    """A published checkpoint. `durable` is False where the file system cannot sync a directory's names."""

    path: Path
    durable: bool


def seal_files(folder: Folder, known: Mapping[str, str], digest: Digest) -> tuple[File, ...]:
    """Syncs and measures the files that another process than the publisher has staged.

    Args:
        folder: The staging directory.
        known: Their paths inside, each with its digests; empty where they are still to be taken.
        digest: Takes the digests of an open file.

    Raises:
        OSError: Something could not be read or synced, is no file, or has a forbidden name.
    """
    for path in known:
        _require_allowed(path)
    sealed = []
    for path, digests in sorted(known.items()):
        above, _, name = path.rpartition("/")
        with files.below(folder, above) as inside:
            sealed.append(_seal(inside / name, path, digest, digests or None))
    files.sync_directory(folder)
    return tuple(sealed)


class Attempt:
    """One try at one checkpoint. It ends as a published checkpoint or as nothing; its name is never used again.

    Args:
        root: The run directory.
        run: The identity of the run.
        step: The step of the boundary that is being saved.

    Raises:
        OSError: No directory can be made there; or another one has its name at once.
    """

    def __init__(self, root: Directory, run: str, step: int) -> None:
        self.root = root
        self.step = step
        self.token = uuid.uuid4().hex
        self._place = root / names.staging(run, step, self.token)
        self._target = root / names.checkpoint(step)
        self.folder = make_new(self._place)
        """The staging directory. What is staged is reached through it: its name may lead elsewhere at any time."""

    def seal(self, digest: Digest, known: Mapping[str, str] | None = None) -> tuple[File, ...]:
        """Syncs and measures all that was staged. Nothing may write there afterwards.

        Args:
            digest: Takes the digests of an open file.
            known: The digests of files that were taken as their bytes passed, by their paths; they are not read again.

        Raises:
            OSError: Something could not be read or synced, is neither file nor directory, or has a forbidden name.
        """
        if not self.folder.is_at(self._place):
            raise _exchanged(self._place, "made there")
        sealed = []
        for level in walk(self.folder):
            for name in (*level.others, *level.deeper):
                path = level.inside(name)
                _require_allowed(path)
                sealed.append(_seal(level.folder / name, path, digest, (known or {}).get(path)))
            files.make_private(level.folder)
            files.sync_directory(level.folder)
        return tuple(sorted(sealed, key=lambda file: file.path))

    def publish(self, manifest: Manifest, fence: Callable[[], None]) -> Published:
        """Writes the manifest and gives the directory its final name.

        Args:
            manifest: The measures of `seal`, and the rest.
            fence: Called just before the rename; raises if this process may not publish any more.

        Raises:
            ManifestError: Nobody could read the manifest again: it breaks a rule of the format.
        """
        encoded = manifest.encode()
        decode(encoded)
        files.write_new(self.folder / names.MANIFEST, encoded)
        files.sync_directory(self.folder)
        fence()
        target = self._target
        make_way(self.root, self.step)
        files.rename_new(self._place, target)
        # A rename takes a name, and no descriptor: only afterwards can be told what was renamed.
        if not self.folder.is_at(target):
            raise _exchanged(target, "written")
        try:
            durable = files.sync_directory(self.root)
        except OSError as error:
            raise OSError(
                error.errno, f"{target} is there, but may not survive a power cut: {error.strerror}"
            ) from error
        return Published(path_of(target), durable)

    def discard(self) -> None:
        """Removes what was staged, as far as that is possible; the next start sweeps what is left.

        A checkpoint that has its final name, and an error came after that, stays.
        """
        if self.folder.is_at(self._target):
            return
        with suppress(OSError):
            files.remove_open(self.folder, self._place)


def make_way(root: Directory, step: int) -> None:
    """Renames a checkpoint that has the name of a step already: it keeps its content under another one.

    Raises:
        OSError: It cannot be renamed.
    """
    present = root / names.checkpoint(step)
    if not exists(present):
        return
    moved = root / names.superseded(step, _attempt_of(present) or uuid.uuid4().hex)
    if exists(moved):
        moved = root / names.superseded(step, uuid.uuid4().hex)
    files.rename_new(present, moved)
    files.sync_directory(root)


@contextmanager
def marked(folder: Folder) -> Iterator[str]:
    """Puts a file with random content into a staging directory while others open it by name; yields the content."""
    mark = uuid.uuid4().hex
    files.write_new(folder / _MARK, mark.encode())
    try:
        yield mark
    finally:
        files.remove(folder / _MARK)


@contextmanager
def open_marked(where: Where, mark: str) -> Iterator[Folder]:
    """Opens a staging directory that another process has made and marked.

    Raises:
        OSError: It cannot be opened, or is another directory than that process has made.
    """
    with Folder.open(where) as folder:
        if files.read(folder / _MARK, limit=len(mark)) != mark.encode():
            raise OSError(f"{where} is not the directory that rank 0 has made: somebody exchanged it")
        yield folder


def make_new(where: Where) -> Folder:
    """Makes a directory that only its owner may enter, and opens it.

    Raises:
        OSError: It cannot be made; or what was opened is not ours, closed to the writing of others, and empty, as what
            was made is.
    """
    files.make_directory(where)
    folder = Folder.open(where)
    status = folder.status()
    # A file system that keeps no modes (vfat, some shares) shows all directories with one of its own, such as 0755.
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o022 or folder.names():
        raise _exchanged(folder.path, "made there")
    return folder


def _exchanged(where: Where, done: str) -> OSError:
    what = "somebody exchanged or removed it, and what is there is left as it is"
    return OSError(f"{where} is not the directory that was {done}: {what}")


def _require_allowed(path: str) -> None:
    if not names.is_relative_path(path):
        raise OSError(f"a checkpoint cannot hold a file of this name: {path!r}")


def _seal(where: Where, path: str, digest: Digest, known: str | None) -> File:
    with files.open_staged(where) as fd:
        return File(path, os.fstat(fd).st_size, known or digest(fd))


def _attempt_of(directory: Where) -> str | None:
    try:
        with Folder.open(directory) as folder:
            return decode(files.read(folder / names.MANIFEST, limit=MOST_BYTES)).attempt
    except (OSError, ManifestError):
        return None
