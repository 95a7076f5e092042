"""Whether a checkpoint is what its manifest says."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from holdfast.store import digest, files, names
from holdfast.store.catalog import Entry, read
from holdfast.store.manifest import File


@dataclass(frozen=True)
class Report:
    """What was found. Without problems the checkpoint is good; notices are worth a word and no more."""

    entry: Entry
    problems: tuple[str, ...]
    notices: tuple[str, ...]
    unlisted: tuple[str, ...]

    @property
    def good(self) -> bool:
        """Whether the checkpoint can be resumed from."""
        return not self.problems


def verify(path: Path, *, full: bool = True) -> Report:
    """Checks a checkpoint against its manifest.

    Args:
        path: The checkpoint's directory.
        full: Reads every byte and compares digests. False looks at names and sizes alone.
    """
    entry = read(path)
    if entry.manifest is None:
        return Report(entry, (entry.problem or "it has no manifest",), (), ())
    try:
        with files.open_folder(path) as folder:
            problems = [found for file in entry.manifest.files if (found := _problem(folder, file, full))]
    except OSError as error:
        return Report(entry, (f"it cannot be opened: {error.strerror or error}",), (), ())
    listed = {file.path for file in entry.manifest.files} | {names.MANIFEST}
    unlisted = tuple(sorted(_all_files(path) - listed))
    notices = tuple(f"{names.shown(name)}: not in the manifest, and never read" for name in unlisted)
    return Report(entry, tuple(problems), notices, unlisted)


def _problem(folder: int, file: File, full: bool) -> str | None:
    try:
        with files.open_inside(folder, file.path) as fd:
            size = os.fstat(fd).st_size
            if size != file.size:
                return f"{file.path}: is {size:,} bytes long, was written with {file.size:,}"
            if full and digest.of_descriptor(fd) != file.xxh3_128:
                return f"{file.path}: its bytes have changed since it was written"
    except FileNotFoundError:
        return f"{file.path}: is missing"
    except OSError as error:
        return f"{file.path}: cannot be read: {error.strerror or error}"
    return None


def _all_files(path: Path) -> set[str]:
    """All that lies below a checkpoint; behind a link to a directory one level, which is as far as a Trainer looks."""
    found: set[Path] = set()
    for folder, folders, others in os.walk(path):
        found.update(Path(folder, name) for name in others)
        for link in (Path(folder, name) for name in folders if Path(folder, name).is_symlink()):
            with suppress(OSError):
                found.update(list(link.iterdir()) or [link])
    return {one.relative_to(path).as_posix() for one in found}
