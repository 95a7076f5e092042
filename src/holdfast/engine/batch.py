"""The requests that one save serves together."""

from collections.abc import Iterable, Sequence

from holdfast.capture.boundary import Boundary
from holdfast.doors.request_queue import RequestQueue
from holdfast.engine.retry import Retry
from holdfast.run.request import Request
from holdfast.store.retention import SCHEDULE

_MOST_NAMED = 20  # requests in a line

MISPLACED = "a slot is of the boundary at which it was asked for, and this save is of another; call save() in all ranks"
"""The answer to requests for a slot that cannot have it."""


class Batch:
    """The requests in the hands of the saving thread. They stay until they are answered, or kept for another try.

    Args:
        queue: The queue of requests.
        retry: The requests that are tried again.
    """

    def __init__(self, queue: RequestQueue, retry: Retry) -> None:
        self._queue = queue
        self._retry = retry
        self.requests: list[Request] = []
        """Those that were taken and have no answer yet."""

    @property
    def waits(self) -> bool:
        """True when there is something to save for."""
        return bool(self.requests or self._queue.waiting or self._retry.seconds == 0)

    @property
    def stop_waits(self) -> bool:
        """True when one of them asks for a stop, or one that was not taken yet does."""
        return bool(self.stops) or self._queue.stop_waits

    @property
    def stops(self) -> list[Request]:
        """Those that ask for a stop."""
        return [request for request in self.requests if request.stop]

    def take(self, boundary: Boundary | None = None) -> Sequence[Request]:
        """Takes all that waits, and returns everything that is to be answered.

        Args:
            boundary: The one that is saved, with what training has asked for there.
        """
        self._hear(boundary)
        self.requests = [*self.requests, *self._retry.take(), *self._queue.take()]
        return self.requests

    def take_agreed(self, boundary: Boundary) -> None:
        """Takes what has come while the ranks agreed on a boundary, and can be served with it.

        A stop cannot: the step after which all leave is a part of what they agree on. It waits for the next agreement.
        """
        self._hear(boundary)
        self.requests = [*self.requests, *self._queue.take(stops=False)]

    def _hear(self, boundary: Boundary | None) -> None:
        """Takes in what training has asked for at a boundary."""
        if boundary is not None and boundary.asked:
            for request in boundary.asked:
                self._queue.hear(request, boundary.number)
            self._queue.write_down()

    def add(self, request: Request) -> None:
        """Adds a request of the schedule, which goes through no queue."""
        self.requests = [*self.requests, request]

    def take_misplaced(self, boundary: Boundary | None) -> list[Request]:
        """Takes out those that would give a slot to another boundary than the one at which they were asked for."""
        if boundary is None:
            return []
        misplaced = [each for each in self.requests if each.slot and each.at not in (None, boundary.number)]
        self.remove(misplaced)
        return misplaced

    def remove(self, answered: Iterable[Request]) -> None:
        """Removes requests that were answered, or that are kept for another try."""
        gone = {request.id for request in answered}
        self.requests = [request for request in self.requests if request.id not in gone]


def names_of(requests: Iterable[Request]) -> set[tuple[str, str]]:
    """Returns the names by which a checkpoint that is saved for requests is to be known: labels and slots."""
    labels = {("label", request.label) for request in requests if request.label}
    return labels | {("slot", request.slot) for request in requests if request.slot}


def ids_of(requests: Sequence[Request]) -> list[str]:
    """Returns the ids of requests."""
    return [request.id for request in requests]


def who_asked(requests: Sequence[Request]) -> str:
    """Returns in a few words who asked for a save: the first of the requests that are not the schedule's."""
    asked = ids_of([request for request in requests if request.door != SCHEDULE])
    more = [f"and {len(asked) - _MOST_NAMED:,} more"] if len(asked) > _MOST_NAMED else []
    return f"request:{','.join([*asked[:_MOST_NAMED], *more])}" if asked else SCHEDULE
