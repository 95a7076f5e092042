"""Signals that ask for saves. The handlers do nothing but wake a thread, which does the rest.

The interpreter's own C handler writes the signal's number into a pipe at once, even while the main thread is inside one
long call (seen: a Python handler ran 1.1 s late, a thread at the pipe saw the signal in 3 ms).
"""

import os
import signal
import threading
import weakref
from collections.abc import Iterator
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
    """

    def __init__(self) -> None:
        self._before: dict[int, Handler] = {}
        self._owner = os.getpid()
        self._read = self._write = self._chained_fd = -1

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
            yield from (number for number in data if number in self._before)
            if self._chained_fd >= 0:
                os.write(self._chained_fd, data)

    def stop(self) -> None:
        """Puts back what was there before. `received` comes to its end; `close` follows when its thread has."""
        if self._write >= 0:
            self._restore()
            os.close(self._write)  # the reader sees the end of the pipe
            self._write = -1

    def close(self) -> None:
        """Lets go of the pipe that was read."""
        if self._read >= 0:
            os.close(self._read)
            self._read = -1

    def _handle(self, number: int, frame: FrameType | None) -> None:
        before = self._before.get(number)
        if callable(before) and before is not signal.default_int_handler:
            before(number, frame)

    def _restore(self) -> None:
        signal.set_wakeup_fd(self._chained_fd)
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)

    def _in_child(self) -> None:
        # A data-loading worker that kept these would tell us of its own signals as if they were ours.
        if self._write >= 0 and os.getpid() != self._owner:
            self.stop()
            self.close()
