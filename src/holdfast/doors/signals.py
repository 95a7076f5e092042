"""Signals that ask for saves. The handlers do nothing but wake a thread, which does the rest.

The interpreter's own C handler writes the signal's number into a pipe at once, even while the main thread is inside one
long call (seen: a Python handler ran 1.1 s late, a thread at the pipe saw the signal in 3 ms).
"""

import os
import signal
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
Handler = Any  # what signal.getsignal returns: a callable, SIG_DFL, SIG_IGN, or None for a handler not set from Python

SAVE = (signal.SIGUSR1,)
SAVE_AND_STOP = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
# No signal has this number: what was heard before it is in the hands of the listening thread.
_MARK = b"\0"
# The thread may hang in a line to a terminal that nobody reads.
_CATCHING_UP_SECONDS = 1.0
_ENDINGS: set[CodeType] = set()


def ends_training(function: Function) -> Function:
    """Marks a function that ends a training: a handler that left it halfway would leave the run open, without an end.

    A flag would come too late: a handler may be called before the first line of a function.
    """
    _ENDINGS.add(function.__code__)
    return function


class Signals:
    """Listens to SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 from `start` to `stop`; until `put_back` they only wait.

    A handler that the user had set waits until it is released: it may leave, and what the signal asks for comes first.
    It is called in the main thread as ever, once for the signals that came until then, and is there again after
    `put_back`. A signal that this process was started to ignore stays ignored. Children that are forked meanwhile have
    the handlers that were there before.
    """

    def __init__(self) -> None:
        self._before: dict[int, Handler] = {}
        self._owner = os.getpid()
        self._read = self._write = self._chained_fd = -1
        self._lock = threading.RLock()  # a handler may come while the main thread has it
        self._waiting: list[int] = []
        self._released: set[int] = set()
        self._echoes: Counter[int] = Counter()
        self._late: list[int] = []
        self._marks: list[threading.Event] = []
        self._keeps_all: bool | None = None
        self._interrupts = False
        self.returned = threading.Event()
        """Set when a handler that was released has come back."""
        self.exit: SystemExit | KeyboardInterrupt | None = None
        """A copy of that by which a handler that was released has left the training."""

    def start(self) -> bool:
        """Begins to listen. False, and nothing is done, outside the main thread, where Python allows no handlers."""
        if threading.current_thread() is not threading.main_thread():
            return False
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._chained_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in (*SAVE, *SAVE_AND_STOP):
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN:
                self._before[number] = before
                signal.signal(number, self._handle)
        # What is registered stays for the life of the process, and would keep a whole training and its memory with it.
        in_child = weakref.WeakMethod(self._in_child)
        os.register_at_fork(after_in_child=lambda: (here := in_child()) and here())
        return True

    def received(self) -> Iterator[int]:
        """Yields the number of each signal as it comes, until `stop`; for a thread that does nothing else."""
        while data := os.read(self._read, 64):
            for number in data:
                if number == _MARK[0]:
                    self._marks.pop(0).set()
                elif self._is_echo(number):
                    continue
                elif number in self._before:
                    if self.has_handler(number):
                        self._keep_waiting(number)
                    yield number
                if self._chained_fd >= 0 and number != _MARK[0]:
                    os.write(self._chained_fd, bytes([number]))

    def catch_up(self) -> None:
        """Returns when the listening thread has taken in all signals that have come so far. Not for that thread."""
        if self._write < 0:
            return
        mark = threading.Event()
        self._marks.append(mark)
        try:
            os.write(self._write, _MARK)
        except OSError:  # the pipe is full: the listener is far behind
            self._marks.remove(mark)
        else:
            mark.wait(_CATCHING_UP_SECONDS)

    def has_handler(self, number: int) -> bool:
        """Returns whether the user, the launcher or a framework had set a handler of a signal, and none since."""
        if signal.getsignal(number) != self._handle:
            return False
        before = self._before.get(number)
        ours = isinstance(getattr(before, "__self__", None), Signals)  # of another training in this process
        return callable(before) and before is not signal.default_int_handler and not ours

    def asks_to_stop(self, number: int) -> bool:
        """Returns whether a signal asks for the end of training: submitit hears SIGTERM, and has its job go on."""
        return number in SAVE_AND_STOP and not _is_bypass(self._before.get(number))

    def release(self) -> None:
        """Has the main thread call the handlers that wait as soon as it can; called by other threads.

        Their signals are sent to the main thread once more, which also ends a system call that it waits in.
        """
        if not self._keeps_all:
            for number in list(self._waiting):
                self._send(number)

    def interrupt(self) -> bool:
        """Raises KeyboardInterrupt in the main thread, as Ctrl+C does where nobody listens; for other threads.

        Returns:
            False, and nothing is done, where another has SIGINT by now: it is not this training that runs there.
        """
        if signal.getsignal(signal.SIGINT) != self._handle:
            return False
        self._interrupts = True
        self._keep_waiting(signal.SIGINT)
        self._send(signal.SIGINT)
        return True

    def keep_all(self, keep: bool = True) -> None:
        """Has handlers wait until `call_all`, or no more: without it they wait while training is being ended."""
        self._keeps_all = keep

    def call_all(self) -> None:
        """Calls the handlers that still wait. In the main thread; they may raise."""
        while self._waiting:
            self._call(self._waiting[0], sys._getframe())

    @property
    def some_wait(self) -> bool:
        """True while a handler of the user's waits to be called."""
        return bool(self._waiting)

    def stop(self) -> None:
        """Listens no more. `received` comes to its end; `close` follows when its thread has."""
        if self._write >= 0:
            with self._lock:
                signal.set_wakeup_fd(self._chained_fd)
                os.close(self._write)  # the reader sees the end of the pipe
                self._write = -1

    def close(self) -> None:
        """Lets go of the pipe that was read."""
        if self._read >= 0:
            os.close(self._read)
            self._read = -1

    def put_back(self) -> list[int]:
        """Puts back the handlers that were there before, and returns what has come since `stop`, which nobody heard.

        What comes while a run is being closed may neither end the process before it is, nor be lost.
        """
        for number, before in self._before.items():
            if signal.getsignal(number) == self._handle:  # not one that was set since
                signal.signal(number, signal.SIG_DFL if before is None else before)
        late = [number for number in self._late if number in SAVE_AND_STOP or callable(self._before[number])]
        self._before, self._late = {}, []
        return late

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._write < 0:
            self._late.append(number)
            return
        keeps = _ends(frame) if self._keeps_all is None else self._keeps_all
        if number in self._released and not keeps:
            self._released.discard(number)
            self._call(number, frame)

    def _call(self, number: int, frame: FrameType | None) -> None:
        with self._lock:
            if number not in self._waiting:
                return
            self._waiting.remove(number)
        interrupts = self._interrupts and number == signal.SIGINT
        handler = signal.default_int_handler if interrupts else self._before[number]
        try:
            handler(number, frame)
        except (SystemExit, KeyboardInterrupt) as error:
            # Not itself: its trace would keep alive what the frames hold.
            self.exit = SystemExit(error.code) if isinstance(error, SystemExit) else KeyboardInterrupt()
            raise
        self.returned.set()

    def _send(self, number: int) -> None:
        with self._lock:
            if self._write < 0 or signal.getsignal(number) != self._handle:
                return  # it would come to somebody else
            self._echoes[number] += 1
            self._released.add(number)
            signal.pthread_kill(threading.main_thread().ident or 0, number)

    def _keep_waiting(self, number: int) -> None:
        with self._lock:
            if number not in self._waiting:
                self._waiting.append(number)

    def _is_echo(self, number: int) -> bool:
        with self._lock:
            if not self._echoes[number]:
                return False
            self._echoes[number] -= 1
            return True

    def _in_child(self) -> None:
        # A data-loading worker that kept these would tell us of its own signals as if they were ours.
        if self._before and os.getpid() != self._owner:
            self._lock = threading.RLock()  # a thread that the child does not have may have held it
            self.stop()
            self.close()
            self.put_back()


def _ends(frame: FrameType | None) -> bool:
    """Returns whether a function that ends a training is being called in a frame, or further out."""
    while frame is not None and frame.f_code not in _ENDINGS:
        frame = frame.f_back
    return frame is not None


def _is_bypass(handler: Handler) -> bool:
    """Returns whether a handler is the one by which submitit does nothing at a signal, on purpose."""
    theirs = type(getattr(handler, "__self__", None)).__module__
    return theirs.partition(".")[0] == "submitit" and getattr(handler, "__name__", "") == "bypass"
