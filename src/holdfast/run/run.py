"""A run that this process trains: its lease, and the places that it shares with other processes."""

import logging
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from holdfast.errors import RunError, RunNotFoundError
from holdfast.log import LOGGER
from holdfast.run import journal, outcome
from holdfast.run.directory import RunDirectory
from holdfast.run.exposure import exposure
from holdfast.run.inbox import Inbox
from holdfast.run.journal import Journal
from holdfast.run.keeping import Keeper
from holdfast.run.lease import Holder, Lease, follow, read
from holdfast.run.outcome import Outcome
from holdfast.run.status import Status, StatusFile
from holdfast.store import retention, terms
from holdfast.store.catalog import Catalog

_LEFT: set[Path] = set()
"""Left-overs that no start of this process could remove, each of which was named once."""


@dataclass
class Run:
    """One open run.

    Args:
        directory: Its directory.
        lease: The right to publish there.
        inbox: The requests to it.
        journal: The record of its events.
        status: Its status, for other processes.
        parent: The attempt that it was resumed from, if any.
        left_over: The ids of the requests that an earlier process left unanswered.
        rank: The number of this process among those that train it. Rank 0 alone publishes, and writes the status.
        log: Takes a line for the user.
    """

    directory: RunDirectory
    lease: Lease
    inbox: Inbox
    journal: Journal
    status: StatusFile
    parent: str | None
    left_over: frozenset[str] = frozenset()
    rank: int = 0
    log: logging.Logger = LOGGER

    def __post_init__(self) -> None:
        self.folder = self.directory.folder
        """The run directory, held open: its checkpoints are reached through it."""
        self._keeper = Keeper(self.directory, self.lease.holder, self.journal, self.log)
        self.catalog = Catalog(self.folder)
        self.term = 0
        """The number of the term that this start has claimed in its mirror; 0 where it has claimed none."""
        self._is_closed = False
        self._swept: list[str] = []
        self._outcome = Outcome.of_start(self.lease.holder, self.parent)

    @classmethod
    def open(
        cls, root: Path, *, continues: str | None = None, parent: str | None = None, log: logging.Logger = LOGGER
    ) -> "Run":
        """Takes the run directory over, and clears what a dead process left half-done.

        Args:
            root: The run directory; made if it is missing.
            continues: The identity of the run that goes on here; None begins a new one.
            parent: The attempt that the training is resumed from.
            log: Takes a line for the user.

        Raises:
            RunError: The directory cannot be used.
            RunBusyError: Another process trains the run.
        """
        run = cls.enter(root, continues=continues, parent=parent, log=log)
        run.begin()
        return run

    @classmethod
    def enter(
        cls, root: Path, *, continues: str | None = None, parent: str | None = None, log: logging.Logger = LOGGER
    ) -> "Run":
        """Takes the run directory over, as `open` does, before it is known what the training goes on with.

        `settle` says that, and `begin` that it begins.
        """
        directory = RunDirectory.create(root)
        try:
            journal.take(directory.journal, log)
            return cls._open(directory, continues, parent, log)
        except OSError as error:
            raise RunError(f"cannot use {root} as a run directory: {error}", hint="is the disk full?") from error

    @classmethod
    def _open(cls, directory: RunDirectory, continues: str | None, parent: str | None, log: logging.Logger) -> "Run":
        inbox = Inbox(directory)
        left_over = frozenset(request.id for request in inbox.pending()[0])
        lease = Lease.take(directory, continues)
        run = lease.holder.run
        events = Journal(directory.journal, run, log)
        status = StatusFile(directory.status, Status(run, lease.holder.pid))
        opened = cls(directory, lease, inbox, events, status, parent, left_over, log=log)
        opened.catalog.claimed = terms.claimed(directory.control)
        outcome.write(directory, opened._outcome)  # that of the start before is not this one's
        # Not in `requests`: somebody may be writing one there.
        opened._swept = opened._sweep()
        inbox.forget_old_answers()
        status.write()
        if others := exposure(directory.root):
            log.warning(others)
        return opened

    def settle(self, identity: str, parent: str | None) -> None:
        """Notes what the training goes on with, where that was not known when the run was entered.

        Args:
            identity: The identity of the run.
            parent: The attempt that it goes on from.

        Raises:
            LeaseLostError: Another process has taken the run over.
            RunError: The disk does not take it.
        """
        try:
            if identity != self.identity:
                self.lease.assign(identity)
                self.journal.assign(identity)
                self.status.update(run=identity)
            self.parent = parent
            self._outcome = replace(self._outcome, run=identity, parent=parent)
            outcome.write(self.directory, self._outcome)
        except OSError as error:
            raise RunError(f"cannot use {self.root} as a run directory: {error}", hint="is the disk full?") from error

    def begin(self) -> None:
        """Writes down that a training begins."""
        holder, swept = self.lease.holder, self._swept
        self.journal.write("start", pid=holder.pid, generation=holder.generation, parent=self.parent, swept=swept)

    def claim(self, term: terms.Term) -> None:
        """Notes the term that this start has claimed in the mirror; what it saves is of that from here on.

        Raises:
            RunError: The disk does not take it.
        """
        try:
            terms.note(self.directory.control, term)
            self.catalog.claimed = terms.claimed(self.directory.control)
        except OSError as error:
            raise RunError(f"cannot use {self.root} as a run directory: {error}", hint="is the disk full?") from error
        self.term = term.number

    def _sweep(self) -> list[str]:
        """Removes what others have left half-done, and says once what cannot be removed."""
        removed = []
        for folder in (self.folder, self.directory.control, self.directory.answers):
            swept = retention.sweep(folder, self.directory.control)
            removed += swept.removed
            for name, why in swept.left.items():
                left = (folder / name).path
                if left not in _LEFT:
                    _LEFT.add(left)
                    self.log.warning(f"{left} is left over, and cannot be removed: {why}; remove it yourself")
        return removed

    @classmethod
    def join(cls, root: Path, holder: Holder, parent: str | None, rank: int, log: logging.Logger = LOGGER) -> "Run":
        """Joins an open run, in a process that trains it together with the one that opened it.

        Args:
            root: The run directory.
            holder: The holder of the lease, as rank 0 tells it.
            parent: The attempt that the training is resumed from.
            rank: The rank of this process.
            log: Takes a line for the user.

        Raises:
            RunError: Rank 0's run is not in this directory.
        """
        not_seen = RunError(
            f"rank {rank} on {socket.gethostname()} does not see in {root} the run that rank 0 has opened there",
            hint="output_dir must be one directory for all ranks, on storage that all hosts share",
        )
        try:
            directory = RunDirectory.open(root)
        except RunNotFoundError as error:
            raise not_seen from error
        present = read(directory)
        if present is None or present.token != holder.token:
            raise not_seen
        events = Journal(directory.journal, holder.run, log)
        status = StatusFile(directory.status, Status(holder.run, os.getpid()))
        return cls(directory, Lease(directory, holder), Inbox(directory), events, status, parent, rank=rank, log=log)

    @property
    def root(self) -> Path:
        """The run directory."""
        return self.directory.root

    def require_in_place(self) -> None:
        """Checks that the run directory is still where people look for it.

        Raises:
            RunError: Its path leads elsewhere, or nowhere.
        """
        if not self.folder.is_at(self.root, follow=True):
            relative = "" if self.root.is_absolute() else ", or the training works in another directory now"
            raise RunError(
                f"{self.root} is no longer the directory that this run has opened: it was moved or exchanged{relative};"
                " saves succeed again once that path leads to it"
            )

    def keep_control(self) -> None:
        """Sees to it that other processes find the control directory that this run holds.

        A rank that follows rank 0 holds the one that rank 0 has made anew, if it has.
        """
        if self.rank:
            follow(self.directory, self.lease.holder.token)
        else:
            self._keeper.look()
        self.status.where = self.directory.status

    def require_lease(self) -> None:
        """Checks, just before a checkpoint is published, that this process still has the run.

        Raises:
            LeaseLostError: Another process has taken it over.
            OSError: The lease cannot be read, so nobody knows.
        """
        self.keep_control()
        self.lease.check()

    def let_go(self) -> None:
        """Closes all directories that it holds, so that their disk can be unmounted: nothing is to be done there."""
        self._keeper.close()
        self.directory.close()

    @property
    def identity(self) -> str:
        """The identity of the run, which a resume keeps."""
        return self.lease.holder.run

    def go_on_from(self, parent: str) -> None:
        """Notes that the run goes on from another checkpoint, because that with which it was opened is damaged.

        Raises:
            RunError: The disk does not take it, so that the checkpoint could be deleted beside the training.
        """
        self.parent = parent
        if self.rank:
            return
        self._outcome = replace(self._outcome, parent=parent)
        try:
            outcome.write(self.directory, self._outcome)
        except OSError as error:
            raise RunError(f"cannot use {self.root} as a run directory: {error}", hint="is the disk full?") from error
        self.journal.write("fell_back", parent=parent)

    def close(self, how: str, code: int) -> None:
        """Writes down how it ended, and gives the lease back, as far as the disk allows: training is over."""
        if self.rank or self._is_closed:
            return  # rank 0 writes it down for all
        self._is_closed = True
        self.keep_control()
        try:
            outcome.write(self.directory, replace(self._outcome, outcome=how, code=code, ended_at=time.time()))
        except OSError as error:
            self.log.warning(
                f"how this training ended cannot be written down ({error.strerror or error}): "
                f"holdfast status {self.root} --outcome will say that it did not end, and not: {how} ({code})"
            )
        self.journal.write("end", outcome=how, code=code)
        self.status.update(phase="ended", pending=(), more_pending=0, outcome=how, code=code)
        with suppress(OSError):
            self.status.write()
        with suppress(OSError):
            self.lease.release()
