"""The trigger file: whoever creates it asks for a save.

It is claimed by a rename into the run's private directory before anything is saved, and only an answer ends the claim:
what a crash leaves there is served by the next start.
"""

import errno
import logging
import os
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from holdfast.run.directory import RunDirectory
from holdfast.run.journal import BEGINNING, Journal
from holdfast.run.request import MOST_LABEL_BYTES, Request, clean_label
from holdfast.store import files, names

_CLAIM = ".touched"
_REMEMBERED = "unremovable-trigger"
# `echo label > file` creates the file and writes it a moment later. The writer keeps its hold on a claimed file, so an
# empty one that is this young is given the time to be written.
_SETTLING_SECONDS = 0.02
# Of the files that had text in them so many are kept, for whoever finds that one was not meant.
_KEPT = 20
_TOO_LARGE = f"has more than the {MOST_LABEL_BYTES:,} bytes of a label"


class Claim(NamedTuple):
    """A trigger file that was noticed: the request that it makes, and where it lies until that is durable."""

    request: Request
    path: Path | None


class TriggerFile:
    """One file name in the run directory, whose appearance asks for a save.

    What lies under the name and is no request is reported once for each, and left: whoever may rename in the run
    directory can give the name to any file there.

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
        if (wrong := self._wrong_with(status) or self._wrong_inside(status)) is not None:
            self._report_as_left(status, wrong)
            return None
        identity = f"{status.st_dev}:{status.st_ino}:{status.st_mtime_ns}:{status.st_ctime_ns}"
        return None if identity == self._unremovable() else self._claim(identity)

    def left_behind(self) -> Iterator[Claim]:
        """Yields the claims that an earlier process made and no request came of."""
        for path in sorted(self._directory.requests.glob(f"*{_CLAIM}")):
            if not names.is_token(path.stem):
                continue
            if any((folder / f"{path.stem}.json").exists() for folder in (path.parent, self._directory.answers)):
                self._clear(path)  # the crash came between the request and this
            elif (claim := self._read(path)) is not None:
                yield claim

    def release(self, claim: Claim) -> None:
        """Clears the claimed file away: its request is on disk. One with text is kept, for it may be anybody's."""
        if claim.path is not None:
            self._clear(claim.path)

    def _clear(self, path: Path) -> None:
        try:
            if path.lstat().st_size:
                self._keep(path)
            else:
                files.remove(path)
        except OSError as error:
            self._report(path.name, f"{path} cannot be put away ({error.strerror}): the next start tries it again")

    def _keep(self, path: Path) -> None:
        folder = self._directory.claimed
        with suppress(FileExistsError):
            files.make_directory(folder)
        files.rename_new(path, folder / path.stem)
        self._log.info(f"the text of {self.path.name} is the label of a save, and kept as {folder / path.stem}")
        kept = [path for path in folder.iterdir() if names.is_token(path.name)]
        for old in sorted(kept, key=lambda path: path.lstat().st_ctime_ns)[:-_KEPT]:  # as of when each was moved
            files.remove(old)

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
        """Turns a claimed file into a request under the same identity; one that is none is put back."""
        data = b""
        try:
            status = path.lstat()
            wrong = self._wrong_with(status)
            if wrong is None:
                if status.st_size == 0 and 0 <= time.time() - status.st_mtime < _SETTLING_SECONDS:
                    time.sleep(_SETTLING_SECONDS)
                data = files.read(path, limit=MOST_LABEL_BYTES)
                wrong = _wrong_text(data)
        except OSError as error:
            wrong = _TOO_LARGE if error.errno == errno.EFBIG else None
            if wrong is None:
                self._report(
                    path.name, f"the text of {self.path.name} cannot be read ({error.strerror}); it has no label"
                )
        if wrong is not None:
            self._put_back(path, wrong)  # what was looked at was exchanged, or written to, before the rename
            return None
        return Claim(Request("trigger_file", label=clean_label(data), why=self.path.name, id=path.stem), path)

    def _put_back(self, path: Path, wrong: str) -> None:
        try:
            status = path.lstat()
            files.rename_new(path, self.path)
            self._report_as_left(status, wrong)
        except OSError:
            kept = path.with_suffix(".refused")
            files.rename_new(path, kept)
            self._report(path.name, f"what was claimed as {self.path} {wrong}; it asks for nothing, and is now {kept}")

    def _wrong_with(self, status: os.stat_result) -> str | None:
        if stat.S_ISLNK(status.st_mode):
            return "is a symbolic link"
        if not stat.S_ISREG(status.st_mode):
            return "is not a regular file"
        if status.st_uid not in (os.geteuid(), 0):
            return f"belongs to another user (uid {status.st_uid})"
        if self._journal.has_written(status):
            return "is the run's journal"
        return _TOO_LARGE if status.st_size > MOST_LABEL_BYTES else None

    def _wrong_inside(self, status: os.stat_result) -> str | None:
        """Returns what is wrong with the text of the file, before it is claimed; that is looked at once more then."""
        if status.st_size == 0:
            return None
        try:
            return _wrong_text(files.read(self.path, limit=MOST_LABEL_BYTES))
        except OSError:
            return None

    def _unremovable(self) -> str:
        try:
            return files.read(self._memory, limit=200).decode()
        except OSError:
            return ""

    def _report_as_left(self, status: os.stat_result, wrong: str) -> None:
        # Without its times: somebody may be writing to it.
        text = f"{self.path} {wrong}; it is left alone and asks for nothing"
        self._report(f"{status.st_dev}:{status.st_ino}:{wrong}", text)

    def _report(self, identity: str, text: str) -> None:
        if identity != self._reported:
            self._reported = identity
            self._journal.write("refused", problem=text)
            self._log.warning(text)


def _wrong_text(data: bytes) -> str | None:
    if data.startswith(BEGINNING):
        return "is a run's journal"
    try:
        return "is no text" if "\0" in data.decode() else None
    except UnicodeDecodeError:
        return "is not text in UTF-8"
