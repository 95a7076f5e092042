"""The keys of a mirror. Whatever is read from a place passes here before anything is done with it.

`RUN` names the run that a place belongs to. Below `<run>/` lie `terms/<number>`, one for each start that has claimed
the run; `pins/<attempt>`, which says once whether a checkpoint is pinned or is deleted, and `asked/<attempt>`, which
says that somebody asked for it after it had been saved for another reason (`remote/pins.py`); and
`<term>-<sequence>-<attempt>/<file>`, the checkpoints. Numbers have leading zeros, so that the order of keys is theirs.
"""

import re
from typing import NamedTuple

from holdfast.store import names

OWNER = "RUN"
"""The key of the object that says which run a place belongs to."""

TRIALS = "trials/"
"""The beginning of the keys of objects that a place is tried with."""

_DIGITS = 15  # `names.NUMBERS_END`
_CHECKPOINT = re.compile(
    rf"([0-9a-f]{{32}})/([0-9]{{{_DIGITS}}})-([0-9]{{{_DIGITS}}})-([0-9a-f]{{32}})/(.+)", re.DOTALL
)
_TERM = re.compile(rf"([0-9a-f]{{32}})/terms/([0-9]{{{_DIGITS}}})")
_PIN = re.compile(r"([0-9a-f]{32})/pins/([0-9a-f]{32})")
_ASKED = re.compile(r"([0-9a-f]{32})/asked/([0-9a-f]{32})")


class CheckpointKey(NamedTuple):
    """The name of a checkpoint in a mirror. Of one run, the greatest is the newest.

    Args:
        run: The identity of the run.
        term: The number of the start that wrote it; 0 where no start had claimed the run.
        sequence: The number of its commit.
        attempt: The identity of the attempt.
    """

    run: str
    term: int
    sequence: int
    attempt: str

    @property
    def prefix(self) -> str:
        """The beginning of the keys of all its files."""
        return f"{self.run}/{self.term:0{_DIGITS}d}-{self.sequence:0{_DIGITS}d}-{self.attempt}/"

    def of(self, path: str) -> str:
        """Returns the key of a file inside of it."""
        return self.prefix + path

    @property
    def manifest(self) -> str:
        """The key of its manifest. Where there is no such object there is no checkpoint."""
        return self.of(names.MANIFEST)


def below(run: str) -> str:
    """Returns the beginning of all keys of a run."""
    return f"{run}/"


def terms(run: str) -> str:
    """Returns the beginning of the keys of a run's terms."""
    return f"{run}/terms/"


def term(run: str, number: int) -> str:
    """Returns the key of one term."""
    return f"{run}/terms/{number:0{_DIGITS}d}"


def pins(run: str) -> str:
    """Returns the beginning of the keys of a run's pins."""
    return f"{run}/pins/"


def pin(run: str, attempt: str) -> str:
    """Returns the key of the pin of a checkpoint."""
    return f"{run}/pins/{attempt}"


def asked(run: str, attempt: str) -> str:
    """Returns the key of the mark of a checkpoint that somebody asked for when it was there."""
    return f"{run}/asked/{attempt}"


def trial(token: str) -> str:
    """Returns the key of an object that a place is tried with."""
    return f"{TRIALS}{token}"


def file_of(key: str) -> tuple[CheckpointKey, str] | None:
    """Returns the checkpoint that a key is of, and the path of the file in it; None where it is no such key."""
    match = _CHECKPOINT.fullmatch(key)
    if match is None or not (match[5] == names.MANIFEST or names.is_relative_path(match[5])):
        return None
    return CheckpointKey(match[1], int(match[2]), int(match[3]), match[4]), match[5]


def term_of(key: str) -> int | None:
    """Returns the number of the term that a key is of; None where it is no such key."""
    match = _TERM.fullmatch(key)
    return int(match[2]) if match else None


def pinned_by(key: str) -> str | None:
    """Returns the attempt that a key pins; None where it is no such key."""
    match = _PIN.fullmatch(key)
    return match[2] if match else None


def asked_by(key: str) -> str | None:
    """Returns the attempt that a key says was asked for; None where it is no such key."""
    match = _ASKED.fullmatch(key)
    return match[2] if match else None
