"""The checkpoints of a run directory, in the order of their commits: not by name, not by clock.

Of one run they are in the order of their terms (`store/terms.py`), and of one term in that of their numbers.
"""

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from holdfast.errors import SaveError
from holdfast.store import files, names, references, terms
from holdfast.store.folder import Directory, Folder, Where, is_file, opened, path_of, scanned, status_of
from holdfast.store.manifest import MOST_BYTES, Manifest, ManifestError, decode

# No run comes to this number by itself: a checkpoint of another run that has it was copied here, or made up.
_MOST_OF_OTHERS = 10**12


@dataclass(frozen=True)
class Entry:
    """A directory that has a checkpoint's name, as it was when it was looked at.

    Args:
        path: Its path.
        step: Its step.
        manifest: Its manifest.
        problem: The reason why that cannot be read, if it cannot.
        foreign: True where it may have been made by plain transformers, which writes no manifest.
        doubt: Says in whose hands it is, where that is not this user alone, or root: whoever may write into a run
            directory can put a checkpoint there, with a manifest that fits and says anything, and whoever may write
            into a checkpoint can change it after it was checked.
        term: The term that it counts for; known where all of its directory was looked at.
    """

    path: Path
    step: int
    manifest: Manifest | None
    problem: str | None
    foreign: bool = False
    doubt: str | None = None
    term: int = 0


class Catalog:
    """The checkpoints of one run directory, for those who ask again and again.

    Nobody writes into a checkpoint, so a manifest is read once, as long as its file is the same. Where the pieces of
    tensors lie, which is most of it and of no account here, is not kept.

    Args:
        root: The run directory.
        claimed: The terms that were claimed there.
    """

    def __init__(self, root: Directory, claimed: tuple[terms.Term, ...] = ()) -> None:
        self._root = root
        self.claimed = claimed
        self._known: dict[str, tuple[tuple[object, ...], Entry]] = {}

    def entries(self) -> list[Entry]:
        """Returns what the function `entries` does, without the manifests' `tensors`."""
        before, self._known = self._known, {}

        def look(checkpoint: Where) -> Entry:
            try:
                with Folder.open(checkpoint) as folder:
                    status = status_of(folder / names.MANIFEST)
                    doubt = doubt_of(folder)
            except OSError:
                return read(checkpoint)
            file = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, doubt)
            known = before.get(checkpoint.name)
            if known is None or known[0] != file:
                entry = read(checkpoint)
                if entry.manifest is None:
                    return entry
                known = (file, replace(entry, manifest=replace(entry.manifest, tensors={})))
            self._known[checkpoint.name] = known
            return known[1]

        return entries(self._root, look, self.claimed)


def entries(
    root: Directory, look: Callable[[Where], Entry] | None = None, claimed: Sequence[terms.Term] | None = None
) -> list[Entry]:
    """Returns all checkpoints of a run directory, the newest commit first; those without a manifest last, by step.

    Args:
        root: The run directory.
        look: Reads one checkpoint; `read` by default.
        claimed: The terms that were claimed there; by default those that its private directory has.

    Raises:
        OSError: It cannot be listed, or the terms cannot be read.
    """
    claimed = terms.claimed_in(root) if claimed is None else claimed
    listed = []
    with scanned(root) as listing:
        for item in listing:
            if names.step_of(item.name) is not None and item.is_dir(follow_symlinks=False):
                entry = (look or read)(root / item.name)
                counted = terms.of(entry.manifest, claimed) if entry.manifest is not None else 0
                listed.append(entry if counted == entry.term else replace(entry, term=counted))
    listed.sort(key=lambda e: e.path.name)  # so that a copy under another name always comes after its original
    return sorted(listed, key=_by_commit(listed))


