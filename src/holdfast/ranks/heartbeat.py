"""What a rank tells the coordinator all the time: where it stands, and what is asked of it."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from holdfast.errors import RanksError
from holdfast.ranks.channel import Channel
from holdfast.ranks.keys import beat_key
from holdfast.run.request import Request

LEFT = "left"
"""The phase of a rank that has left its training without waiting for the others."""

_BEAT_SECONDS = 1.0


class Heartbeat:
    """The doors of a rank that is not the coordinator: whatever is asked here is passed on.

    Args:
        channel: To the coordinator.
        describe: What this rank is doing: `step`, `phase`, and whatever else the status shows.
        say: Prints a line for the user.
    """

    def __init__(self, channel: Channel, describe: Callable[[], dict[str, Any]], say: Callable[[str], None]) -> None:
        self._channel = channel
        self._describe = describe
        self._say = say
        self._lock = threading.Lock()
        self._asked: dict[str, Request] = {}
        self._beats = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep_telling, name="holdfast-beat", daemon=True)

    def start(self) -> None:
        """Begins to tell."""
        self._thread.start()

    @property
    def waiting(self) -> bool:
        """Whether something that was asked here is not answered yet."""
        return bool(self._asked)

    def accept(self, request: Request) -> bool:
        """Passes a request on; tells whether the coordinator can know of it."""
        with self._lock:
            self._asked[request.id] = request
        try:
            self.tell()
        except RanksError as error:
            self._say(str(error))
            return False
        return True

    def hear(self, request: Request) -> None:
        """Passes on what this process asks of itself."""
        self.accept(request)

    def look(self, step: int, *, last: bool) -> bool:
        """The trigger file is the coordinator's to look at."""
        return False

    def answered(self, ids: list[str]) -> None:
        """Requests were answered."""
        with self._lock:
            for request in ids:
                self._asked.pop(request, None)

    def take(self) -> list[Request]:
        """Everything that was asked here and has no answer; it will get none from the coordinator."""
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
            }
            self._channel.put(beat_key(self._channel.rank), content)

    def close(self) -> None:
        """Stops telling."""
        self._closing.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(_BEAT_SECONDS)
        with suppress(RanksError):  # nobody is left to hear it
            self.tell()

    def _keep_telling(self) -> None:
        while True:
            try:
                self.tell()
            except RanksError:
                return  # the store ends with the training; whoever waits for something is told so there
            if self._closing.wait(_BEAT_SECONDS):
                return
