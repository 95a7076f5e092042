"""The trigger file: whoever creates it asks for a save.

It is claimed by a rename into the run's private directory before anything is saved, and only an answer ends the claim:
what a crash leaves there is served by the next start.
"""

import logging
import os
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from holdfast.run.directory import RunDirectory
from holdfast.run.journal import Journal
from holdfast.run.request import MOST_LABEL_BYTES, Request, clean_label
from holdfast.store import files, names

_CLAIM = ".touched"
_REMEMBERED = "unremovable-trigger"
# `echo label > file` creates the file and writes it a moment later. The writer keeps its hold on a claimed file, so an
# empty one that is this young is given the time to be written.
_SETTLING_SECONDS = 0.02


class Claim(NamedTuple):
    """A trigger file that was noticed: the request that it makes, and where it lies until that is durable."""

    request: Request
    path: Path | None

    def release(self) -> None:
        """Removes the claimed file: its request is on disk."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


class TriggerFile:
    """One file name in the run directory, whose appearance asks for a save.

    What lies under the name and is no request is reported once for each.

    Args:
        directory: The run directory.
        name: The file's name there.
        journal: Takes a line for what is refused.
        log: Takes a line for the user.
    """

    def __init__(self, directory: RunDirectory, name: str, journal: Journal, log: logging.Logger) -> None:
        self.path = directory.root / name
        self._directory = directory
        self._journal = journal
        self._log = log
        self._reported = ""
        self._memory = directory.control / _REMEMBERED

    def look(self) -> Claim | None:
        """Claims the trigger file if it is there; its request is the caller's. Costs one `lstat` when it is not."""
        try:
            status = self.path.lstat()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._report(str(error.errno), f"cannot look at {self.path}: {error.strerror}")
            return None
        identity = f"{status.st_dev}:{status.st_ino}:{status.st_mtime_ns}:{status.st_ctime_ns}"
        if (wrong := _wrong_with(status)) is not None:
            self._report(identity, f"{self.path} {wrong}; it is left alone and asks for nothing")
            return None
        return None if identity == self._unremovable() else self._claim(identity)

    def left_behind(self) -> Iterator[Claim]:
        """Yields the claims that an earlier process made and no request came of."""
        for path in sorted(self._directory.requests.glob(f"*{_CLAIM}")):
            if not names.is_token(path.stem):
                continue
            if any((folder / f"{path.stem}.json").exists() for folder in (path.parent, self._directory.answers)):
                path.unlink(missing_ok=True)  # the crash came between the request and this
            elif (claim := self._read(path)) is not None:
                yield claim

    def _claim(self, identity: str) -> Claim | None:
        path = self._directory.requests / f"{uuid.uuid4().hex}{_CLAIM}"
        try:
            files.rename_new(self.path, path)
        except FileNotFoundError:
            return None
        except OSError as error:
            # It asks once, not at every look: what cannot be removed is remembered, over restarts too.
            files.replace(self._memory, identity.encode())
            self._report(identity, f"{self.path} cannot be removed ({error.strerror}); it is taken as one request")
            return Claim(Request("trigger_file", why=self.path.name), None)
        return self._read(path)

    def _read(self, path: Path) -> Claim | None:
        """Turns a claimed file into a request under the same identity."""
        label = ""
        try:
            status = path.lstat()
            if (wrong := _wrong_with(status)) is not None:
                # What was looked at was swapped before the rename. It is out of the way now, and asks for nothing.
                self._report(path.name, f"what was claimed as {self.path.name} {wrong}; it asks for nothing")
                path.rename(path.with_suffix(".refused"))
                return None
            if status.st_size == 0 and 0 <= time.time() - status.st_mtime < _SETTLING_SECONDS:
                time.sleep(_SETTLING_SECONDS)
            with files.open_regular(path) as fd:
                label = clean_label(os.read(fd, MOST_LABEL_BYTES))
        except OSError as error:
            self._report(path.name, f"the text of {self.path.name} cannot be read ({error.strerror}); it has no label")
        return Claim(Request("trigger_file", label=label, why=self.path.name, id=path.stem), path)

    def _unremovable(self) -> str:
        try:
            return files.read(self._memory, limit=200).decode()
        except OSError:
            return ""

    def _report(self, identity: str, text: str) -> None:
        if identity != self._reported:
            self._reported = identity
            self._journal.write("refused", problem=text)
            self._log.warning(text)


def _wrong_with(status: os.stat_result) -> str | None:
    if stat.S_ISLNK(status.st_mode):
        return "is a symbolic link"
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    if status.st_uid not in (os.geteuid(), 0):
        return f"belongs to another user (uid {status.st_uid})"
    return None