def _by_commit(listed: Sequence[Entry]) -> Callable[[Entry], tuple[int, ...]]:
    """Returns the key by which the newest commit comes first.

    The terms of one run say nothing of another. So each run has, in the order of all numbers, the places of its own
    numbers, and in these its checkpoints are in the order of their terms.
    """
    by_run: dict[str, list[tuple[int, int]]] = {}
    for entry in listed:
        if entry.manifest is not None:
            by_run.setdefault(entry.manifest.run, []).append((entry.term, entry.manifest.sequence))
    places = {
        (run, *each): number
        for run, of_run in by_run.items()
        for each, number in zip(sorted(of_run), sorted(sequence for _, sequence in of_run), strict=True)
    }

    def key(entry: Entry) -> tuple[int, ...]:
        if entry.manifest is None:
            return 0, 0, 0, -entry.step
        sequence = entry.manifest.sequence
        return -places[entry.manifest.run, entry.term, sequence], -entry.term, -sequence, -entry.step

    return key


def read(checkpoint: Where | Folder) -> Entry:
    """Reads one checkpoint's manifest, and of its other files those small ones alone that name others."""
    path = checkpoint.path if isinstance(checkpoint, Folder) else path_of(checkpoint)
    named = names.step_of(path.name)
    entry = Entry(path, -1 if named is None else named, None, None)
    if entry.step >= names.NUMBERS_END:
        return replace(entry, problem="its name is of a step that there cannot be: steps are below 10^15")
    try:
        with opened(checkpoint) as folder:
            entry = replace(entry, doubt=doubt_of(folder))
            try:
                data = files.read(folder / names.MANIFEST, limit=MOST_BYTES)
            except FileNotFoundError:
                entry = replace(entry, foreign=is_file(folder / "trainer_state.json", follow=True))
                raise
            manifest = decode(data)
            problem = references.problem(folder, manifest)
    except FileNotFoundError:
        return replace(entry, problem="it has no MANIFEST.json: it was not finished, or not made by Holdfast")
    except OSError as error:
        return replace(entry, problem=f"its MANIFEST.json cannot be read: {error.strerror or error}")
    except ManifestError as error:
        return replace(entry, problem=str(error))
    if named is not None and manifest.step != named:
        return replace(entry, problem=f"its manifest is of step {manifest.step}")
    if problem is not None:
        return replace(entry, step=manifest.step, problem=problem)
    return replace(entry, step=manifest.step, manifest=manifest)


def doubt_of(folder: Folder) -> str | None:
    """Says in whose hands a checkpoint is, where that is neither this user alone nor root; None where it is."""
    status = folder.status()
    if status.st_uid not in (os.geteuid(), 0):
        return f"of another user (uid {status.st_uid})"
    if status.st_mode & 0o022:
        return f"writable by others (mode {stat.S_IMODE(status.st_mode):04o}; if it is yours: chmod go-w)"
    return None


def term_to_write(present: Sequence[Entry], claimed: Sequence[terms.Term], run: str) -> int:
    """Returns the term that the next commit of a run counts for where its start has claimed none; 0 for none.

    It is that of the newest that is there, whoever claimed that: what goes on from there must not come before it.

    Args:
        present: The catalog.
        claimed: The terms that were claimed in the directory.
        run: The identity of the run.
    """
    of_run = [e.term for e in present if e.manifest is not None and e.doubt is None and e.manifest.run == run]
    return max([terms.last(claimed, run), *of_run])


def next_sequence(present: Sequence[Entry], run: str, least: int = 1) -> int:
    """Returns the number of a run's next commit; it only ever grows, across resumes and branches.

    Checkpoints of other runs count, so that of several runs in one directory the newest commit has the greatest number;
    but not with a number to which no run comes by itself.

    Args:
        present: The catalog.
        run: The identity of the run.
        least: The least that it may be: its mirror may have others.

    Raises:
        SaveError: No number is left.
    """
    numbered = [
        (entry.manifest.sequence, entry.path.name)
        for entry in present
        if entry.manifest is not None and entry.doubt is None
        if entry.manifest.run == run or entry.manifest.sequence < _MOST_OF_OTHERS
    ]
    greatest, name = max([(least - 1, "the mirror"), *numbered])
    if greatest + 1 >= names.NUMBERS_END:
        raise SaveError(
            f"{name} has the number {greatest:,}, and no greater one is left for a new checkpoint: no run comes so far,"
            " so somebody made it up; move it out of the directory"
        )
    return greatest + 1
