"""The wait for a mirror at the end of a training, and the last line, which says what is where."""

import time
from contextlib import suppress

from holdfast.doors.request_queue import RequestIntake, RequestQueue
from holdfast.engine import mirroring
from holdfast.engine.follower import Follower
from holdfast.engine.saver import Saver
from holdfast.engine.session import Session
from holdfast.engine.shutdown import Shutdown
from holdfast.errors import RanksError
from holdfast.mirror.supervisor import Supervisor
from holdfast.ranks.channel import Channel

_LOOK_SECONDS = 0.1
# The process would rest for longer, while nobody waits.
_POKED_EVERY_SECONDS = 2.0
# Somebody who sits there hears how far it is.
_TOLD_AFTER_SECONDS = 1.0
_TOLD_EVERY_SECONDS = 30.0
# What is left of a grace for the rest of the end: at least, and as a part of it.
_KEPT_SECONDS = 1.0
_KEPT_PART = 0.1
# Rank 0 puts a number under this key again and again while it waits, and this one at the end.
_WAITS = "waits-for-mirror"
_OVER = -1.0
# Rank 0 that has not been heard of for so many times the limit of a silent rank is not waited for.
_PATIENCE = 3.0


class MirrorWait:
    """The end of a training that has a mirror.

    A training that ends by itself waits until nothing waits for the mirror any more; Ctrl+C ends the wait. A stop waits
    for what is left of its grace, and so does an error for as long as a grace is.

    Args:
        session: The training, whose saves are over.
        intake: The requests that come meanwhile.
        saver: Answers them.
        shutdown: Hears the signals that come meanwhile.
        channel: To the other ranks; None where there are none.
    """

    def __init__(
        self,
        session: Session,
        intake: RequestIntake,
        saver: Saver | Follower,
        shutdown: Shutdown,
        channel: Channel | None,
    ) -> None:
        self._session = session
        self._mirror: Supervisor | None = session.mirror
        self._intake = intake
        self._saver = saver
        self._shutdown = shutdown
        self._channel = channel
        self._told_at: float | None = None
        self._told_of_end = False

    def wait(self, *, failed: bool) -> None:
        """Waits, and says what is in the mirror and what is not. The other ranks wait for rank 0, in no collective.

        Args:
            failed: True where an error ends the training.
        """
        if self._mirror is not None and self._shutdown.has_left:
            self._mirror.look()
            self._session.log.announce(mirroring.last_line(self._session.run, self._mirror))
        elif self._mirror is not None:
            try:
                self._wait(self._mirror, failed=failed)
            finally:
                self._tell_others(_OVER)
        elif self._session.run.term and not (failed or self._shutdown.has_left):
            self._wait_for_rank0()

    def _wait(self, mirror: Supervisor, *, failed: bool) -> None:
        self._session.run.status.update(phase="mirroring")
        ends_wait = self._shutdown.only_end_a_wait()
        stop = self._session.stop
        begun, poked = time.monotonic(), 0.0
        while True:
            now, left = time.monotonic(), stop.seconds_left
            if failed:
                left = min(begun + stop.grace - now, stop.grace if left is None else left)
            if now - poked >= _POKED_EVERY_SECONDS:
                mirror.poke(None if left is None else left - self._kept)
                self._tell_others(now)
                poked = now
            mirror.look()
            self._refuse_requests()
            if not mirror.waiting or ends_wait.is_set() or self._is_over(left):
                break
            self._tell(mirror, begun, left)
            ends_wait.wait(_LOOK_SECONDS)
        if not stop.requested:
            stop.over()  # training has come to its end: what is left to do is what it is without a signal
        self._session.log.announce(mirroring.last_line(self._session.run, mirror))

    def _wait_for_rank0(self) -> None:
        """Returns when rank 0 waits no more: what a program does after its training, all ranks may do together.

        And a launcher may end a job in which one rank has ended with the exit code of a stop.
        """
        channel, ends_wait = self._channel, self._shutdown.only_end_a_wait()
        assert channel is not None
        sign, since = None, time.monotonic()
        while not (ends_wait.is_set() or self._is_over(self._session.stop.seconds_left)):
            try:
                seen = channel.all([_WAITS])[0] if channel.all_there([_WAITS]) else None
            except RanksError:
                return  # rank 0 has ended, and with it the store that it served
            if seen == _OVER:
                return
            if seen != sign:
                sign, since = seen, time.monotonic()
            if time.monotonic() - since > _PATIENCE * channel.seconds:
                self._session.log.warning("rank 0, which waits for the mirror, is not heard of: going on without it")
                return
            ends_wait.wait(_LOOK_SECONDS)

    def _is_over(self, left: float | None) -> bool:
        return left is not None and left <= self._kept

    @property
    def _kept(self) -> float:
        return max(_KEPT_SECONDS, _KEPT_PART * self._session.stop.grace)

    def _tell_others(self, sign: float) -> None:
        if self._channel is not None:
            with suppress(RanksError):
                self._channel.put(_WAITS, sign)

    def close(self) -> None:
        """Ends the mirror's process, whatever it is doing."""
        if self._mirror is not None:
            self._mirror.close()

    def _refuse_requests(self) -> None:
        if isinstance(self._intake, RequestQueue) and self._intake.waiting:
            if self._intake.stop_waits:
                self._session.stop.begin_grace()
            self._saver.refuse("training has ended, and waits for its mirror")

    def _tell(self, mirror: Supervisor, begun: float, left: float | None) -> None:
        now = time.monotonic()
        due = begun + _TOLD_AFTER_SECONDS if self._told_at is None else self._told_at + _TOLD_EVERY_SECONDS
        is_news = left is not None and self._told_at is not None and not self._told_of_end
        if now < due and not is_news:
            return
        self._told_at, self._told_of_end = now, left is not None
        without_end = f"Ctrl+C or holdfast stop {self._session.run.root} ends the wait"
        ending = without_end if left is None else f"for {left:.0f} s more"
        self._session.log.announce(f"{mirror.progress()}; {ending}")
