"""The gate: the wait of training before its next update, while a snapshot of the last boundary is being taken."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from holdfast.capture.blocking import LOOK_SECONDS, Blocking
from holdfast.capture.boundary import Boundary
from holdfast.capture.hold import Hold, Holds

_REMEMBERED = 64
# Where one rank asks for a save of a boundary, the others do so within this time of reaching it, or not at all.
_CALL_SECONDS = 2.0
_END_SECONDS = 2.0  # a training comes from its last boundary to its end at once, unless the user has more to do there


class Gate(Blocking):
    """Between two threads: training, which reaches boundaries and makes updates, and the one that takes snapshots.

    From a boundary until the next update the parameters and the optimizer's state stand still, so a snapshot can be
    taken whenever the gate is shut, whatever else training does meanwhile.

    Args:
        wake: Set when training shuts the gate itself, at a boundary that is to be saved, and when it blocks until it is
            answered: the saving thread has something to look at.
    """

    def __init__(self, wake: threading.Event) -> None:
        super().__init__(wake)
        self._boundary: Boundary | None = None
        self._taken: Boundary | None = None
        self._mark: Boundary | None = None
        self._updating = False
        self._wanted = False
        self._awaited: int | None = None
        self._is_last = False
        self._training_thread = threading.current_thread()
        self._ending = False
        self._is_past = False
        self._is_undecided = False
        self._holds = Holds()
        self.runs_again = False
        """True while training does what it does again after a resume from the last boundary: nothing of it counts."""
        self.undisturbed_seconds: deque[float] = deque(maxlen=_REMEMBERED)
        """The latest times from a boundary to the next update, without the time that it was blocked."""
        self.only_when_blocked = False
        """Snapshots are taken only while the training thread is blocked: "at a boundary" mode."""

    @property
    def boundary(self) -> Boundary | None:
        """The last boundary, which may have been left for an update since."""
        return self._boundary

    @property
    def is_at_beginning(self) -> bool:
        """True as long as no update was made: a stop has nothing to save."""
        return self._boundary is None or self._boundary.number == 0

    @property
    def updating(self) -> bool:
        """True while training is somewhere between the beginning of an update and the next boundary."""
        return self._updating

    @property
    def is_shut(self) -> bool:
        """True while training would have to wait before its next update."""
        return self._shut

    @property
    def is_training_thread(self) -> bool:
        """True in the thread that trains."""
        return threading.current_thread() is self._training_thread

    @property
    def is_last(self) -> bool:
        """True at the boundary at which training ends by itself."""
        return self._is_last

    @property
    def is_past(self) -> bool:
        """True from the end of an epoch's batches to the next boundary: training is in the rest of the epoch's body."""
        return self._is_past

    @property
    def is_ending(self) -> bool:
        """True from `end` on."""
        return self._ending

    def begin(self) -> None:
        """Marks the calling thread as the one that trains."""
        self._training_thread = threading.current_thread()

    def end(self) -> None:
        """Marks that training reaches no boundary any more; what waits for one gives up."""
        self._ending = True

    def leave(self) -> None:
        """Waits while the gate is shut; then the last boundary is no more, and the next is being recorded.

        Called by training at the beginning of `step()`: a scaler that skips an update never comes to the optimizer's.
        """
        with self._changed:
            self._wait_until_open()
            self._updating = True

    def enter_update(self) -> None:
        """Waits while the gate is shut; then an update is in progress until the next boundary."""
        with self._changed:
            if not self._updating and self._boundary is not None and not self._shut:
                self.undisturbed_seconds.append(time.monotonic() - self._boundary.reached_at)
            self._wait_until_open()
            self._holds.wait_on_cards()
            self._updating = True
            self._mark = None

    def mark(self, boundary: Boundary) -> None:
        """Keeps a state after an update, until the next one: what comes between it and its boundary may fail or hang.

        It has the number of the boundary that is to follow.
        """
        with self._changed:
            self._mark = boundary

    def take_mark(self) -> bool:
        """Makes the mark the last boundary, where the one that was to follow was not reached.

        Returns:
            False where there is no mark since the last update, or its boundary was reached.
        """
        with self._changed:
            if self._mark is None or not self._updating:
                return False
            self._boundary, self._updating = self._mark, False
            return True

    def reach(self, boundary: Boundary, *, shut: bool, last: bool = False) -> None:
        """Takes in a boundary that training has reached.

        Args:
            boundary: The boundary.
            shut: True when it is to be saved, so that no update may begin before it was taken.
            last: True where training ends here.
        """
        with self._changed:
            self._holds.look()
            self._boundary = boundary
            self._is_last = last
            self._updating = self._is_past = self.runs_again = False
            if shut or self._wanted or (self._awaited is not None and boundary.number >= self._awaited):
                self._wanted = False
                self._shut_here()

    def pass_batches(self) -> None:
        """Takes training past the end of an epoch's batches; not while ranks agree, for all may leave there."""
        with self._changed:
            self._wait_while(self._may_leave_here, LOOK_SECONDS)
            self._is_past = self.runs_again = True

    @contextmanager
    def undisturbed(self) -> Iterator[Boundary | None]:
        """Encloses work of training on its last boundary, which is given: no snapshot is taken, and none begun.

        It is None where there is none any more.
        """
        with self._changed:
            self._wait_until_open()
            yield None if self._updating else self._boundary

    def exchange(self, boundary: Boundary) -> None:
        """Puts another record of the last boundary in its place."""
        with self._changed:
            self._boundary = boundary

    def renew(self, boundary: Boundary) -> None:
        """Shuts the gate at the last boundary, as it is to be saved, for a save that training asks for there.

        A snapshot of it that is being taken goes on; the gate stays shut for the next.
        """
        with self._changed:
            self._boundary = boundary
            self._shut_here()

    def shut(self, after: int, out_of_time: Callable[[], bool] = lambda: False) -> Boundary | None:
        """Shuts the gate as soon as there is a boundary to take; called by the thread that takes snapshots.

        Args:
            after: The number of a boundary that is of no use any more; the next one is.
            out_of_time: Asked now and then for whether a mark has to do, because the boundary may come too late.

        Returns:
            The boundary; None where training is ending, and there will be none.
        """
        with self._changed:
            while not self._can_shut(after):
                if not self.only_when_blocked and out_of_time() and self.take_mark():
                    continue
                self._wanted = True
                if self._is_hopeless:
                    self._wanted = False
                    return None
                self._changed.wait(0.05)
            self._shut = True
            self._wanted = False
            self._taken = self._boundary
            return self._boundary

    @property
    def is_at_mark(self) -> bool:
        """True where the last boundary is a mark, because the boundary behind it was not reached."""
        return self._boundary is not None and self._boundary is self._mark

    def offer(self, after: int, *, out_of_time: bool = False) -> tuple[int, bool, bool]:
        """Shuts the gate at the earliest boundary that can still be taken: the last one, or the next.

        Called by the thread that takes snapshots. `take` and `decided` follow, or `open` if there will be no snapshot.

        Args:
            after: The number of a boundary that is of no use any more.
            out_of_time: True where a mark has to do, because the boundary may come too late.

        Returns:
            The number of the boundary, whether training comes to no later one before it is answered, and whether it is
            past the end of the batches there. Training does not leave it before it was taken or the gate is opened.
        """
        with self._changed:
            if self.only_when_blocked and self._is_last:
                # Where it ends it can be taken as it is blocked; a promise of the next boundary could not be kept.
                self._changed.wait_for(lambda: self._shut or self._blocked or self._updating, _END_SECONDS)
            if out_of_time and not self.only_when_blocked:
                self.take_mark()
            here = self._boundary.number if self._boundary is not None else 0
            self._is_undecided = True
            if self._can_shut(after):
                self._shut = True
                return here, self._blocked > 0, self._is_past
            self._wanted = True
            return here + 1, False, False

    def decided(self) -> None:
        """Lets training go past the end of an epoch's batches: what the ranks have agreed on is known here."""
        with self._changed:
            self._is_undecided = False
            self._changed.notify_all()

    def take(
        self,
        number: int,
        give_up: Callable[[], bool] | None = None,
        asked_at: int | None = None,
        *,
        mark: bool = False,
    ) -> Boundary | None:
        """Waits until training has come to a boundary that was agreed on, and shuts the gate there.

        Args:
            number: The boundary's number, `offer`'s or a later one: training runs on until it is there.
            give_up: Asked now and then for whether the wait is in vain.
            asked_at: The boundary at which training has asked for this save in another rank, and may do so here: the
                small state that it has by then is saved.
            mark: True where the mark before the boundary was agreed on. It is there until the next update.

        Returns:
            The boundary; None where it was given up, training will not come to it, or the mark is there no more.
        """
        with self._changed:
            self._wanted = False
            self._awaited = number
            try:
                while not self._is_at(number):
                    if self._shut:
                        self._shut = False
                        self._changed.notify_all()
                    # A thread that is blocked until it is answered comes to no further boundary before that.
                    if self._blocked or self._is_hopeless or (give_up is not None and give_up()):
                        return None
                    self._changed.wait(0.05)
            finally:
                self._awaited = None
            if mark and (self._mark is None or self._mark.number != number):
                return None
            self._shut = True
            if number == asked_at and not mark and self._boundary is not None:
                self._wait_for_call(self._boundary)
            self._taken = self._mark if mark else self._boundary
            return self._taken

    def has_made_its_calls(self, number: int) -> bool:
        """Returns whether training has asked for a save at a boundary, or will not do so any more."""
        with self._changed:
            here = self.boundary
            return self._ending or (here is not None and here.number >= number and not self._may_call(here, number))

    def holds(self, number: int) -> bool:
        """Returns whether training cannot have left a boundary since the gate was shut there."""
        with self._changed:
            return self._shut and self._boundary is not None and self._boundary.number == number

    def open(self, number: int | None, hold: Hold | None = None) -> bool:
        """Lets training go on.

        Args:
            number: The boundary that was taken. One that training has reached since, and wants saved, keeps the gate
                shut. None opens it whatever it is shut for; a snapshot that is not whole is lost then.
            hold: What the next update waits for on the cards, where the boundary is still being read there.

        Returns:
            True when it was shut for that until now.
        """
        with self._changed:
            self._is_undecided = False
            if number is None:
                self._wanted = False
            here, taken = self._boundary, self._taken
            is_shut_for_it = self._shut and (number is None or here is None or here.number == number)
            # Training has asked for one more save of the boundary that was taken.
            is_renewed = taken is not None and taken.number == number and here is not taken
            if hold is not None:
                self._holds.add(hold)
            if is_shut_for_it and not is_renewed:
                self._shut = False
            self._changed.notify_all()
            return is_shut_for_it

    @property
    def _is_hopeless(self) -> bool:
        """True when no boundary will come any more: training is ending, and has none or broke off in an update."""
        return self._ending and (self._updating or self._boundary is None)

    def _wait_for_call(self, boundary: Boundary) -> None:
        """Waits until training has asked for a save at a boundary, at which the gate is shut, or will not."""
        begun = time.monotonic()
        while self._boundary is boundary and self._may_call(boundary, boundary.number, begun):
            self._changed.wait(0.05)

    def _may_call(self, here: Boundary, number: int, since: float = 0.0) -> bool:
        """Returns whether training may still ask for a save at a boundary: it has not gone on to the next update."""
        has_gone_on = self._updating or self._blocked or self.blocked_since is not None or self._ending
        is_late = time.monotonic() > max(here.reached_at, since) + _CALL_SECONDS
        return here.number == number and not here.asked and not has_gone_on and not is_late

    def _may_leave_here(self) -> bool:
        """Returns whether the ranks still agree on a boundary after which training may have to leave where it is."""
        return self._is_undecided and (self._awaited is None or self._is_at(self._awaited))

    def _is_at(self, number: int) -> bool:
        return self._boundary is not None and self._boundary.number >= number and not self._updating

    def _can_shut(self, after: int) -> bool:
        if self._shut:
            return True
        if self._boundary is None or self._updating:
            return False
        return self._blocked > 0 or (self._boundary.number > after and not self.only_when_blocked)

    def _shut_here(self) -> None:
        """Shuts the gate for a save of the boundary that training is at, and wakes the thread that takes it."""
        self._shut = True
        self._changed.notify_all()
        self._wake.set()
        if self.only_when_blocked:
            self._wait_until_open()
