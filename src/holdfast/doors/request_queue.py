"""Where all doors lead: the requests that wait for the next save, collected by one thread."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from holdfast.doors.schedule import Minutes
from holdfast.doors.trigger_file import TriggerFile
from holdfast.run.request import Request
from holdfast.run.run import Run
from holdfast.settings import DynamicCheckpoint

_LOOK_SECONDS = 0.1
_STATUS_SECONDS = 1.0


class RequestQueue:
    """Collects requests from the run directory, and keeps the status file fresh.

    Args:
        run: The open run.
        settings: Whether and how often the trigger file is looked at.
        say: Prints a line for the user.
        notify: Called when something waits.
        minutes: The schedule by the clock, if there is one.
    """

    def __init__(
        self,
        run: Run,
        settings: DynamicCheckpoint,
        say: Callable[[str], None],
        notify: Callable[[], None],
        minutes: Minutes | None = None,
    ) -> None:
        self._run = run
        self._say = say
        self._notify = notify
        self._minutes = minutes
        self._interval = settings.check_interval
        self._trigger = (
            TriggerFile(run.directory, settings.trigger_file_path, self.accept, self._report)
            if settings.enabled
            else None
        )
        self._lock = threading.Lock()
        self._known: set[str] = set()
        self._waiting: list[Request] = []
        self._unwritten: list[Request] = []
        self._writing = threading.Lock()
        self._closing = threading.Event()
        self._trouble = ""
        self._thread = threading.Thread(target=self._watch, name="holdfast-reception", daemon=True)

    def start(self) -> None:
        """Takes in what an earlier process left unanswered, and begins to watch.

        What was asked and not answered is served at the first boundary. A stop is not carried over: it was meant for
        a process that has ended.
        """
        for request in self._unknown():
            self._keep(replace(request, stop=False) if request.id in self._run.left_over else request)
        if self._trigger is not None:
            self._trigger.recover()
        self._thread.start()

    @property
    def waiting(self) -> bool:
        """Whether anything waits."""
        return bool(self._waiting)

    @property
    def stop_waits(self) -> bool:
        """Whether a stop waits, which is in a hurry."""
        return any(request.stop for request in self._waiting)

    def accept(self, request: Request) -> bool:
        """Takes one request in; it waits for the next save.

        Returns:
            Whether it is on disk too. On a full disk it is not, and a signal that asks to stop must be heard there.
        """
        with self._lock:
            self._known.add(request.id)  # before it is on disk, where the watching thread would find it as a new one
        durable = self._submit(request)
        self._keep(request)
        return durable

    def hear(self, request: Request) -> None:
        """Takes in what this process asks of itself, without a look at the disk: it costs training microseconds.

        Who serves it writes it down first, or the watching thread does within a tenth of a second.
        """
        with self._lock:
            self._known.add(request.id)
            self._unwritten.append(request)
            self._waiting.append(request)
        self._notify()

    def look(self, step: int, *, last: bool) -> bool:
        """Tells the training thread, at a boundary, whether anything waits that can be taken.

        Looks at the trigger file if it is time.

        Args:
            step: The step of the boundary.
            last: Whether training ends here, so that no request is left unseen.
        """
        if last or (self._interval and step % self._interval == 0):
            self._look_at_disk(last=last)
        if not self._waiting:
            return False
        with self._lock:
            return len(self._waiting) > len(self._unwritten)

    def saved(self) -> None:
        """Something was saved just now."""
        if self._minutes is not None:
            self._minutes.restart()

    def write_down(self) -> None:
        """Puts on disk what was only heard, so that it can be taken: an answer would come before its request.

        Training must not be waiting meanwhile, for a disk may hang.
        """
        with self._writing:
            with self._lock:
                heard = list(self._unwritten)
            for request in heard:
                self._submit(request)
                with self._lock:
                    self._unwritten.remove(request)
                self._show(request)

    def take(self) -> list[Request]:
        """All requests that wait and are written down, oldest first; they are the caller's to answer."""
        with self._lock:
            taken = [request for request in self._waiting if request not in self._unwritten]
            self._waiting = list(self._unwritten)
        self._run.status.update(pending=())
        return sorted(taken, key=lambda request: request.asked_at)

    def close(self) -> None:
        """Stops watching."""
        self._closing.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _watch(self) -> None:
        written = 0.0
        while not self._closing.wait(_LOOK_SECONDS):
            try:
                if self._trigger is not None and self._interval == 0:
                    self._trigger.look()
                self.write_down()
                self._collect()
                if self._minutes is not None and self._minutes.due():
                    self._keep(self._minutes.request())
                if time.monotonic() - written >= _STATUS_SECONDS:
                    self._run.status.write()
                    written = time.monotonic()
                    self._trouble = ""
            except OSError as error:
                self._tell_of_trouble(error)
                self._closing.wait(_STATUS_SECONDS)

    def _look_at_disk(self, *, last: bool) -> None:
        try:
            if self._trigger is not None:
                self._trigger.look()
            if last:
                self._collect()
        except OSError as error:
            self._tell_of_trouble(error)

    def _collect(self) -> None:
        for request in self._unknown():
            self._keep(request)

    def _unknown(self) -> list[Request]:
        found, broken = self._run.inbox.pending()
        for name, problem in broken:
            self._report(f"ignored {name} among the run's requests: {problem}")
        with self._lock:
            new = [request for request in found if request.id not in self._known]
            self._known.update(request.id for request in new)
        return new

    def _keep(self, request: Request) -> None:
        with self._lock:
            self._waiting.append(request)
        self._show(request)
        self._notify()
        with suppress(OSError):
            self._run.status.write()

    def _submit(self, request: Request) -> bool:
        try:
            self._run.inbox.submit(request)
        except OSError as error:
            self._tell_of_trouble(error)
            return False
        return True

    def _show(self, request: Request) -> None:
        with self._lock:
            waiting = tuple(r.reason() for r in self._waiting)
        self._run.status.update(pending=waiting)
        self._run.journal.write("request", stop=request.stop, **request.reason())

    def _report(self, text: str) -> None:
        self._run.journal.write("refused", problem=text)
        self._tell(text)

    def _tell_of_trouble(self, error: OSError) -> None:
        """A disk that fails now may work again: training goes on, and so does the watch. Said once."""
        if str(error) != self._trouble:
            self._trouble = str(error)
            self._tell(f"cannot use the run directory at the moment: {error}")

    def _tell(self, text: str) -> None:
        with suppress(OSError):  # whoever read our output may be gone: `| tee` dies of the Ctrl+C that we serve
            self._say(text)
