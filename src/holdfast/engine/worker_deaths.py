"""The death of a data-loading worker: raised where training fetches a batch, and nowhere else.

A launcher's SIGTERM kills the workers together with asking their training to stop. torch raises that in its handler of
SIGCHLD, wherever the main thread happens to be: in the middle of an update, after which there is nothing whole to save;
between a backward and the update that the other ranks make, after which the ranks stand at different boundaries; in the
very save that the stop asked for (each was seen). The loader notices a dead worker by itself as well, within 5 seconds.
"""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_LOADER = "torch/utils/data/dataloader.py"
_FETCHES = "_try_get_data"
# What torch says of a worker that is gone, whether its handler or its loader has noticed.
_DIED = ("DataLoader worker", "pin memory thread")


class WorkerDeaths:
    """Keeps torch's handler of SIGCHLD to the loader. The handler is there from the first worker on."""

    def __init__(self) -> None:
        self._torchs: Any = None
        self._ours = self._handle

    def look(self) -> None:
        """Looks whether there is one by now. Called at every boundary: 0.1 microseconds when there is not."""
        handler = signal.getsignal(signal.SIGCHLD)
        if handler is self._ours or not callable(handler) or threading.current_thread() is not threading.main_thread():
            return
        self._torchs = handler
        signal.signal(signal.SIGCHLD, self._ours)

    def stop(self) -> None:
        """Puts the handler back."""
        if self._torchs is not None and signal.getsignal(signal.SIGCHLD) is self._ours:
            signal.signal(signal.SIGCHLD, self._torchs)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        at = frame
        while at is not None:
            if at.f_code.co_name == "__del__":
                return  # an error of a finalizer is printed and lost (seen), and the loader notices by itself
            if at.f_code.co_filename.endswith(_LOADER):
                self._torchs(number, frame)
                return
            at = at.f_back


def is_death_of_one(error: BaseException) -> bool:
    """Returns whether training sees an error because a worker died: as the cause, or as a batch that never comes."""
    if isinstance(error, RuntimeError) and any(text in str(error) for text in _DIED):
        return True
    return isinstance(error, (OSError, EOFError)) and _was_fetching(error.__traceback__)


def _was_fetching(trace: TracebackType | None) -> bool:
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_name == _FETCHES and code.co_filename.endswith(_LOADER):
            return True
        trace = trace.tb_next
    return False
