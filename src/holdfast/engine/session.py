"""The objects that the threads of one training share."""

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from holdfast.capture.boundary import Boundary
from holdfast.capture.gate import Gate
from holdfast.engine.on_published import OnPublished
from holdfast.engine.pending_save import PendingSave
from holdfast.engine.stop import Stop
from holdfast.log import RunLog
from holdfast.run.request import Answer
from holdfast.run.run import Run


class Outcomes:
    """The last answer, the boundary that has a checkpoint, and the saves that this process itself waits for.

    Args:
        on_published: Takes each checkpoint that was published.
    """

    def __init__(self, on_published: OnPublished) -> None:
        self.on_published = on_published
        self._pending: dict[str, PendingSave] = {}
        self.saved_number = -1
        """The number of the last boundary that has a checkpoint."""
        self.last_answer: Answer | None = None
        """The answer of the last save."""

    def expect(self, pending: PendingSave) -> None:
        """Adds a save that was asked for in this process."""
        self._pending[pending.id] = pending

    def publish(self, boundary: Boundary, answer: Answer) -> None:
        """Takes in that a boundary has a checkpoint."""
        self.saved_number = boundary.number
        self.on_published.publish(answer)

    def resolve(self, answer: Answer, requests: Iterable[str]) -> None:
        """Gives their answer to those of the requests, by id, that this process waits for."""
        for request in requests:
            if (pending := self._pending.pop(request, None)) is not None:
                pending.resolve(answer)

    def has_saved(self, boundary: Boundary) -> bool:
        """Returns whether there is a checkpoint of that very boundary."""
        return boundary.number == self.saved_number


@dataclass(frozen=True)
class Session:
    """One training in this process.

    Args:
        run: The open run.
        gate: Between training and the thread that saves.
        wake: Set when there is something for that thread to look at.
        stop: The stop of the training, if one comes.
        outcomes: The outcomes of its saves.
        log: Takes lines for the user.
    """

    run: Run
    gate: Gate
    wake: threading.Event
    stop: Stop
    outcomes: Outcomes
    log: RunLog
