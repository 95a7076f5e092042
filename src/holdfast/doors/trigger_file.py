"""The trigger file: whoever creates it asks for a save.

It is claimed by a rename into the run's private directory before anything is saved, and only an answer ends the claim:
what a crash leaves there is served by the next start.
"""

import os
import stat
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from holdfast.run.directory import RunDirectory
from holdfast.run.request import MOST_LABEL_BYTES, Request, clean_label
from holdfast.store import files, names

_CLAIM = ".touched"
_REMEMBERED = "unremovable-trigger"
# `echo label > file` creates the file and writes it a moment later. The writer keeps its hold on a claimed file, so an
# empty one that is this young is given the time to be written.
_SETTLING_SECONDS = 0.02

Accept = Callable[[Request], bool]
Report = Callable[[str], None]


class TriggerFile:
    """Looks at one file name in the run directory.

    Args:
        directory: The run directory.
        name: The file's name there.
        accept: Takes a request in; tells whether it is on disk.
        report: Told, once for each, of what lies under the name and is no request.
    """

    def __init__(self, directory: RunDirectory, name: str, accept: Accept, report: Report) -> None:
        self.path = directory.root / name
        self._directory = directory
        self._accept = accept
        self._report = report
        self._reported = ""
        self._memory = directory.control / _REMEMBERED

    def look(self) -> None:
        """Claims the trigger file, if it is there, and makes its request. Costs one `lstat` when it is not."""
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            return
        except OSError as error:
            self._say(str(error.errno), f"cannot look at {self.path}: {error.strerror}")
            return
        identity = f"{found.st_dev}:{found.st_ino}:{found.st_mtime_ns}:{found.st_ctime_ns}"
        if (wrong := _wrong_with(found)) is not None:
            self._say(identity, f"{self.path} {wrong}; it is left alone and asks for nothing")
        elif identity != self._unremovable():
            self._claim(identity)

    def recover(self) -> None:
        """Makes requests of claims that an earlier process left behind."""
        for claim in sorted(self._directory.requests.glob(f"*{_CLAIM}")):
            if not names.is_token(claim.stem):
                continue
            if any((folder / f"{claim.stem}.json").exists() for folder in (claim.parent, self._directory.answers)):
                claim.unlink(missing_ok=True)  # the crash came between the request and this
            else:
                self._request(claim)

    def _claim(self, identity: str) -> None:
        claim = self._directory.requests / f"{uuid.uuid4().hex}{_CLAIM}"
        try:
            files.rename_new(self.path, claim)
        except FileNotFoundError:
            return
        except OSError as error:
            # It asks once, not at every look: what cannot be removed is remembered, over restarts too.
            files.replace(self._memory, identity.encode())
            self._say(identity, f"{self.path} cannot be removed ({error.strerror}); it is taken as one request")
            self._accept(Request("trigger_file", why=self.path.name))
            return
        self._request(claim)

    def _request(self, claim: Path) -> None:
        """Turns a claim into a request under the same identity; the claim goes only when the request is durable."""
        label = ""
        try:
            found = claim.lstat()
            if (wrong := _wrong_with(found)) is not None:
                # What was looked at was swapped before the rename. It is out of the way now, and asks for nothing.
                self._say(claim.name, f"what was claimed as {self.path.name} {wrong}; it asks for nothing")
                claim.rename(claim.with_suffix(".refused"))
                return
            if found.st_size == 0 and 0 <= time.time() - found.st_mtime < _SETTLING_SECONDS:
                time.sleep(_SETTLING_SECONDS)
            with files.open_regular(claim) as fd:
                label = clean_label(os.read(fd, MOST_LABEL_BYTES))
        except OSError as error:
            self._say(claim.name, f"the text of {self.path.name} cannot be read ({error.strerror}); it has no label")
        if self._accept(Request("trigger_file", label=label, why=self.path.name, id=claim.stem)):
            claim.unlink(missing_ok=True)

    def _unremovable(self) -> str:
        try:
            return files.read(self._memory, limit=200).decode()
        except OSError:
            return ""

    def _say(self, identity: str, text: str) -> None:
        if identity != self._reported:
            self._reported = identity
            self._report(text)


def _wrong_with(found: os.stat_result) -> str | None:
    if stat.S_ISLNK(found.st_mode):
        return "is a symbolic link"
    if not stat.S_ISREG(found.st_mode):
        return "is not a regular file"
    if found.st_uid not in (os.geteuid(), 0):
        return f"belongs to another user (uid {found.st_uid})"
    return None
