"""The terms that were claimed in a run directory, and the one that each checkpoint there counts for.

A start that has a mirror claims a term of its run there, and notes it here: as a small file in the private directory.
Its checkpoints name it in their manifests. Standard library alone.
"""

import os
import re
import stat
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from holdfast.store import files, names
from holdfast.store.folder import Directory, Folder, Place
from holdfast.store.manifest import Manifest

WORD = "term"
"""The word of `requires` of a checkpoint that `sequence` alone would put in the wrong place."""

_TERMS = "terms"
_MOST_BYTES = 4096
_NAME = re.compile(r"([0-9a-f]{32})\.([1-9][0-9]{0,14})\.([1-9][0-9]{0,14})")


class Term(NamedTuple):
    """One claim of a run that was made in a directory.

    Args:
        run: The identity of the run.
        number: The number of the term.
        first: The least number that a commit of it may have.
        mirror: The address of the mirror in which it was claimed.
    """

    run: str
    number: int
    first: int
    mirror: str


def claimed(control: Directory) -> tuple[Term, ...]:
    """Returns the terms that were claimed in a run directory, in order.

    Args:
        control: The private directory in it.

    Raises:
        OSError: They cannot be read.
    """
    try:
        with Folder.open(control / _TERMS) as folder:
            read = ((_NAME.fullmatch(name), folder / name) for name in folder.names())
            return tuple(sorted(_term(match, where) for match, where in read if match is not None))
    except FileNotFoundError:
        return ()


def _term(match: re.Match[str], where: Place) -> Term:
    mirror = files.read(where, limit=_MOST_BYTES).decode("utf-8", "replace")
    return Term(match[1], int(match[2]), int(match[3]), mirror)


def claimed_in(root: Directory) -> tuple[Term, ...]:
    """Returns the terms that were claimed in a run directory, for those who have not opened its private one.

    Whoever may write into `root` can put another private directory there: one that is not this user's, or that others
    may write to, says nothing.

    Raises:
        OSError: They cannot be read.
    """
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError), Folder.open(root / names.CONTROL) as control:
        status = control.status()
        if status.st_uid == os.geteuid() and not stat.S_IMODE(status.st_mode) & 0o022:
            return claimed(control)
    return ()


def note(control: Directory, term: Term) -> None:
    """Notes, durably, that a term was claimed here."""
    with suppress(FileExistsError):
        files.make_directory(control / _TERMS)
    files.sync_directory(control)
    with Folder.open(control / _TERMS) as folder:
        with suppress(FileExistsError):
            files.write_new(folder / f"{term.run}.{term.number}.{term.first}", term.mirror.encode())
        files.sync_directory(folder)


def of(manifest: Manifest, terms: Iterable[Term]) -> int:
    """Returns the number of the term that a checkpoint counts for; 0 where it was made before any.

    One whose manifest names none was made by a program that knew of none: it counts for the last one that was claimed
    in its directory by then, as the number of its commit says.

    Args:
        manifest: Its manifest.
        terms: Those that were claimed in its directory.
    """
    if manifest.term:
        return manifest.term
    before = (term.number for term in terms if term.run == manifest.run and term.first <= manifest.sequence)
    return max(before, default=0)


def last(terms: Iterable[Term], run: str, mirror: str | None = None) -> int:
    """Returns the number of the last term of a run that was claimed in a directory; 0 where none was.

    Args:
        terms: Those that were claimed there.
        run: The identity of the run.
        mirror: The address of the mirror in which it was claimed; None: in any.
    """
    return max((t.number for t in terms if t.run == run and mirror in (None, t.mirror)), default=0)


def first_number(terms: Iterable[Term], run: str) -> int:
    """Returns the least number that a run's next commit may have: its mirror may have greater ones than its disk."""
    return max((term.first for term in terms if term.run == run), default=1)


def is_required(terms: Iterable[Term], run: str, number: int) -> bool:
    """Tells whether a checkpoint of a term is of no use to a reader that orders by `sequence` alone.

    Where another directory had the run in between, that may have given greater numbers than the next one knew of.

    Args:
        terms: Those that were claimed in its directory.
        run: The identity of its run.
        number: The number of its term.
    """
    return len({term.number for term in terms if term.run == run and term.number <= number}) < number
