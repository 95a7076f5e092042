"""The checkpoints that a start wants from its mirror, and that training need not wait for: files in the run directory.

The start writes them down, for what has a label or a slot and what is pinned; the mirror's process brings one after
another while nothing is to be sent, and writes what became of it; training says that, and removes the file.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from holdfast.remote.keys import CheckpointKey
from holdfast.run.directory import RunDirectory
from holdfast.store import files, names
from holdfast.store.folder import Folder, Place
from holdfast.store.manifest import strict_json

_FOLDER = "mirror-wanted"
_MOST_BYTES = 64 << 10
_MOST_WORDS = 2000
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("run", "attempt", "why"), (str,)),
    **dict.fromkeys(("term", "sequence", "step", "bytes"), (int,)),
    "is_over": (bool,),
    "seconds": (int, float),
}


@dataclass(frozen=True)
class Wanted:
    """A checkpoint that is to be brought, and what became of it.

    Args:
        run: The identity of its run.
        term: The term that it counts for.
        sequence: The number of its commit.
        attempt: The attempt that it is of.
        step: Its step.
        bytes: The size of its files.
        is_over: True once it is here, or will not come.
        why: The reason where it will not.
        seconds: The time that it took.
    """

    run: str
    term: int
    sequence: int
    attempt: str
    step: int
    bytes: int
    is_over: bool = False
    why: str = ""
    seconds: float = 0.0

    @property
    def key(self) -> CheckpointKey:
        """Its name in the mirror."""
        return CheckpointKey(self.run, self.term, self.sequence, self.attempt)


class WantedList:
    """All that is wanted in one run directory. Several processes may hold it.

    Args:
        directory: The run directory.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory

    def begin(self, wanted: Iterable[Wanted]) -> None:
        """Wants these, and nothing else any more.

        Raises:
            OSError: The disk does not take it.
        """
        control = self._directory.control
        for each in self.all():
            self.remove(each)
        for each in wanted:
            with suppress(FileExistsError):
                files.make_directory(control / _FOLDER)
                files.sync_directory(control)
            self._write(each)

    def all(self) -> list[Wanted]:
        """Returns what is wanted, or was and is over, the newest first. What cannot be understood is none."""
        control = self._directory.control
        try:
            with Folder.open(control / _FOLDER) as folder:
                read = [_read(folder / name) for name in folder.names() if names.is_token(name)]
        except OSError:
            return []
        return sorted((each for each in read if each is not None), key=lambda each: each.key, reverse=True)

    def finish(self, wanted: Wanted, why: str = "", seconds: float = 0.0) -> None:
        """Writes down that one is here, or why it will not come.

        Raises:
            OSError: The disk does not take it.
        """
        self._write(replace(wanted, is_over=True, why=why[:_MOST_WORDS], seconds=round(seconds, 3)))

    def remove(self, wanted: Wanted) -> None:
        """Wants one no more."""
        with suppress(FileNotFoundError), Folder.open(self._directory.control / _FOLDER) as folder:
            files.remove(folder / wanted.attempt)

    def _write(self, wanted: Wanted) -> None:
        with Folder.open(self._directory.control / _FOLDER) as folder:
            files.replace(folder / wanted.attempt, json.dumps(asdict(wanted)).encode())


def _read(place: Place) -> Wanted | None:
    try:
        wanted = Wanted(**strict_json(files.read(place, limit=_MOST_BYTES)))
    except (OSError, ValueError, TypeError):
        return None
    good = all(type(getattr(wanted, name)) in kinds for name, kinds in _KINDS.items())
    return wanted if good and names.is_token(wanted.run) and wanted.attempt == place.name else None
