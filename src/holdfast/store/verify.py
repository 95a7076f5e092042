"""Verification: a checkpoint compared with its manifest."""

import os
from contextlib import suppress
from dataclasses import dataclass

from holdfast.store import files, names, reading, references
from holdfast.store.catalog import Entry, read
from holdfast.store.folder import Folder, Where, opened, walk
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


def verify(checkpoint: Where | Folder, *, full: bool = True, through_cache: bool = False) -> Report:
    """Checks a checkpoint against its manifest.

    Args:
        checkpoint: Its directory. It is opened once: its manifest and its files are those of one and the same.
        full: Reads every byte and compares digests, and what a Trainer's state names; otherwise names and sizes alone.
        through_cache: Reads the files into the page cache, for somebody who is about to read them again.
    """
    try:
        with opened(checkpoint) as folder:
            return _verify(folder, full=full, through_cache=through_cache)
    except OSError as error:
        entry = read(checkpoint)
        return Report(entry, (entry.problem or f"it cannot be opened: {error.strerror or error}",), (), ())


def _verify(folder: Folder, *, full: bool, through_cache: bool) -> Report:
    entry = read(folder)
    if entry.manifest is None:
        return Report(entry, (entry.problem or "it has no manifest",), (), ())
    sources = [Source(file) for file in entry.manifest.files]
    if full:
        reading.read(folder, sources, through_cache=through_cache)
    else:
        for source in sources:
            source.problem = _problem(folder, source.file)
    state_problem = references.problem_of_state(folder, entry.manifest) if full else None
    present, deeper = _all_files(folder)
    problems = tuple(p for p in (*(source.problem for source in sources), state_problem) if p is not None)
    listed = {source.file.path for source in sources} | {names.MANIFEST}
    unlisted = sorted(present - listed)
    too_deep = sorted(deeper)  # no manifest lists a file as deep
    notices = (
        *(f"{shown(name)}: not in the manifest, and never read" for name in unlisted),
        *(f"{shown(name)}: not in the manifest, too deep to be looked into, and never read" for name in too_deep),
    )
    return Report(entry, problems, notices, (*unlisted, *too_deep))


def _problem(folder: Folder, file: File) -> str | None:
    try:
        with files.open_inside(folder, file.path) as fd:
            size = os.fstat(fd).st_size
    except OSError as error:
        return reading.unreadable(file, error)
    return None if size == file.size else reading.size_problem(file, size)


def _all_files(folder: Folder) -> tuple[set[str], set[str]]:
    """Returns all files below a checkpoint, and directories that lie too deep.

    Behind a link to a directory it looks one level, as far as a Trainer does.
    """
    paths: set[str] = set()
    deeper: set[str] = set()
    for level in walk(folder):
        deeper.update(map(level.inside, level.deeper))
        for name in level.others:
            inside: list[str] = []
            with suppress(OSError), Folder.open(level.folder / name, follow=True) as linked:
                inside = linked.names()
            paths.update([level.inside(f"{name}/{below}") for below in inside] or [level.inside(name)])
    return paths, deeper
