"""The meaning of signals, and the end of the process when the training loop does not come back.

A handler that the user, a launcher or a framework has set may leave. It is called when the save that the signal asked
for has its answer, or the grace is over; where there is nothing to save yet, at once.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from holdfast.capture.gate import Gate
from holdfast.doors.request_queue import RequestIntake
from holdfast.doors.signals import Signals
from holdfast.engine import mirroring
from holdfast.engine.follower import Follower
from holdfast.engine.pending_save import PendingSave
from holdfast.engine.saver import Saver
from holdfast.engine.session import Session
from holdfast.engine.stop import LEAVING_SECONDS, Stop
from holdfast.engine.worker_deaths import WorkerDeaths, is_death_of_one
from holdfast.errors import FAILED, ended_by_signal
from holdfast.ranks.launcher import in_notebook, stopped_after_save
from holdfast.resume.open_run import Resumption
from holdfast.run.request import Request

# A terminal sends one Ctrl+C, a nervous hand two in a row. The second counts from here on.
_SECOND_PRESS_SECONDS = 1.0
# The time that the signal which killed a data-loading worker may take to be noticed after the worker's death.
_NOTICED_SECONDS = 1.0
_LOOK_SECONDS = 0.05
# At the end of a grace a handler of the user's has this time, at most half of what is kept for leaving.
_HANDLER_SECONDS = 1.0


class Shutdown:
    """Turns signals into requests, and ends the process at the deadline of a stop.

    Args:
        session: The training.
        intake: Takes the requests that signals make.
        saver: Answers what still waits when the process ends.
        origin: Tells what the training was resumed from.
        among_ranks: True where several processes train together.
    """

    def __init__(
        self,
        session: Session,
        intake: RequestIntake,
        saver: Saver | Follower,
        origin: Resumption,
        *,
        among_ranks: bool,
    ) -> None:
        self._session = session
        self._gate: Gate = session.gate
        self._stop: Stop = session.stop
        self._log = session.log
        self._intake = intake
        self._saver = saver
        self._origin = origin
        self._among_ranks = among_ranks
        self._taking_in: list[threading.Thread] = []
        self._signals = Signals()
        self._listener: threading.Thread | None = None
        self._deadline: threading.Thread | None = None
        self._worker_deaths = WorkerDeaths()
        self._number: int | None = None
        self._is_ending = threading.Event()
        self._ends_wait: threading.Event | None = None
        self._process = os.getpid()
        self.has_left = False
        """True when the process would have ended, had it not been a notebook's: nothing is waited for any more."""
        self.interrupted_at: float | None = None
        """The time at which Ctrl+C was pressed first, on the monotonic clock."""

    def start(self) -> None:
        """Begins to listen to signals, where Python allows signal handlers, and to watch the deadline of a stop."""
        self._process = os.getpid()
        self._deadline = threading.Thread(target=self._watch_deadline, name="holdfast-deadline", daemon=True)
        self._deadline.start()
        if self._signals.start():
            self._listener = threading.Thread(target=self._listen, name="holdfast-signals", daemon=True)
            self._listener.start()
        else:
            self._log.warning("not in the main thread: signals do not ask for saves here; the other doors are open")

    @property
    def is_in_child(self) -> bool:
        """True in a process that was forked in the middle of the training, which goes on where it was begun."""
        return os.getpid() != self._process

    def only_end_a_wait(self) -> threading.Event:
        """Has signals ask for no more saves: Ctrl+C sets the event that this returns, and a stop begins its grace."""
        self._ends_wait = self._ends_wait or threading.Event()
        return self._ends_wait

    def end(self) -> None:
        """Listens to signals no more: the loop has come back. The deadline stands until the run is closed."""
        self._is_ending.set()
        self._worker_deaths.stop()
        self._signals.stop()
        if self._listener is not None:
            self._listener.join()
            self._signals.close()
            self._listener = None
        for thread in self._taking_in:
            thread.join(LEAVING_SECONDS)  # no longer, where the disk hangs

    def over(self) -> None:
        """Takes the deadline away, and puts the signal handlers back: nothing that could hang is left to do.

        A signal that has come since `end` comes to them, unless a stop ends the process anyway. The deadline's thread
        has ended then: one that is still waking when the interpreter ends can abort the process (seen).
        """
        late = self._signals.put_back()
        self._stop.over()
        if self._deadline is not None:
            self._deadline.join()
            self._deadline = None
        for number in late if not self._stop.requested else ():
            signal.raise_signal(number)

    def look(self) -> None:
        """Looks at what training has started since: a first data-loading worker. Called at every boundary."""
        self._worker_deaths.look()

    @property
    def may_be_alone(self) -> bool:
        """True where other ranks may have left after the save of a stop, so that this one waits in vain for them."""
        return self._among_ranks and self._stop.saved is not None

    def explains(self, error: BaseException | None) -> bool:
        """Returns whether an error is the stop itself: the death of a worker of the same signal, or of a rank's peers.

        The error may be faster than the thread that listens to signals, so it is given a moment.
        """
        if error is None:
            return False
        if is_death_of_one(error):
            noticed = self._stop.noticed
            if not noticed.wait(_NOTICED_SECONDS) and self._number is not None:
                noticed.wait(self._stop.grace)  # the signal is known, and a slow disk holds its request up
            return noticed.is_set()
        return isinstance(error, RuntimeError) and self.may_be_alone

    def keep_handlers(self) -> None:
        """Keeps the user's handlers waiting from now on: training leaves, and what follows must not be broken off."""
        self._signals.keep_all()

    def call_handlers(self) -> None:
        """Calls those of the user's handlers that still wait: everything is answered. They may raise."""
        self._signals.call_all()

    @property
    def exit(self) -> SystemExit | KeyboardInterrupt | None:
        """That by which a handler of the user's has left the training, if one has."""
        return self._signals.exit

    def is_end_by_signal(self, error: BaseException | None) -> bool:
        """Returns whether training is left by the exit that a handler or the user makes of a signal.

        Whatever it is left by: a stop that has come by now is known, and its request waits, when this returns.
        """
        if self._listener is not None:
            self._signals.catch_up()
        if self._number is not None:
            self._stop.noticed.wait(self._stop.grace)
        leaves = error is not None and not isinstance(error, Exception)  # asyncio cancels by another of these
        return leaves and (self._number is not None or self._signals.exit is not None)

    def leave(self, code: int, why: str, seconds: float = LEAVING_SECONDS, level: int = logging.INFO) -> None:
        """Ends the process at once, whatever the training thread does, and whatever the disk does.

        In a notebook it is the cell that ends.
        """
        if in_notebook():
            self._log.log(level, why)
            self._signals.keep_all(False)
            self.has_left = self._signals.interrupt()
            return
        last_resort = threading.Timer(seconds, os._exit, (code,))
        last_resort.daemon = True
        last_resort.start()
        try:
            self._log.log(level, why)
            if self._session.mirror is not None:
                self._log.info(mirroring.last_line(self._session.run, self._session.mirror))
            self._intake.close()
            self._saver.refuse(why)
            self._session.run.close(f"left: {why}", code)
            self._session.outcomes.on_published.give_up()
            if self._signals.some_wait:
                self._signals.keep_all(False)
                self._signals.release()
                self._signals.returned.wait(min(_HANDLER_SECONDS, seconds / 2))
        finally:
            with suppress(OSError):
                if sys.stdout.isatty():
                    sys.stdout.write("\x1b[?25h\n")  # a progress bar hides the cursor
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _listen(self) -> None:
        for number in self._signals.received():
            try:
                if self._ends_wait is None:
                    self._on_signal(number)
                else:
                    self._end_the_wait(number, self._ends_wait)
            except BaseException:  # noqa: BLE001 - without this thread no signal could end the process any more
                threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))

    def _on_signal(self, number: int) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGINT:
            now = time.monotonic()
            if self.interrupted_at is not None:
                if now - self.interrupted_at >= _SECOND_PRESS_SECONDS:
                    self._leave_at_once(number)
                return
            self.interrupted_at = now
        stop = self._signals.asks_to_stop(number)
        if stop and self._gate.is_at_beginning:
            self._end_before_the_first_boundary(number, name)
            return
        if stop and self._number is not None:
            self._log.info(f"{name}: a save and the end are already under way")
            if self._stop.requested:
                self._signals.release()
            return
        if stop:
            self._number = number
            self._stop.begin_grace()
        # The request goes to the disk first, and that may hang: the next signal is to be heard all the same.
        self._start(self._take_in, number, name, stop)

    def _end_the_wait(self, number: int, ends_wait: threading.Event) -> None:
        """Takes in a signal of which no save can come any more: training is over, and waits for something else."""
        if number == signal.SIGINT:
            # One Ctrl+C has ended the training: two in a row are one.
            if self.interrupted_at is None or time.monotonic() - self.interrupted_at >= _SECOND_PRESS_SECONDS:
                ends_wait.set()
        elif self._signals.asks_to_stop(number):
            self._stop.begin_grace()

    def _start(self, work: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=work, args=args, name="holdfast-signal", daemon=True)
        self._taking_in = [*(thread for thread in self._taking_in if thread.is_alive()), thread]
        thread.start()

    def _take_in(self, number: int, name: str, stop: bool) -> None:
        request = Request("signal", stop=stop, why=name)
        pending = PendingSave(request.id, self._gate)
        self._session.outcomes.expect(pending)
        self._intake.accept(request)
        again = "; press again to leave without it" if number == signal.SIGINT else ""
        self._log.info(f"{name}: saving the last boundary" + (f", then ending{again}" if stop else ""))
        if stop:
            self._stop.noticed.set()  # not before the request waits: training may be leaving, and saves what waits
        if self._signals.has_handler(number):
            self._release_when_answered(pending, stop)

    def _release_when_answered(self, pending: PendingSave, stop: bool) -> None:
        """Lets the user's handler be called. Among ranks none leaves before the step at which all do."""
        while pending.answer is None or (stop and not self._stop.requested):
            if self._is_ending.wait(_LOOK_SECONDS):
                return
        self._signals.release()

    def _end_before_the_first_boundary(self, number: int, name: str) -> None:
        chosen = self._origin.chosen
        if chosen is not None:
            code, why = stopped_after_save(), f"{name}: nothing is new since {chosen.path}; ending"
        else:
            code, why = ended_by_signal(number), f"{name}: no step was taken yet, so there is nothing to save; ending"
        if not self._signals.has_handler(number):
            self.leave(code, why)
            return
        if self._number is None:
            self._number = number
            self._stop.noticed.set()
            self._stop.begin_grace()
            self._log.info(why)
            self._start(self._leave_after_handler, name, code)
        self._signals.release()

    def _leave_after_handler(self, name: str, code: int) -> None:
        """Ends the process when the user's handler has come back; one that leaves ends it in its own way."""
        while not self._signals.returned.wait(_LOOK_SECONDS):
            if self._is_ending.is_set():
                return
        self.leave(code, f"{name}: its handler has come back")

    def _leave_at_once(self, number: int) -> None:
        if self._stop.saved:
            self.leave(stopped_after_save(), "second Ctrl+C: the save is complete; leaving the step that was under way")
            return
        why = "second Ctrl+C: the save is abandoned; earlier checkpoints are intact"
        self.leave(ended_by_signal(number), why, level=logging.WARNING)

    def _watch_deadline(self) -> None:
        """Ends the process when the grace of a stop is over and the loop has not come back."""
        if not self._stop.wait_for_deadline():
            return
        if self._stop.unsaved_code is not None:
            self.leave(self._stop.unsaved_code, self._stop.why)
            return
        saved, limit, leaving = self._stop.saved, self._stop.limit, self._stop.leaving_seconds
        if saved:
            why = f"the loop did not end {limit}; leaving after a good save"
            self.leave(stopped_after_save(), why, leaving)
            return
        code = FAILED if saved is False or self._number is None else ended_by_signal(self._number)
        why = f"no checkpoint was saved {limit}; earlier ones are intact"
        self.leave(code, "; ".join(filter(None, (why, self._unsaved()))), leaving, logging.ERROR)

    def _unsaved(self) -> str:
        """Returns what is lost if the process ends now, in words; an empty text where nothing is."""
        boundary, run = self._gate.boundary, self._session.run
        if run.rank or boundary is None or self._gate.is_at_beginning or self._session.outcomes.has_saved(boundary):
            return ""
        last = run.status.now.last_checkpoint
        there = f"that of step {last['step']}" if last else "none of this start"
        failed = self._stop.saved is False
        why = f"its last try failed: {run.status.now.last_failure}" if failed else "its save was still under way"
        return f"step {boundary.step} was not saved; the last checkpoint is {there}; {why}"
