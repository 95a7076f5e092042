"""Saves that the process of a training asks for itself: `save()`, from whichever of its threads."""

import hashlib
from dataclasses import replace

from holdfast.capture.boundary import Boundary
from holdfast.capture.gate import Gate
from holdfast.doors.request_queue import RequestIntake
from holdfast.engine.capturing import Capturing
from holdfast.engine.follower import Follower
from holdfast.engine.pending_save import PendingSave
from holdfast.engine.saver import Saver
from holdfast.engine.session import Outcomes, Session
from holdfast.run.request import Answer, Request


class OwnRequests:
    """Asks for the boundary at the call, where the training thread calls between two updates; for any otherwise.

    Args:
        session: The training.
        intake: What hears requests in this rank.
        saver: The thread that saves in this rank.
        among_ranks: True where several processes train together.
    """

    def __init__(self, session: Session, intake: RequestIntake, saver: Saver | Follower, *, among_ranks: bool) -> None:
        self._session = session
        self._gate: Gate = session.gate
        self._outcomes: Outcomes = session.outcomes
        self._intake = intake
        self._saver = saver
        self._among_ranks = among_ranks
        self._capturing: Capturing | None = None
        self._calls: list[Request] = []
        self._is_over = False

    def begin(self, capturing: Capturing) -> None:
        """Takes in how the state is read, when training begins or begins anew."""
        self._capturing = capturing

    def reach(self) -> None:
        """Takes in that training comes to its next boundary, at which it has made no call yet."""
        self._calls = []

    def end(self) -> None:
        """Takes in that training has ended: what is asked for from now on is refused."""
        self._is_over = True

    def ask(self, request: Request) -> PendingSave:
        """Asks for a save; the pending save learns what becomes of it.

        At a call between two updates the gate is shut there and then, and the small state is recorded anew.
        """
        here = self._gate.boundary
        is_call = self._gate.is_training_thread and not self._gate.updating and self._saver.serving
        if is_call and self._gate.is_past and self._capturing is not None and self._capturing.snapshots.moved():
            is_call = False  # the rest of an epoch's body has changed what the last boundary held
        if here is None or not is_call or self._is_over:
            return self._ask_for_any(request)
        if self._among_ranks:
            # All ranks that make this call make the same request; one with another label is another.
            request = replace(request, id=self._id_of_call(here, request))
        request = replace(request, at=here.number)
        pending = PendingSave(request.id, self._gate, here.step)
        self._outcomes.expect(pending)
        if pending.answer is None:
            self._gate.renew(replace(self.renewed(here), asked=(*here.asked, request)))
            self._intake.hear(request, here.number)
        return pending

    def renewed(self, here: Boundary) -> Boundary:
        """Returns a boundary with the small state as training goes on from it now.

        What it does in an epoch's body beside its batches it does again: nothing of that is state there.
        """
        if self._gate.runs_again:
            return here
        assert self._capturing is not None, "begin() comes first"
        return self._capturing.renewed(here)

    def _ask_for_any(self, request: Request) -> PendingSave:
        pending = PendingSave(request.id, self._gate)
        error = "training has ended" if self._is_over else ""  # a hook of the last save asks
        if request.slot and self._among_ranks and not error:
            error = f"slot {request.slot!r}: among ranks all ask for it together, between step() and the next update"
            self._session.log.error(f"checkpoint failed: {error}")
        if error:
            pending.resolve(Answer(saved=False, error=error))
            return pending
        self._outcomes.expect(pending)
        self._intake.hear(request)
        return pending

    def _id_of_call(self, boundary: Boundary, request: Request) -> str:
        wanted = (request.stop, request.slot, request.label)
        number = sum((before.stop, before.slot, before.label) == wanted for before in self._calls)
        self._calls.append(request)
        token = self._session.run.lease.holder.token
        text = f"{token}/{boundary.number}/{number}/{'/'.join(map(str, wanted))}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]
