"""From staged files to a checkpoint: staged aside, synced, manifest last, one rename, directory synced.

Standard library alone; the digest is handed in. The steps are those of `docs/format.md`, "How it is written".
"""

import os
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from holdfast.store import files, names
from holdfast.store.manifest import MOST_BYTES, File, Manifest, ManifestError, decode

Digest = Callable[[int], str]


@dataclass(frozen=True)
class Published:
    """A published checkpoint. `durable` is False where the file system cannot sync a directory's names."""

    path: Path
    durable: bool


def seal_files(directory: Path, known: Mapping[str, str], digest: Digest) -> tuple[File, ...]:
    """Syncs and measures the files that another process than the publisher has staged.

    Args:
        directory: The staging directory.
        known: Their paths inside, each with its digests; empty where they are still to be taken.
        digest: Takes the digests of an open file.

    Raises:
        OSError: Something could not be read or synced, is no file, or has a forbidden name.
    """
    for path in known:
        if not names.is_relative_path(path):
            raise OSError(f"a checkpoint cannot hold a file of this name: {path!r}")
    sealed = tuple(_seal(directory / path, path, digest, digests or None) for path, digests in sorted(known.items()))
    files.sync_directory(directory)
    return sealed


class Attempt:
    """One try at one checkpoint. It ends as a published checkpoint or as nothing; its name is never used again.

    Args:
        root: The run directory.
        run: The identity of the run.
        step: The step of the boundary that is being saved.
    """

    def __init__(self, root: Path, run: str, step: int) -> None:
        self.root = root
        self.step = step
        self.token = uuid.uuid4().hex
        self.directory = root / names.staging(run, step, self.token)
        files.make_directory(self.directory)

    def seal(self, digest: Digest, known: Mapping[str, str] | None = None) -> tuple[File, ...]:
        """Syncs and measures all that was staged. Nothing may write there afterwards.

        Args:
            digest: Takes the digests of an open file.
            known: The digests of files that were taken as their bytes passed, by their paths; they are not read again.

        Raises:
            OSError: Something could not be read or synced, is neither file nor directory, or has a forbidden name.
        """
        sealed = []
        for folder, folders, others in os.walk(self.directory, topdown=False, onerror=_raise):
            links = [name for name in folders if Path(folder, name).is_symlink()]  # os.walk takes them for folders
            for name in sorted((*others, *links)):
                path = Path(folder, name)
                relative = path.relative_to(self.directory).as_posix()
                if not names.is_relative_path(relative):
                    raise OSError(f"a checkpoint cannot hold a file of this name: {relative!r}")
                sealed.append(_seal(path, relative, digest, (known or {}).get(relative)))
            files.make_private(Path(folder))
            files.sync_directory(Path(folder))
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
        files.write_new(self.directory / names.MANIFEST, encoded)
        files.sync_directory(self.directory)
        fence()
        target = self.root / names.checkpoint(self.step)
        self._make_way(target)
        files.rename_new(self.directory, target)
        try:
            durable = files.sync_directory(self.root)
        except OSError as error:
            raise OSError(
                error.errno, f"{target} is there, but may not survive a power cut: {error.strerror}"
            ) from error
        return Published(target, durable)

    def discard(self) -> None:
        """Removes what was staged, as far as that is possible; the next start sweeps what is left."""
        with suppress(OSError):
            files.remove_tree(self.directory)

    def _make_way(self, target: Path) -> None:
        """Renames a checkpoint that has the name already: it keeps its content under another one."""
        if not os.path.lexists(target):
            return
        moved = self.root / names.superseded(self.step, _attempt_of(target) or uuid.uuid4().hex)
        files.rename_new(target, moved)
        files.sync_directory(self.root)


def _raise(error: OSError) -> None:
    """Raises the error of a folder that `os.walk` cannot list, and would leave out."""
    raise error


def _seal(path: Path, relative: str, digest: Digest, known: str | None) -> File:
    with files.open_staged(path) as fd:
        return File(relative, os.fstat(fd).st_size, known or digest(fd))


def _attempt_of(directory: Path) -> str | None:
    try:
        return decode(files.read(directory / names.MANIFEST, limit=MOST_BYTES)).attempt
    except (OSError, ManifestError):
        return None
