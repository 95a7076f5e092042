"""The heartbeat of a rank: where it stands, and what is asked of it, told to rank 0 all the time."""

import logging
import socket
import threading
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from holdfast.capture.gate import Gate
from holdfast.errors import RanksError
from holdfast.ranks.channel import Channel
from holdfast.ranks.keys import beat_key
from holdfast.run.request import Request
from holdfast.run.status import StatusFile

LEFT = "left"
"""The phase of a rank that has left its training without waiting for the others."""

_BEAT_SECONDS = 1.0
# What training asks for in all ranks may be answered before this one has asked for it.
_REMEMBERED = 64


class Heartbeat:
    """The doors of a rank that is not rank 0: whatever is asked here is passed on.

    Args:
        channel: The channel to rank 0.
        status: Tells the rank's step and phase.
        gate: Tells its boundary, and whether training is blocked there.
        log: Takes a line for the user.
    """

    def __init__(self, channel: Channel, status: StatusFile, gate: Gate, log: logging.Logger) -> None:
        self._channel = channel
        self._status = status
        self._gate = gate
        self._log = log
        self._lock = threading.Lock()
        self._asked: dict[str, Request] = {}
        self._calls: dict[str, int] = {}
        self._answered: deque[str] = deque(maxlen=_REMEMBERED)
        self._beats = 0
        self._has_left = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep_telling, name="holdfast-heartbeat", daemon=True)

    def start(self) -> None:
        """Begins to tell."""
        self._thread.start()

    @property
    def waiting(self) -> bool:
        """True when something that was asked here is not answered yet."""
        return bool(self._asked)

    def accept(self, request: Request) -> bool:
        """Passes a request on; returns whether rank 0 can know of it."""
        with self._lock:
            self._asked[request.id] = request
        try:
            self.tell()
        except RanksError as error:
            self._log.warning(str(error))
            return False
        return True

    def hear(self, request: Request, boundary: int | None = None) -> None:
        """Passes on what this process asks of itself, and the boundary at which training has asked it."""
        with self._lock:
            if request.id in self._answered:
                return  # other ranks have asked for it as well
            if boundary is not None:
                self._calls[request.id] = boundary
        self.accept(request)

    def look(self, step: int, *, last: bool) -> bool:
        """Returns False: the trigger file is rank 0's to look at."""
        return False

    def answered(self, ids: Iterable[str]) -> None:
        """Forgets requests that were answered."""
        with self._lock:
            for request in ids:
                self._answered.append(request)
                self._asked.pop(request, None)
                self._calls.pop(request, None)

    def take(self) -> list[Request]:
        """Returns everything that was asked here and has no answer; it will get none from rank 0."""
        with self._lock:
            taken, self._asked = list(self._asked.values()), {}
        return taken

    def tell(self) -> None:
        """Tells it now.

        Raises:
            RanksError: The store is gone.
        """
        with self._lock:
            self._beats += 1
            content = {
                **self._describe(),
                "host": socket.gethostname(),
                "beat": self._beats,
                "asked": [asdict(request) for request in self._asked.values()],
                "calls": dict(self._calls),
            }
            self._channel.put(beat_key(self._channel.rank), content)

    def close(self, *, has_left: bool = False) -> None:
        """Stops telling, after a last word.

        Args:
            has_left: True where this rank leaves its training without waiting for the others.
        """
        self._has_left |= has_left
        self._closing.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(_BEAT_SECONDS)
        with suppress(RanksError):  # nobody is left to hear it
            self.tell()

    def _describe(self) -> dict[str, Any]:
        now, boundary = self._status.now, self._gate.boundary
        return {
            "step": now.step,
            "boundary": boundary.number if boundary else 0,
            "phase": LEFT if self._has_left else now.phase,
            "held": self._gate.blocked_since is not None,
        }

    def _keep_telling(self) -> None:
        while True:
            try:
                self.tell()
            except RanksError:
                return  # the store ends with the training; whoever waits for something is told so there
            if self._closing.wait(_BEAT_SECONDS):
                return
