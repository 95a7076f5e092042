"""The schedule by the clock: `save_minutes`. The schedule by steps is known to training itself, at the boundary."""

import time

from holdfast.run.request import Request


class Minutes:
    """Asks for a save when enough time has passed since the last one, whoever had asked for that.

    Args:
        minutes: How long.
    """

    def __init__(self, minutes: float) -> None:
        self._minutes = minutes
        self._since: float | None = None

    def due(self) -> bool:
        """Whether it is time."""
        return self._since is not None and time.monotonic() - self._since >= self._minutes * 60

    def request(self) -> Request:
        """The request; the clock begins anew."""
        self.restart()
        return Request("schedule", why=f"save_minutes {self._minutes:g}")

    def restart(self) -> None:
        """Training begins, or something was saved."""
        self._since = time.monotonic()
