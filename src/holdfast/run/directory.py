"""A run directory and its control directory, opened once and held: they are what they were found to be."""

import json
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from holdfast.errors import RunError, RunNotFoundError
from holdfast.store import files, names
from holdfast.store.folder import Folder, Place, Where, status_of
from holdfast.text import shown

OUTCOME = "outcome.json"
"""The name of the record of the last start, in the control directory."""

_REQUESTS = "requests"
_ANSWERS = "answers"


@dataclass(frozen=True)
class Control:
    """A private directory in which processes meet, held open. Nobody but its owner may enter it.

    Args:
        folder: The directory.
        requests: The one in it of the requests that are not answered yet, one file each.
        answers: The one in it of the answers to requests, one file each.
    """

    folder: Folder
    requests: Folder
    answers: Folder

    @classmethod
    def create(cls, where: Place) -> "Control":
        """Opens the one that has a name; makes what is missing.

        Raises:
            OSError: It cannot be made or opened.
            RunError: What is there is not private to this user, or is not what was made.
        """
        folder = created_private(where)
        return cls(folder, created_private(folder / _REQUESTS), created_private(folder / _ANSWERS))

    @classmethod
    def open(cls, where: Place) -> "Control":
        """Opens the one that has a name.

        Raises:
            RunError: What is there cannot be opened, is not private to this user, or lacks something.
        """
        folder = opened_private(where)
        return cls(folder, opened_private(folder / _REQUESTS), opened_private(folder / _ANSWERS))

    def close(self) -> None:
        """Lets go of the directories."""
        for folder in (self.folder, self.requests, self.answers):
            folder.close()

    def call(self, path: Path) -> None:
        """Has people read another path: it was renamed."""
        for folder, below in ((self.folder, path), (self.requests, path / _REQUESTS), (self.answers, path / _ANSWERS)):
            folder.path = below


class RunDirectory:
    """One run's directory. Its path is for people: what is in it is reached through what is held.

    Args:
        root: Its path.
        folder: The directory, open.
        control: The private directory in it, open.
    """

    def __init__(self, root: Path, folder: Folder, control: Control) -> None:
        self.root = root
        self.folder = folder
        self._control = control

    @classmethod
    def create(cls, root: Path) -> "RunDirectory":
        """Opens a run directory for a training; makes what is missing.

        Raises:
            RunError: The place cannot be used: not a directory, not ours, open to others, or not writable.
        """
        try:
            files.make_directories(root)
            folder = Folder.open(root, follow=True)
            return cls(root, folder, Control.create(folder / names.CONTROL))
        except OSError as error:
            raise RunError(
                f"cannot use {root} as a run directory: {error.strerror or error}",
                hint="choose another output_dir, or make this one writable",
            ) from error

    @classmethod
    def open(cls, root: Path) -> "RunDirectory":
        """Opens the directory of a run that there is.

        Raises:
            RunNotFoundError: There is none.
            RunError: There is one that cannot be trusted.
        """
        try:
            folder = Folder.open(root, follow=True)
            status_of(folder / names.CONTROL)
        except OSError as error:
            raise RunNotFoundError(
                f"no run in {shown(str(root))}",
                hint="give the output_dir of a training that runs with Holdfast; it holds a directory .holdfast",
            ) from error
        return cls(root, folder, Control.open(folder / names.CONTROL))

    def close(self) -> None:
        """Lets go of all that is held, so that its disk can be unmounted. What needs it afterwards fails."""
        self._control.close()
        self.folder.close()

    @property
    def control(self) -> Folder:
        """The private directory in which processes meet."""
        return self._control.folder

    @property
    def requests(self) -> Folder:
        """The requests that are not answered yet, one file each."""
        return self._control.requests

    @property
    def answers(self) -> Folder:
        """The answers to requests, one file each."""
        return self._control.answers

    @property
    def claimed(self) -> Place:
        """The directory of the trigger files that had text in them, the newest ones, each under its request's id."""
        return self.control / "claimed"

    @property
    def lease(self) -> Place:
        """The lease: the process that trains the run."""
        return self.control / "lease.json"

    @property
    def status(self) -> Place:
        """The status of the run, rewritten every second."""
        return self.control / "status.json"

    @property
    def outcome(self) -> Place:
        """The record of the last start and of how it ended."""
        return self.control / OUTCOME

    @property
    def journal(self) -> Place:
        """The journal of the run, one event a line, for people."""
        return self.folder / names.JOURNAL

    @property
    def control_name(self) -> Place:
        """The name in the run directory by which other processes find the control directory."""
        return self.folder / names.CONTROL

    def has_its_name(self) -> bool:
        """Tells whether the control directory that is held is the one that other processes find."""
        return self.control.is_at(self.control_name)

    def as_named(self) -> "RunDirectory | None":
        """Opens what other processes find, where that is another control directory; None where it is none to trust."""
        if self.has_its_name():
            return None
        try:
            return RunDirectory(self.root, self.folder, Control.open(self.control_name))
        except RunError:
            return None

    def exchange_control(self, other: "RunDirectory") -> None:
        """Holds the control directory of another from now on, which holds this one's."""
        self._control, other._control = other._control, self._control
        self._control.call(self.control_name.path)

    def read_json(self, where: Where, limit: int = 1 << 20) -> object:
        """Reads one of the run's small JSON files; None where there is none, or none that can be read."""
        try:
            return json.loads(files.read(where, limit=limit))
        except (OSError, ValueError, RecursionError):
            return None


def created_private(where: Place) -> Folder:
    """Opens a directory that is this user's, and where nobody else may write; makes it where there is none.

    Raises:
        OSError: It cannot be made.
        RunError: What is there cannot be opened, is not private to this user, or is not what was made.
    """
    try:
        files.make_directory(where)
    except FileExistsError:
        return opened_private(where)
    folder = opened_private(where)
    if folder.names():
        raise RunError(f"{where} is not the directory that was made there: somebody exchanged it", hint="start again")
    return folder


def opened_private(where: Place) -> Folder:
    """Opens a directory that is this user's, and where nobody else may write.

    Raises:
        RunError: It cannot be opened, or is another's, or others may write there.
    """
    try:
        folder = Folder.open(where)
    except OSError as error:
        with suppress(OSError):
            _require_private(where, status_of(where))
        hint = "a start of the training makes what is missing" if isinstance(error, FileNotFoundError) else None
        raise RunError(f"{where} cannot be looked at: {error.strerror or error}", hint=hint) from error
    _require_private(where, folder.status())
    return folder


def _require_private(where: Place, status: os.stat_result) -> None:
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise RunError(
            f"{where} is not a private directory of this user",
            hint="whoever can write there could ask for saves; remove it, or chmod 700 it if it is yours",
        )
