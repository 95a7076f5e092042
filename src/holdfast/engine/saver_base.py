"""The thread that saves, as far as it is the same in rank 0 and in every other."""

import threading
from abc import ABC, abstractmethod
from collections import deque

from holdfast.capture.boundary import Boundary
from holdfast.capture.gate import Gate
from holdfast.capture.snapshot import Snapshots
from holdfast.capture.staging_budget import StagingBudget
from holdfast.engine.pending_save import PendingSave
from holdfast.engine.watchdog import Watchdog
from holdfast.run.request import Answer


class Serving(ABC):
    """Takes snapshots of boundaries in a thread of its own, from the first of a training to its end.

    Args:
        gate: Between training and this thread.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._thread = threading.Thread(target=self._serve, name="holdfast-engine", daemon=True)
        self._in_use: tuple[Snapshots, StagingBudget] | None = None
        self._closing = False
        self._busy = False
        self._patience = Watchdog()
        self._stale_before = -1
        self._saved_number = -1
        self.tickets: dict[str, PendingSave] = {}
        """Who waits in this process, by the request's id."""
        self.published: deque[Answer] = deque()
        """What was saved and is still to be told to those who must see the finished directory."""
        self.last_answer: Answer | None = None
        self.stop_saved: bool | None = None
        """Whether the save of a stop succeeded; None as long as none was asked for or answered."""

    def start(self, snapshots: Snapshots, reserve: StagingBudget) -> None:
        """Begins to serve."""
        self._in_use = (snapshots, reserve)
        self._thread.start()

    @property
    def serving(self) -> bool:
        """Whether there is a thread that would soon open a gate again: not while it hangs in a save."""
        return self._thread.is_alive() and not self._closing and not self._patience.lost

    def has_saved(self, boundary: Boundary) -> bool:
        """Whether there is a checkpoint of that very boundary."""
        return boundary.number == self._saved_number

    @abstractmethod
    def _serve(self) -> None:
        """What the thread does."""

    def _let_go(self) -> None:
        """Storage hangs: training is not held any longer. A snapshot that is not whole is lost."""
        if (here := self._gate.boundary) is not None:
            self._gate.open(here.number)
