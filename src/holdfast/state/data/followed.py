"""A cursor that goes along with a trainer, which makes the iterators of its data itself, and counts epochs.

Such a trainer makes an epoch's iterator before the hooks at its beginning, and asks for the first batch after them.
"""

from collections.abc import Iterator
from typing import Any

from holdfast.state.data import loader
from holdfast.state.data.cursor import DataCursor
from holdfast.state.data.position import Position
from holdfast.state.likeness import alike
from holdfast.state.rng import state as rng_state
from holdfast.state.rng.state import RngRecord


class FollowedCursor(DataCursor):
    """Goes through data where a trainer does, and leaves it to that to tell samplers their epoch.

    Args:
        data: A DataLoader, or any iterable that can be gone through again.
    """

    def __init__(self, data: Any) -> None:
        super().__init__(data)
        self._since_begun: RngRecord | None = None

    def enter(self) -> Iterator[Any]:
        """Begins an epoch at once, or goes to the position that is resumed.

        Returns:
            Its batches, counted as they are taken.
        """
        self.leave()
        is_new = self._resume is None or self._resume.at.begin is None
        self._iterator = self._resumed() if self._resume else self._begun()
        self._since_begun = rng_state.record(self._generators) if is_new and loader.draws_late(self._data) else None
        return self._counted()

    def leave(self) -> None:
        """Notes that the epoch is over, whether or not all of its batches were taken."""
        if self._resume is None and self.consumed:
            self.end_epoch()

    def _counted(self) -> Iterator[Any]:
        since, self._since_begun = self._since_begun, None
        # The order is drawn now. A seed for workers is not drawn from this state any more, as where they are kept.
        if since is not None and not alike(now := rng_state.record(self._generators), since):
            self._begin, self._workers_kept = now, True
            self._inner_begin = self._inner.record() if self._inner else {}
        yield from super()._counted()

    def _tell_epoch(self) -> None:
        """Leaves it to the trainer."""

    def _tell_epoch_of(self, at: Position) -> None:
        """Leaves it to the trainer."""
