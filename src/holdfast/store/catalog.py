"""Which checkpoints a run directory holds, in the order of their commits: not by name, not by clock."""

import os
from dataclasses import dataclass
from pathlib import Path

from holdfast.store import files, names
from holdfast.store.manifest import MOST_BYTES, Manifest, ManifestError, decode


@dataclass(frozen=True)
class Entry:
    """A directory that has a checkpoint's name. Without a manifest that can be read, `problem` says why."""

    path: Path
    step: int
    manifest: Manifest | None
    problem: str | None

    @property
    def foreign(self) -> bool:
        """Whether it may have been made by plain transformers, which writes no manifest."""
        return not os.path.lexists(self.path / names.MANIFEST) and (self.path / "trainer_state.json").is_file()


def entries(root: Path) -> list[Entry]:
    """All checkpoints of a run directory, the newest commit first; those without a manifest come last, by step."""
    found = []
    with os.scandir(root) as listing:
        for item in listing:
            if names.step_of(item.name) is not None and item.is_dir(follow_symlinks=False):
                found.append(read(Path(root, item.name)))
    found.sort(key=lambda e: e.path.name)  # so that a copy under another name always comes after its original
    return sorted(found, key=lambda e: (-e.manifest.sequence if e.manifest else 0, -e.step))


def read(path: Path) -> Entry:
    """Reads one checkpoint's manifest, and no other file of it."""
    named = names.step_of(path.name)
    step = -1 if named is None else named
    try:
        manifest = decode(files.read(path / names.MANIFEST, limit=MOST_BYTES))
    except FileNotFoundError:
        return Entry(path, step, None, "it has no MANIFEST.json: it was not finished, or not made by Holdfast")
    except OSError as error:
        return Entry(path, step, None, f"its MANIFEST.json cannot be read: {error.strerror or error}")
    except ManifestError as error:
        return Entry(path, step, None, str(error))
    if named is not None and manifest.step != named:
        return Entry(path, step, None, f"its manifest is of step {manifest.step}")
    return Entry(path, manifest.step, manifest, None)


def next_sequence(found: list[Entry]) -> int:
    """The number of the next commit in this directory; it only ever grows, across resumes and branches."""
    return 1 + max((entry.manifest.sequence for entry in found if entry.manifest), default=0)
