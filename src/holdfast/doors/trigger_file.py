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
from typing import NamedTuple

from holdfast.run.directory import RunDirectory
from holdfast.run.journal import BEGINNING, Journal
from holdfast.run.request import MOST_LABEL_BYTES, Request, clean_label
from holdfast.store import files, names
from holdfast.store.folder import Folder, Place, exists, status_of

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
    place: Place | None


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
        self._place = directory.folder / name
        self._directory = directory
        self._journal = journal
        self._log = log
        self._reported = ""

    def look(self) -> Claim | None:
        """Claims the trigger file if it is there; its request is the caller's. Costs one `lstat` when it is not."""
        try:
            status = status_of(self._place)
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
        requests, answers = self._directory.requests, self._directory.answers
        for name in requests.names():
            stem = name.removesuffix(_CLAIM)
            if stem == name or not names.is_token(stem):
                continue
            if any(exists(folder / f"{stem}.json") for folder in (requests, answers)):
                self._clear(requests / name)  # the crash came between the request and this
            elif (claim := self._read(requests / name)) is not None:
                yield claim

    def release(self, claim: Claim) -> None:
        """Clears the claimed file away: its request is on disk. One with text is kept, for it may be anybody's."""
        if claim.place is not None:
            self._clear(claim.place)

    def _clear(self, place: Place) -> None:
        try:
            if status_of(place).st_size:
                self._keep(place)
            else:
                files.remove(place)
        except OSError as error:
            self._report(place.name, f"{place} cannot be put away ({error.strerror}): the next start tries it again")

    def _keep(self, place: Place) -> None:
        with suppress(FileExistsError):
            files.make_directory(self._directory.claimed)
        with Folder.open(self._directory.claimed) as folder:
            kept = folder / place.name.removesuffix(_CLAIM)
            files.rename_new(place, kept)
            self._log.info(f"the text of {self.path.name} is the label of a save, and kept as {kept}")
            places = [folder / name for name in folder.names() if names.is_token(name)]
            for old in sorted(places, key=lambda each: status_of(each).st_ctime_ns)[:-_KEPT]:  # as each was moved
                files.remove(old)

    def _claim(self, identity: str) -> Claim | None:
        place = self._directory.requests / f"{uuid.uuid4().hex}{_CLAIM}"
        try:
            files.rename_new(self._place, place)
        except FileNotFoundError:
            return None
        except OSError as error:
            # It asks once, not at every look: what cannot be removed is remembered, over restarts too.
            files.replace(self._memory(), identity.encode())
            self._report(identity, f"{self.path} cannot be removed ({error.strerror}); it is taken as one request")
            return Claim(Request("trigger_file", why=self.path.name), None)
        return self._read(place)

    def _read(self, place: Place) -> Claim | None:
        """Turns a claimed file into a request under the same identity; one that is none is put back."""
        data = b""
        try:
            status = status_of(place)
            wrong = self._wrong_with(status)
            if wrong is None:
                if status.st_size == 0 and 0 <= time.time() - status.st_mtime < _SETTLING_SECONDS:
                    time.sleep(_SETTLING_SECONDS)
                data = files.read(place, limit=MOST_LABEL_BYTES)
                wrong = _wrong_text(data)
        except OSError as error:
            wrong = _TOO_LARGE if error.errno == errno.EFBIG else None
            if wrong is None:
                self._report(
                    place.name, f"the text of {self.path.name} cannot be read ({error.strerror}); it has no label"
                )
        if wrong is not None:
            self._put_back(place, wrong)  # what was looked at was exchanged, or written to, before the rename
            return None
        label, request = clean_label(data), place.name.removesuffix(_CLAIM)
        return Claim(Request("trigger_file", label=label, why=self.path.name, id=request), place)

    def _put_back(self, place: Place, wrong: str) -> None:
        try:
            status = status_of(place)
            files.rename_new(place, self._place)
            self._report_as_left(status, wrong)
        except OSError:
            kept = place.with_name(f"{place.name.removesuffix(_CLAIM)}.refused")
            files.rename_new(place, kept)
            self._report(place.name, f"what was claimed as {self.path} {wrong}; it asks for nothing, and is now {kept}")

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
            return _wrong_text(files.read(self._place, limit=MOST_LABEL_BYTES))
        except OSError:
            return None

    def _memory(self) -> Place:
        return self._directory.control / _REMEMBERED

    def _unremovable(self) -> str:
        try:
            return files.read(self._memory(), limit=200).decode()
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
