"""The signs of life of a start that waits for its mirror: in its status, to the other ranks, and in lines."""

import itertools
import time
from contextlib import suppress
from dataclasses import asdict
from logging import Logger

from holdfast.mirror.calls import Doing
from holdfast.ranks.channel import Channel
from holdfast.run.run import Run
from holdfast.store import names
from holdfast.text import shown

ALIVE = "choosing"
"""Under this key rank 0 tells the others again and again that it is at it."""
_LINE_SECONDS = 10.0
_FAILING_SECONDS = 60.0
# A store is asked several times before it is said to fail, and one that hangs is waited for.
_SILENT_SECONDS = 5.0


class Waiting:
    """The view that others have of a start while it asks its mirror and pulls.

    Args:
        run: The run, entered.
        channel: To the other ranks; None where there are none.
        log: Takes a line for the user.
    """

    def __init__(self, run: Run, channel: Channel | None, log: Logger) -> None:
        self._run = run
        self._channel = channel
        self._log = log
        self._looks = itertools.count()
        self._failing_since: float | None = None
        self._begun_at = self._told_at = time.monotonic()

    def show(self, doing: Doing) -> None:
        """Shows what is waited for. Called once a second or so."""
        self._run.status.update(mirror=asdict(doing))
        with suppress(OSError):
            self._run.status.write()
        if self._channel is not None:
            self._channel.put(ALIVE, next(self._looks))
        self._tell(doing)

    def end(self) -> None:
        """Ends it: the mirror is this training's own matter from here on."""
        self._run.status.update(mirror=None)

    def _tell(self, doing: Doing) -> None:
        now, since = time.monotonic(), doing.failing_since
        silent = now - self._told_at
        if since is not None and (since != self._failing_since or silent >= _FAILING_SECONDS):
            left = (doing.gives_up_at or time.time()) - time.time()
            self._log.warning(
                f"mirror: {shown(doing.why)}; it is asked again for another {left:.0f} s, and then this start ends"
            )
            self._failing_since, self._told_at = since, now
        elif since is None and doing.of and silent >= _LINE_SECONDS:
            what = names.checkpoint(doing.step or 0)
            self._log.info(f"pulling {what}: {doing.bytes:,} of {doing.of:,} bytes")
            self._told_at = now
        elif since is None and self._told_at == self._begun_at and silent >= _SILENT_SECONDS:
            self._log.info(f"waiting for the mirror, {doing.url}, which has not answered for {silent:.0f} s")
            self._told_at = now
