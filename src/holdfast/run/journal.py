"""The journal of a run: `events.jsonl`, one JSON object a line, only ever appended to.

It lies where others may be allowed to write, so what has its name need not be ours: that is moved aside.
"""

import errno
import json
import logging
import os
import threading
import time
import uuid
from typing import Any

from holdfast.errors import RunError
from holdfast.log import LOGGER
from holdfast.store import files, names
from holdfast.store.appending import NotOursError, open_to_append
from holdfast.store.folder import Where, exists

BEGINNING = b'{"at": '
"""The bytes that every journal begins with."""


class Journal:
    """Writes events. It is a record for people: nothing decides by it, and training does not fail by it.

    Args:
        path: The journal.
        run: The identity of the run.
        log: Takes a line for the user.
    """

    def __init__(self, path: Where, run: str, log: logging.Logger = LOGGER) -> None:
        self._path = path
        self._run = run
        self._log = log
        self._lock = threading.Lock()
        self._is_ended = False
        self._whole = False  # whether the file is known to end with a whole line
        self._written: set[tuple[int, int]] = set()
        self._refused = ""

    def write(self, event: str, **details: Any) -> None:
        """Adds one event, with the time and the run. A disk that does not take it is no reason to stop.

        After "end" comes nothing: who reads how a run ended reads its last line.
        """
        line = json.dumps({"at": round(time.time(), 3), "run": self._run, "event": event, **details})
        with self._lock:
            if self._is_ended:
                return
            self._is_ended = event == "end"
            try:
                self._append(line.encode() + b"\n")
            except OSError:
                self._whole = False

    def assign(self, run: str) -> None:
        """Writes of another run from here on: what a start goes on with was not known when this was opened."""
        self._run = run

    def has_written(self, status: os.stat_result) -> bool:
        """Returns whether a file is this journal, under whatever name it has by now."""
        return (status.st_dev, status.st_ino) in self._written

    def _append(self, line: bytes) -> None:
        try:
            self._add(line)
        except NotOursError as problem:
            try:
                set_aside(self._path, problem, self._log)
            except OSError as error:
                if str(problem) != self._refused:
                    self._log.warning(
                        f"{self._path} {problem.strerror}, and cannot be moved aside ({error.strerror}): events are"
                        " written down nowhere until it is gone"
                    )
                self._refused = str(problem)
                raise
            self._add(line)

    def _add(self, line: bytes) -> None:
        with open_to_append(self._path) as fd:
            status = os.fstat(fd)
            if not self.has_written(status):
                require_journal(self._path, fd)
                self._written.add((status.st_dev, status.st_ino))
                self._whole = False
            mend = b"\n" if not self._whole and _is_torn(fd, status.st_size) else b""
            files.write_all(fd, mend + line)
            self._whole = True


def take(path: Where, log: logging.Logger) -> None:
    """Moves what has the journal's name and is no journal of ours aside, before a run begins.

    Raises:
        RunError: It cannot be moved.
    """
    if not exists(path):
        return
    try:
        with open_to_append(path) as fd:
            require_journal(path, fd)
    except NotOursError as problem:
        try:
            set_aside(path, problem, log)
        except OSError as error:
            raise RunError(
                f"{path} {problem.strerror}, and cannot be moved aside ({error.strerror})",
                hint="choose an output_dir of your own, or have it removed by whom it belongs to",
            ) from error
    except OSError:
        return  # it is ours, and no reason to refuse a start


def set_aside(path: Where, problem: NotOursError, log: logging.Logger) -> None:
    """Gives what has the journal's name another name, and says so.

    Raises:
        OSError: It cannot be moved.
    """
    target = path.with_name(names.set_aside(path.name, uuid.uuid4().hex))
    files.rename_new(path, target)
    log.warning(f"{path} {problem.strerror}: it is moved to {target.name}, and a new one is begun")


def require_journal(path: Where, fd: int) -> None:
    """Checks that an open file is a journal, or the empty beginning of one: a rename brings any file to its name.

    Raises:
        NotOursError: It is something else.
    """
    if not BEGINNING.startswith(os.pread(fd, len(BEGINNING), 0)):  # a crash may have left less than that
        raise NotOursError(errno.EPERM, "is no journal", str(path))


def _is_torn(fd: int, size: int) -> bool:
    """Tells whether a crash or a full disk cut the last line off."""
    return size > 0 and os.pread(fd, 1, size - 1) != b"\n"
