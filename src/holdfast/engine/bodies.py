"""The bodies of a loop's epochs, as saves and stops meet them: the end of the batches, and the rest of the body."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from holdfast.capture.boundary import Boundary
from holdfast.capture.gate import Gate
from holdfast.engine.capturing import Capturing
from holdfast.engine.follower import Follower
from holdfast.engine.saver import Saver
from holdfast.engine.session import Session


class Bodies:
    """Tells saves and stops where in an epoch's body training is. Called by training.

    Args:
        session: The training.
        saver: The thread that saves in this rank.
    """

    def __init__(self, session: Session, saver: Saver | Follower) -> None:
        self._session = session
        self._gate: Gate = session.gate
        self._saver = saver
        self._capturing: Capturing | None = None
        self._before_cut: Boundary | None = None

    def begin(self, capturing: Capturing) -> None:
        """Takes in how the state is read, when training begins."""
        self._capturing = capturing

    def enter(self) -> None:
        """Takes in that a body begins: what it does before its batches it does again after a resume."""
        self._gate.runs_again = True

    def begin_batches(self) -> None:
        """Takes in that the batches of an epoch begin."""
        self._gate.runs_again = False

    def pass_batches(self) -> bool:
        """Takes in that training is at the end of an epoch's batches.

        Returns:
            False where it leaves there, and does not run the rest of the body.
        """
        stop = self._session.stop
        if stop.is_coming and not stop.requested:
            self._saver.settle_stop()
        self._gate.pass_batches()
        stop.end_batches(self._session.step)
        return not stop.requested

    @contextmanager
    def undisturbed(self) -> Iterator[Boundary | None]:
        """Encloses work on the state of the last boundary, which is given, behind all updates of it.

        It is None where this start has reached none yet.
        """
        assert self._capturing is not None, "begin() comes first"
        with self._gate.undisturbed() as here, self._capturing.hook.joined():
            yield here if here is not None and here.number else None

    def changed(self, here: Boundary) -> Sequence[str]:
        """Names the large tensors that are seen to have changed since the last boundary."""
        assert self._capturing is not None and here.fingerprint is not None
        return self._capturing.snapshots.changed(here.fingerprint)

    def lend(self, size: int) -> bool:
        """Takes so many bytes of the staging memory for copies, until the next call; False where it has not so many."""
        assert self._capturing is not None
        return self._capturing.budget.lend(size)

    def exchange(self, here: Boundary, recorded: Any) -> None:
        """Gives the last boundary another record, and the fingerprint of the state as it is read from now on."""
        assert self._capturing is not None
        if recorded is not here.recorded:
            self._before_cut = here
        revision = here.revision + (recorded is not here.recorded)
        fingerprint = self._capturing.snapshots.fingerprint(self._capturing.hook.lanes())
        self._gate.exchange(replace(here, recorded=recorded, fingerprint=fingerprint, revision=revision))

    def take_back_cut(self) -> None:
        """Gives the last boundary its own record back, if it is still the last: an error has left the batches.

        They look like those that the loop leaves itself, of which nothing is to come.
        """
        here, before = self._gate.boundary, self._before_cut
        if here is not None and before is not None and here.number == before.number:
            self._gate.exchange(replace(here, recorded=before.recorded, revision=here.revision + 1))
