"""Further tries of saves that failed: after pauses that double, so that a disk that stays full costs little."""

import math
import time
from collections.abc import Sequence

from holdfast.engine.stop import Stop
from holdfast.run.request import Request
from holdfast.run.status import StatusFile

# Seconds from the first failure of a scheduled save to the next try, and the longest pause that this grows to.
_SCHEDULE = (1.0, 300.0)
# The same for the save of a stop, within its grace.
_STOP = (0.5, 4.0)
# The least that is left of the grace for its last try, and for training to end by itself when that has failed.
_LAST_TRY_SECONDS = 0.5


class Retry:
    """The requests that are tried again: the schedule's, until any save succeeds; a stop's, until its grace is over.

    Others are not: who asked hears at once that it failed, and decides.

    Args:
        stop: Tells what is left of the grace of a stop.
    """

    def __init__(self, stop: Stop) -> None:
        self._grace = stop
        self._schedule = _Backoff(*_SCHEDULE)
        self._stop = _Backoff(*_STOP)
        self._why = ""
        self._stops: list[Request] = []

    def saved(self) -> None:
        """Takes in that a save succeeded, whoever had asked for it: what the schedule missed is made good."""
        self._schedule.end()
        self._stop.end()
        self._why = ""

    def schedule(self, requests: Sequence[Request], took: float) -> float | None:
        """Takes in that a save failed; if the schedule had asked for it, it is tried again.

        Args:
            requests: Those that it was for.
            took: The seconds that it took: training is not to be busy with tries alone.

        Returns:
            Seconds until the next try, if there is to be one.
        """
        why = next((request.why for request in requests if request.door == "schedule"), None)
        if why is None:
            return None
        self._why = self._why or why
        return self._schedule.begin(took)

    def stop(self, stops: Sequence[Request], took: float) -> float | None:
        """Takes in that the save of a stop failed. The last try begins when twice its time is left of the grace.

        Returns:
            Seconds until the next try; None where its grace does not last so long, and nothing is kept.
        """
        left = self._grace.seconds_left
        most = 0.0 if left is None else left - max(2 * took, _LAST_TRY_SECONDS)
        if most < _STOP[0]:
            self._stop.end()
            return None
        pause = self._stop.begin(took, most)
        self._stops = list(stops)
        return pause

    def hurry(self) -> None:
        """Makes the next try of what the schedule missed now, if there is one to come."""
        self._schedule.hurry()

    def take(self) -> list[Request]:
        """Returns what is to be tried with the next save: stops always, the schedule's when it is time."""
        taken, self._stops = self._stops, []
        self._stop.pause()
        if self._schedule.seconds == 0:
            self._schedule.pause()
            taken.append(Request("schedule", why=f"{self._why}, tried again"))
        return taken

    @property
    def stop_waits(self) -> bool:
        """True while a stop waits for its next try."""
        return bool(self._stops)

    @property
    def seconds(self) -> float | None:
        """The seconds until the next try, 0 when it is time; None where there is none to come."""
        return min((s for s in (self._schedule.seconds, self._stop.seconds) if s is not None), default=None)


class _Backoff:
    """Pauses that double, from the first to the longest."""

    def __init__(self, first: float, longest: float) -> None:
        self._first = self._next = first
        self._longest = longest
        self._due_at: float | None = None

    def begin(self, took: float, most: float = math.inf) -> float:
        pause = min(max(self._next, took), most)
        self._next = min(2 * self._next, self._longest)
        self._due_at = time.monotonic() + pause
        return pause

    def hurry(self) -> None:
        if self._due_at is not None:
            self._due_at = time.monotonic()

    def pause(self) -> None:
        self._due_at = None

    def end(self) -> None:
        self._due_at = None
        self._next = self._first

    @property
    def seconds(self) -> float | None:
        return None if self._due_at is None else max(0.0, self._due_at - time.monotonic())


def next_try(pause: float | None, status: StatusFile) -> str:
    """Puts the time of the next try into the status, and returns the words for it; empty where there is none."""
    if pause is None:
        return ""
    status.update(next_try_at=time.time() + pause)
    return f"; trying again in {pause:.1f} s"
