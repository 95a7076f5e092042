"""The batches that a loop has taken and not used yet, as one that prefetches does.

What a step uses is not said by anybody. It is what a loop takes from one boundary to the next, once it goes evenly.
Whatever it has taken beyond that when it comes to its second boundary is ahead.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

_MOST_AHEAD = 64
"""Positions that are kept until it is known how many are needed."""


class Lookahead:
    """Counts what a loop takes, in batches or in lists of them, and what its steps have used of it."""

    def __init__(self) -> None:
        self._per_step: int | None = None
        self._ahead: int | None = None
        self._first = 0
        self._taken = 0
        self._boundaries = 0
        self._is_drained = False
        self._positions: deque[Any] = deque(maxlen=_MOST_AHEAD)
        self.lines: list[str] = []
        """Lines for the user, for whoever logs to take."""

    @property
    def keeps_positions(self) -> bool:
        """True where a position may turn out to be the one that was used, or something is ahead."""
        return self._ahead is None or self._ahead > 0

    def begin(self, per_step: int | None, position: Any) -> None:
        """Notes that the loop begins to take.

        Args:
            per_step: The number that a step uses, where it is known.
            position: The position before the first.
        """
        self._per_step = per_step or self._per_step
        self._taken = self._boundaries = 0
        self._is_drained = False
        self._positions.clear()
        self._positions.append(position)

    def take(self, position: Any) -> None:
        """Notes that the loop has taken one more, after which this is the position."""
        self._taken += 1
        if self.keeps_positions:
            self._positions.append(position)

    def drain(self) -> None:
        """Notes that there is no more to take: what is ahead is being used up."""
        self._is_drained = True

    def reach(self, is_at_end: Callable[[], bool]) -> None:
        """Notes a boundary: what the step before it used, is used.

        Args:
            is_at_end: Tells if what was taken last is the last of an epoch.
        """
        self._boundaries += 1
        if self._ahead is None:
            self._decide(is_at_end)
        elif self._ahead and not self._is_even():
            self._ahead = 0
            self._positions.clear()
            self.lines.append(
                "data: steps use different numbers of batches after all: from here on the position that is saved is"
                " that of what was taken from batches()"
            )

    def used(self) -> Any:
        """Returns the position of what was used; None where nothing is ahead of it."""
        unused = self._unused() if self._ahead else 0
        return self._positions[-1 - unused] if 0 < unused < len(self._positions) else None

    def _decide(self, is_at_end: Callable[[], bool]) -> None:
        if self._per_step is None and self._boundaries == 1:
            self._first = self._taken
            return
        per_step = self._per_step or self._taken - self._first
        ahead = self._taken - per_step * self._boundaries
        may_be = per_step > 0 and 0 < ahead < _MOST_AHEAD and (per_step == 1 or ahead <= per_step)
        if may_be and self._per_step is None and is_at_end():
            # An accumulation that the end of the epoch cut short looks the same: the next step tells them apart.
            self._first = self._taken
            return
        self._ahead = ahead if may_be else 0
        if not self._ahead:
            self._positions.clear()
            return
        self._per_step = per_step
        self.lines.append(
            f"data: the loop has taken {ahead} more from batches() than its steps used: the position that is saved is"
            " that of what was used, and what is ahead is fetched again at a resume (right at the end of an epoch the"
            " next one, if it was begun ahead, may get another order)"
        )

    def _unused(self) -> int:
        return self._taken - (self._per_step or 0) * self._boundaries

    def _is_even(self) -> bool:
        unused, ahead = self._unused(), self._ahead or 0
        return unused == ahead or (self._is_drained and -(self._per_step or 0) < unused < ahead)
