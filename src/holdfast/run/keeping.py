"""The name of the control directory, which whoever may write to the run directory can give to something else.

The run loses nothing by that: it reaches what it holds without a name. The name is for other processes to find it.
"""

import logging
import os
import stat
import threading
import uuid
from contextlib import suppress

from holdfast.errors import RunError
from holdfast.run import lease
from holdfast.run.directory import Control, RunDirectory, created_private
from holdfast.run.journal import Journal
from holdfast.run.lease import Holder
from holdfast.store import files, names
from holdfast.store.folder import Folder, is_folder, status_of

# Who exchanges it again at once is met again at the next look.
_TRIES = 3


class Keeper:
    """Gives the control directory that a run holds its name back, or makes it anew where it is out of reach. Rank 0's.

    Args:
        directory: The run directory.
        holder: The run's lease.
        journal: Takes a line each time.
        log: Takes a line for the user, once for each kind of thing that was done.
    """

    def __init__(self, directory: RunDirectory, holder: Holder, journal: Journal, log: logging.Logger) -> None:
        self._directory = directory
        self._holder = holder
        self._journal = journal
        self._log = log
        self._lock = threading.Lock()
        self._before: RunDirectory | None = None
        self._copied: set[str] = set()
        self._told: set[str] = set()
        self._is_lost = False

    def close(self) -> None:
        """Lets go of the control directory that was held before, where there was another."""
        if self._before is not None:
            self._before.close()

    def look(self) -> None:
        """Looks where the name leads, which is one call where all is well, and does what can be done."""
        with self._lock, suppress(OSError, RunError):
            if self._before is not None:  # somebody was writing there when it was copied
                self._copy(self._before, self._directory)
            if self._directory.has_its_name():
                self._tell_that_it_is_back()
            elif lease.is_ours(self._directory, self._holder.token):
                self._restore()

    def _restore(self) -> None:
        asides = []
        how, problem = None, "it is exchanged again and again"
        try:
            for _ in range(_TRIES):
                if aside := self._set_aside():
                    asides.append(aside)
                if how := self._put_back() or self._make_anew():
                    break
        except (OSError, RunError) as error:
            problem = getattr(error, "strerror", None) or str(error)
        self._tell(asides, how, problem)

    def _set_aside(self) -> str:
        """Renames what has the name: nothing of it is read, followed or deleted. Empty where nothing has it."""
        place = self._directory.control_name
        aside = place.with_name(names.set_aside(place.name, uuid.uuid4().hex))
        try:
            files.rename_new(place, aside)
        except FileNotFoundError:
            return ""
        return aside.name

    def _put_back(self) -> str | None:
        """Renames the one that is held back, from whatever name it has in the run directory; None where that fails."""
        directory = self._directory
        for name in directory.folder.names():
            place = directory.folder / name
            if directory.control.is_at(place):
                with suppress(OSError):
                    files.rename_new(place, directory.control_name)
                    files.sync_directory(directory.folder)
                return "has its name again" if directory.has_its_name() else None
        return None

    def _make_anew(self) -> str | None:
        """Makes another with all that is in the one that is held, and holds that; None where its name is taken."""
        directory = self._directory
        # It gets its name when it is whole. This one is of what the next start removes, if this process is killed here.
        place = directory.folder / names.trash(uuid.uuid4().hex)
        made = RunDirectory(directory.root, directory.folder, Control.create(place))
        before, self._copied = self._copied, set()
        try:
            self._copy(directory, made)
            files.rename_new(place, directory.control_name)
        except OSError as error:
            self._copied = before
            with suppress(OSError):
                files.remove_tree(place)
            if isinstance(error, FileExistsError):
                return None
            raise
        directory.exchange_control(made)
        self._before = made
        files.sync_directory(directory.folder)
        return "could not be put back, and is made anew with its requests, answers and pins"

    def _copy(self, source: RunDirectory, target: RunDirectory) -> None:
        """Copies all that was not copied before. What is answered is no request any more."""
        for name in source.control.names():
            if not is_folder(source.control / name):
                self._copy_file(source.control, target.control, name, name)
                continue
            with Folder.open(source.control / name) as origin, created_private(target.control / name) as copy:
                for inside in origin.names():
                    is_new = self._copy_file(origin, copy, inside, f"{name}/{inside}")
                    if is_new and name == source.answers.path.name:
                        with suppress(FileNotFoundError):
                            files.remove(target.requests / inside)
                files.sync_directory(copy)
        files.sync_directory(target.control)

    def _copy_file(self, source: Folder, target: Folder, name: str, path: str) -> bool:
        if path in self._copied or names.is_temporary(name):
            return False
        try:
            status = status_of(source / name)
            if not stat.S_ISREG(status.st_mode):
                return False  # nothing of ours
            files.copy(source / name, target / name)
        except FileNotFoundError:
            return False  # a request that has just been answered
        os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=target.fd)  # the older lease gives way
        self._copied.add(path)
        return True

    def _tell(self, asides: list[str], how: str | None, problem: str) -> None:
        path = self._directory.control_name.path
        if asides or how is not None or not self._is_lost:
            self._journal.write("control_exchanged", set_aside=asides, restored=how is not None)
        happened = (
            f"was exchanged: what had its name lies in {', '.join(asides)}, unread" if asides else "was moved away"
        )
        if how is not None:
            if self._is_lost or how not in self._told:
                self._log.warning(f"{path} {happened}; the run's own {how}")
            self._told.add(how)
            self._is_lost = False
        elif not self._is_lost:
            self._is_lost = True
            self._log.warning(
                f"{path} {happened if asides else 'leads elsewhere'}, and cannot be had again ({problem}): no command"
                " reaches this run, and holdfast status does not see it; it saves by schedule, signals and trigger file"
            )

    def _tell_that_it_is_back(self) -> None:
        if self._is_lost:
            self._is_lost = False
            self._log.info(f"{self._directory.control_name} is the run's own again: commands reach it")
