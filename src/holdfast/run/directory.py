"""The paths in a run directory, and the check that it may be trusted."""

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from holdfast.errors import RunError, RunNotFoundError
from holdfast.store import files, names
from holdfast.text import shown


@dataclass(frozen=True)
class RunDirectory:
    """The paths of one run. The control directory is private: nobody but its owner may enter it."""

    root: Path

    @property
    def control(self) -> Path:
        """The private directory in which processes meet."""
        return self.root / names.CONTROL

    @property
    def requests(self) -> Path:
        """The requests that are not answered yet, one file each."""
        return self.control / "requests"

    @property
    def answers(self) -> Path:
        """The answers to requests, one file each."""
        return self.control / "answers"

    @property
    def claimed(self) -> Path:
        """The trigger files that had text in them, the newest ones, each under its request's id."""
        return self.control / "claimed"

    @property
    def lease(self) -> Path:
        """The lease: the process that trains the run."""
        return self.control / "lease.json"

    @property
    def status(self) -> Path:
        """The status of the run, rewritten every second."""
        return self.control / "status.json"

    @property
    def outcome(self) -> Path:
        """The record of the last start and of how it ended."""
        return self.control / "outcome.json"

    @property
    def journal(self) -> Path:
        """The journal of the run, one event a line, for people."""
        return self.root / names.JOURNAL

    def create(self) -> None:
        """Makes the directories that are missing.

        Raises:
            RunError: The place cannot be used: not a directory, not ours, open to others, or not writable.
        """
        try:
            files.make_directories(self.root)
            for path in (self.control, self.requests, self.answers):
                path.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"cannot use {self.root} as a run directory: {error.strerror or error}",
                hint="choose another output_dir, or make this one writable",
            ) from error
        self.check_private(self.control, self.requests, self.answers)

    def open(self) -> None:
        """Checks that there is a run here.

        Raises:
            RunNotFoundError: There is none.
            RunError: There is one that cannot be trusted.
        """
        if not self.control.is_dir():
            raise RunNotFoundError(
                f"no run in {shown(str(self.root))}",
                hint="give the output_dir of a training that runs with Holdfast; it holds a directory .holdfast",
            )
        self.check_private(self.control, self.requests, self.answers)

    def check_private(self, *folders: Path) -> None:
        """Checks that directories of the run are this user's, and that nobody else may write there.

        Raises:
            RunError: One is not.
        """
        for path in folders:
            try:
                status = path.lstat()
            except OSError as error:
                raise RunError(f"{path} cannot be looked at: {error.strerror or error}") from error
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
                raise RunError(
                    f"{path} is not a private directory of this user",
                    hint="whoever can write there could ask for saves; remove it, or chmod 700 it if it is yours",
                )

    def read_json(self, path: Path, limit: int = 1 << 20) -> object:
        """Reads one of the run's small JSON files; None where there is none, or none that can be read."""
        try:
            return json.loads(files.read(path, limit=limit))
        except (OSError, ValueError, RecursionError):
            return None
