"""The queue of pending save requests: all doors lead here, and one thread collects what comes from other processes."""

import logging
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from holdfast.doors.schedule import Minutes
from holdfast.doors.trigger_file import Claim, TriggerFile
from holdfast.run.inbox import Inbox
from holdfast.run.journal import Journal
from holdfast.run.request import Answer, Request
from holdfast.run.run import Run
from holdfast.run.status import StatusFile
from holdfast.settings import DynamicCheckpoint

_LOOK_SECONDS = 0.1
_STATUS_SECONDS = 1.0
_MOST_SHOWN = 100  # in the status, which is written anew for each that comes


class RequestIntake(Protocol):
    """The way of requests in a process: the queue where it saves, a heartbeat that passes them on where it follows."""

    def start(self) -> None:
        """Begins to listen."""

    def accept(self, request: Request) -> bool:
        """Takes a request in; returns whether it outlives this process."""

    def hear(self, request: Request, boundary: int | None = None) -> None:
        """Takes in a request of this process itself, without a look at the disk. What is known already is left out.

        Args:
            request: The request.
            boundary: The number of the boundary at which training itself has made it.
        """

    def look(self, step: int, *, last: bool) -> bool:
        """Returns, at a boundary of training, whether a request waits that can be served.

        Args:
            step: The step of the boundary.
            last: True where training ends, so that no request is left unseen.
        """

    def close(self, *, has_left: bool = False) -> None:
        """Listens no more.

        Args:
            has_left: True where this process leaves its training without waiting for the other ranks.
        """


