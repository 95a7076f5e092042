"""The schedule by the clock: `save_minutes`. The schedule by steps is known to training itself, at the boundary."""

import time

from holdfast.run.request import Request


class Minutes:
    """Asks for a save when enough time has passed since the last one, whoever had asked for that.

    Args:
        minutes: The time between saves, in minutes.
    """

    def __init__(self, minutes: float) -> None:
        self._minutes = minutes
        self._since: float | None = None
        self._over = False

    def due(self) -> bool:
        """Tells whether it is time."""
        return not self._over and self._since is not None and time.monotonic() - self._since >= self._minutes * 60

    def request(self) -> Request:
        """Returns the request; the clock begins anew."""
        self.restart()
        return Request("schedule", why=f"save_minutes {self._minutes:g}")

    def end(self) -> None:
        """Stops asking: training is over, and leaves when what was asked until now is answered."""
        self._over = True

    def restart(self) -> None:
        """Begins to count anew: training begins, or something was saved."""
        self._since = time.monotonic()
