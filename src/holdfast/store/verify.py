"""Verification: a checkpoint compared with its manifest."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from holdfast.store import files, names, reading
from holdfast.store.catalog import Entry, read
from holdfast.store.manifest import File
from holdfast.store.reading import Source
from holdfast.text import shown


@dataclass(frozen=True)
class Report:
    """The result of a verification. Without problems the checkpoint is good; notices are worth a word and no more."""

    entry: Entry
    problems: tuple[str, ...]
    notices: tuple[str, ...]
    unlisted: tuple[str, ...]

    @property
    def good(self) -> bool:
        """Tells whether the checkpoint can be resumed from."""
        return not self.problems


def verify(path: Path, *, full: bool = True, through_cache: bool = False) -> Report:
    """Checks a checkpoint against its manifest.

    Args:
        path: The checkpoint's directory.
        full: Reads every byte and compares digests; otherwise names and sizes alone.
        through_cache: Reads the files into the page cache, for somebody who is about to read them again.
    """
    entry = read(path)
    if entry.manifest is None:
        return Report(entry, (entry.problem or "it has no manifest",), (), ())
    sources = [Source(file) for file in entry.manifest.files]
    try:
        with files.open_folder(path) as folder:
            if full:
                reading.read(folder, sources, through_cache=through_cache)
            else:
                for source in sources:
                    source.problem = _problem(folder, source.file)
    except OSError as error:
        return Report(entry, (f"it cannot be opened: {error.strerror or error}",), (), ())
    problems = tuple(source.problem for source in sources if source.problem is not None)
    listed = {source.file.path for source in sources} | {names.MANIFEST}
    unlisted = tuple(sorted(_all_files(path) - listed))
    notices = tuple(f"{shown(name)}: not in the manifest, and never read" for name in unlisted)
    return Report(entry, problems, notices, unlisted)


def _problem(folder: int, file: File) -> str | None:
    try:
        with files.open_inside(folder, file.path) as fd:
            size = os.fstat(fd).st_size
    except OSError as error:
        return reading.unreadable(file, error)
    return None if size == file.size else reading.size_problem(file, size)


def _all_files(path: Path) -> set[str]:
    """Returns all files below a checkpoint; behind a link to a directory one level, as far as a Trainer looks."""
    paths: set[Path] = set()
    for folder, folders, others in os.walk(path):
        paths.update(Path(folder, name) for name in others)
        for link in (Path(folder, name) for name in folders if Path(folder, name).is_symlink()):
            with suppress(OSError):
                paths.update(list(link.iterdir()) or [link])
    return {file.relative_to(path).as_posix() for file in paths}