class RequestQueue:
    """Collects requests from the run directory, and keeps the status file fresh.

    Args:
        run: The open run.
        settings: Those of the trigger file.
        log: Takes a line for the user.
        wake: Set when something waits.
        minutes: The schedule by the clock, if there is one.
    """

    def __init__(
        self,
        run: Run,
        settings: DynamicCheckpoint,
        log: logging.Logger,
        wake: threading.Event,
        minutes: Minutes | None = None,
    ) -> None:
        self._run = run
        self._left_over = run.left_over
        self._is_resumed = run.parent is not None
        self._inbox: Inbox = run.inbox
        self._journal: Journal = run.journal
        self._status: StatusFile = run.status
        self._log = log
        self._wake = wake
        self._minutes = minutes
        self._interval = settings.check_interval
        self._trigger = (
            TriggerFile(run.directory, settings.trigger_file_path, run.journal, log) if settings.enabled else None
        )
        self._lock = threading.Lock()
        self._claiming = threading.Lock()
        self._known: set[str] = set()
        self._waiting: list[Request] = []
        self._unwritten: list[Request] = []
        self._writing = threading.Lock()
        self._closing = threading.Event()
        self._trouble = ""
        self._thread = threading.Thread(target=self._watch, name="holdfast-requests", daemon=True)

    def start(self) -> None:
        """Takes in what an earlier process left unanswered, and begins to watch.

        What was asked and not answered is served at the first boundary. A stop is not carried over: it was meant for
        a process that has ended.
        """
        self._collect()
        if self._trigger is not None:
            for claim in self._trigger.left_behind():
                self._accept_claim(claim)
        if self._interval == 0 or self._is_resumed:
            self._look_at_disk(last=False)  # a file that waits is answered with the checkpoint that is there
        self._thread.start()

    @property
    def waiting(self) -> bool:
        """True when a request waits."""
        return bool(self._waiting)

    @property
    def stop_waits(self) -> bool:
        """True when a stop waits, which is in a hurry."""
        return any(request.stop for request in self._waiting)

    def accept(self, request: Request) -> bool:
        """Takes one request in; it waits for the next save.

        Returns:
            True when it is on disk too. On a full disk it is not, and a signal that asks to stop must be heard there.
        """
        with self._lock:
            if request.id in self._known:
                return True  # another rank has passed on what training asked here as well
            self._known.add(request.id)  # before it is on disk, where the watching thread would find it as a new one
        durable = self._submit(request)
        self._keep(request)
        return durable

    def hear(self, request: Request, boundary: int | None = None) -> None:
        """Takes in what this process asks of itself, without a look at the disk: it costs training microseconds.

        The saving thread writes it down first, or the watching thread does within a tenth of a second.
        """
        with self._lock:
            if request.id in self._known:
                return
            self._known.add(request.id)
            self._unwritten.append(request)
            self._waiting.append(request)
        self._wake.set()

    def knows(self, request: Request) -> bool:
        """Returns whether a request has come in before."""
        with self._lock:
            return request.id in self._known

    def look(self, step: int, *, last: bool) -> bool:
        """Returns, at a boundary of training, whether a request waits that can be served.

        Looks at the trigger file if it is time.

        Args:
            step: The step of the boundary.
            last: True where training ends, so that no request is left unseen.
        """
        if last or (self._interval and step % self._interval == 0):
            self._look_at_disk(last=last)
        if not self._waiting:
            return False
        with self._lock:
            return len(self._waiting) > len(self._unwritten)

    def saved(self) -> None:
        """Begins the clock of the schedule anew: something was saved just now."""
        if self._minutes is not None:
            self._minutes.restart()

    def write_down(self) -> None:
        """Puts on disk what was only heard, so that it can be taken: an answer would come before its request.

        Training must not be waiting meanwhile, for a disk may hang.
        """
        with self._writing:
            with self._lock:
                unwritten = list(self._unwritten)
            for request in unwritten:
                self._submit(request)
                with self._lock:
                    self._unwritten.remove(request)
                self._show(request)

    def take(self, *, stops: bool = True) -> list[Request]:
        """Returns all requests that wait and are written down, oldest first; they are the caller's to answer.

        Args:
            stops: False to leave those that ask for a stop where they are.
        """
        with self._lock:
            taken = [each for each in self._waiting if each not in self._unwritten and (stops or not each.stop)]
            self._waiting = [each for each in self._waiting if each not in taken]
            left = [each for each in self._waiting if each not in self._unwritten]
        self._status.update(pending=tuple(each.reason() for each in left[:_MOST_SHOWN]), more_pending=0)
        return sorted(taken, key=lambda request: request.asked_at)

    def close(self, *, has_left: bool = False) -> None:
        """Stops watching. Rank 0 need not be told whether rank 0 has left."""
        self._closing.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _watch(self) -> None:
        written = 0.0
        while not self._closing.wait(_LOOK_SECONDS):
            try:
                if self._interval == 0:
                    self._look_at_trigger()
                self.write_down()
                self._collect()
                if self._minutes is not None and self._minutes.due():
                    self._keep(self._minutes.request())
                if time.monotonic() - written >= _STATUS_SECONDS:
                    self._run.keep_control()
                    self._status.write()
                    written = time.monotonic()
                    self._trouble = ""
            except OSError as error:
                self._report_trouble(error)
                self._closing.wait(_STATUS_SECONDS)

    def _look_at_disk(self, *, last: bool) -> None:
        try:
            self._look_at_trigger()
            if last:
                self._collect()
        except OSError as error:
            self._report_trouble(error)

    def _look_at_trigger(self) -> None:
        with self._claiming:  # the last look waits until a file that the watching thread has claimed is a request
            if self._trigger is not None and (claim := self._trigger.look()) is not None:
                self._accept_claim(claim)

    def _accept_claim(self, claim: Claim) -> None:
        """Accepts what a trigger file asks; the claimed file goes once its request is durable, before its answer."""
        assert self._trigger is not None, "somebody has claimed it"
        with self._lock:
            self._known.add(claim.request.id)
        try:
            if self._submit(claim.request):
                self._trigger.release(claim)
        finally:
            self._keep(claim.request)

    def _collect(self) -> None:
        """Takes in what others have written into the run directory.

        All at once: what one thread has noticed, another that looks finds waiting, and serves together.
        """
        pending, broken = self._inbox.pending()
        for name, problem in broken:
            text = f"ignored {name} among the run's requests: {problem}"
            self._journal.write("refused", problem=text)
            self._log.warning(text)
        with self._lock:
            unknown = [request for request in pending if request.id not in self._known]
            new = [self._to_serve(request) for request in unknown if not request.slot]
            self._known.update(request.id for request in unknown)
            self._waiting += new
        self._announce(new)
        for request in unknown:
            if request.slot:  # a boundary was meant that is no more
                ended = Answer(saved=False, error=f"the process that asked for slot {request.slot} has ended")
                with suppress(OSError):
                    self._inbox.answer(request, ended)

    def _to_serve(self, request: Request) -> Request:
        return replace(request, stop=False) if request.id in self._left_over else request

    def _keep(self, request: Request) -> None:
        with self._lock:
            self._waiting.append(request)
        self._announce([request])

    def _announce(self, requests: list[Request]) -> None:
        if not requests:
            return
        for request in requests:
            self._show(request)
        self._wake.set()
        with suppress(OSError):
            self._status.write()

    def _submit(self, request: Request) -> bool:
        try:
            self._inbox.submit(request)
        except OSError as error:
            self._report_trouble(error)
            return False
        return True

    def _show(self, request: Request) -> None:
        with self._lock:
            count, first = len(self._waiting), self._waiting[:_MOST_SHOWN]
        waiting = tuple(waiting.reason() for waiting in first)
        self._status.update(pending=waiting, more_pending=count - len(first))
        kept = {"claimed": claimed} if (claimed := self._inbox.claimed(request)) else {}
        self._journal.write("request", stop=request.stop, **request.reason(), **kept)

    def _report_trouble(self, error: OSError) -> None:
        """Reports, once, a disk that fails now and may work again: training goes on, and so does the watch."""
        if str(error) != self._trouble:
            self._trouble = str(error)
            self._log.warning(f"cannot use the run directory at the moment: {error}")
