"""The wait for a mirror at the end of a training, and the last line, which says what is where."""

import time

from holdfast.doors.request_queue import RequestIntake, RequestQueue
from holdfast.engine import mirroring
from holdfast.engine.follower import Follower
from holdfast.engine.saver import Saver
from holdfast.engine.session import Session
from holdfast.engine.shutdown import Shutdown
from holdfast.mirror.supervisor import Supervisor

_LOOK_SECONDS = 0.1
# The process would rest for longer, while nobody waits.
_POKED_EVERY_SECONDS = 5.0
# Somebody who sits there hears how far it is.
_TOLD_AFTER_SECONDS = 2.0
_TOLD_EVERY_SECONDS = 30.0
# What is left of a grace for the rest of the end: at least, and as a part of it.
_KEPT_SECONDS = 0.5
_KEPT_PART = 0.1


class MirrorWait:
    """The end of a training that has a mirror.

    A training that ends by itself waits until nothing waits for the mirror any more; Ctrl+C ends the wait. A stop waits
    for what is left of its grace, and so does an error for as long as a grace is.

    Args:
        session: The training, whose saves are over.
        intake: The requests that come meanwhile.
        saver: Answers them.
        shutdown: Hears the signals that come meanwhile.
    """

    def __init__(self, session: Session, intake: RequestIntake, saver: Saver | Follower, shutdown: Shutdown) -> None:
        self._session = session
        self._mirror: Supervisor | None = session.mirror
        self._intake = intake
        self._saver = saver
        self._shutdown = shutdown
        self._told_at: float | None = None

    def wait(self, *, failed: bool) -> None:
        """Waits, and says what is in the mirror and what is not.

        Args:
            failed: True where an error ends the training.
        """
        if self._mirror is None or self._shutdown.has_left:
            return
        self._session.run.status.update(phase="mirroring")
        ends_wait = self._shutdown.only_end_a_wait()
        stop = self._session.stop
        begun, poked = time.monotonic(), 0.0
        while True:
            if (now := time.monotonic()) - poked >= _POKED_EVERY_SECONDS:
                self._mirror.poke()
                poked = now
            self._mirror.look()
            self._refuse_requests()
            left = stop.seconds_left
            if failed:
                left = min(begun + stop.grace - time.monotonic(), stop.grace if left is None else left)
            is_over = left is not None and left <= max(_KEPT_SECONDS, _KEPT_PART * stop.grace)
            if not self._mirror.waiting or ends_wait.is_set() or is_over:
                break
            self._tell(begun, left)
            ends_wait.wait(_LOOK_SECONDS)
        self._session.log.announce(mirroring.last_line(self._session.run, self._mirror))

    def close(self) -> None:
        """Ends the mirror's process, whatever it is doing."""
        if self._mirror is not None:
            self._mirror.close()

    def _refuse_requests(self) -> None:
        if isinstance(self._intake, RequestQueue) and self._intake.waiting:
            if self._intake.stop_waits:
                self._session.stop.begin_grace()
            self._saver.refuse("training has ended, and waits for its mirror")

    def _tell(self, begun: float, left: float | None) -> None:
        assert self._mirror is not None
        now = time.monotonic()
        if now < (begun + _TOLD_AFTER_SECONDS if self._told_at is None else self._told_at + _TOLD_EVERY_SECONDS):
            return
        self._told_at = now
        ending = "Ctrl+C ends the wait" if left is None else f"for {left:.0f} s more"
        self._session.log.announce(f"{self._mirror.progress()}; {ending}")
