"""Signals that ask for saves. The handlers do nothing but wake a thread, which does the rest.

The interpreter's own C handler writes the signal's number into a pipe at once, even while the main thread is inside one
long call (seen: a Python handler ran 1.1 s late, a thread at the pipe saw the signal in 3 ms).
"""

import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

Handler = Any  # what signal.getsignal returns: a callable, SIG_DFL, SIG_IGN, or None for a handler not set from Python

SAVE = (signal.SIGUSR1,)
SAVE_AND_STOP = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


class Signals:
    """Listens to SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 from `start` to `stop`.

    A handler that the user had set is called as well, in the main thread as ever, and is there again after `stop`. A
    signal that this process was started to ignore stays ignored. Children that are forked meanwhile have the handlers
    that were there before.

    Args:
        on_signal: Called in a thread of this object with each signal's number.
    """

    def __init__(self, on_signal: Callable[[int], None]) -> None:
        self._on_signal = on_signal
        self._before: dict[int, Handler] = {}
        self._owner = os.getpid()
        self._read = self._write = self._chained_fd = -1
        self._thread: threading.Thread | None = None

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
        self._thread = threading.Thread(target=self._listen, name="holdfast-signals", daemon=True)
        self._thread.start()
        return True

    def stop(self) -> None:
        """Puts back what was there before."""
        if self._thread is None:
            return
        self._restore()
        os.close(self._write)  # the thread reads the end of the pipe, and ends
        self._thread.join()
        os.close(self._read)
        self._thread = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        before = self._before.get(number)
        if callable(before) and before is not signal.default_int_handler:
            before(number, frame)

    def _listen(self) -> None:
        while data := os.read(self._read, 64):
            for number in data:
                if number in self._before:
                    self._tell(number)
            if self._chained_fd >= 0:
                os.write(self._chained_fd, data)

    def _tell(self, number: int) -> None:
        try:
            self._on_signal(number)
        except BaseException:  # noqa: BLE001 - without this thread no signal could end the process any more
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))

    def _restore(self) -> None:
        signal.set_wakeup_fd(self._chained_fd)
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)

    def _in_child(self) -> None:
        # A data-loading worker that kept these would tell us of its own signals as if they were ours.
        if self._thread is not None and os.getpid() != self._owner:
            self._restore()
            os.close(self._write)
            os.close(self._read)
            self._thread = None
