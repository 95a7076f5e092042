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

    What it asks for in the rest of an epoch's body is kept for the end of the body, which is a boundary too: the state
    at the call is in none, as a resume from the last one runs the body again.

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
        self._kept: list[tuple[Request, PendingSave]] = []
        self._is_told_of_step = False
        self._is_over = False

    def begin(self, capturing: Capturing) -> None:
        """Takes in how the state is read, when training begins or begins anew."""
        self._capturing = capturing

    def reach(self, number: int, *, ends_body: bool) -> tuple[Request, ...]:
        """Takes in that training comes to its next boundary, at which it has made no call yet.

        Args:
            number: The number of the boundary.
            ends_body: True at the end of an epoch's body.

        Returns:
            The requests that were kept for it.
        """
        self._calls = []
        if not ends_body or not self._kept:
            return ()
        kept, self._kept = self._kept, []
        for _, pending in kept:
            self._outcomes.expect(pending)
        return tuple(replace(request, at=number) for request, _ in kept)

    def end(self) -> None:
        """Takes in that training has ended: what is asked for from now on is refused."""
        self._is_over = True

    def ask(self, request: Request, *, at_once: bool = False) -> PendingSave:
        """Asks for a save; the pending save learns what becomes of it.

        At a call between two updates the gate is shut there and then, and the small state is recorded anew.

        Args:
            request: The request.
            at_once: True where training waits for the answer: in the rest of a body it has the epoch's last step.
        """
        here, is_call = self._gate.boundary, self._may_call()
        if is_call and self._among_ranks and here is not None:
            # All ranks that make this call make the same request; one with another label is another.
            request = replace(request, id=self._id_of_call(here, request))
        step = None if here is None or not is_call else here.step
        if is_call and self._gate.is_past and not request.stop:
            if not at_once:
                pending: PendingSave = AtEndOfBody(request.id, self._gate, step, self)
                self._kept.append((request, pending))
                return pending
            self._tell_of_step()
        if here is None or not is_call or self._has_moved():
            step = None
        pending = PendingSave(request.id, self._gate, step)
        self._ask(request, pending)
        return pending

    def ask_now(self) -> None:
        """Asks for what was kept for the end of a body as of the epoch's last step: training does not come there."""
        while self._kept:
            self._ask(*self._kept.pop(0))

    def hurry(self, pending: PendingSave) -> None:
        """Asks now for one that was kept, if it still is: training waits for it."""
        for request, kept in self._kept:
            if kept is pending:
                self._kept.remove((request, kept))
                self._tell_of_step()
                self._ask(request, kept)
                return

    def renewed(self, here: Boundary) -> Boundary:
        """Returns a boundary with the small state as training goes on from it now.

        What it does in an epoch's body beside its batches it does again: nothing of that is state there.
        """
        if self._gate.runs_again:
            return here
        assert self._capturing is not None, "begin() comes first"
        return self._capturing.renewed(here)

    def _may_call(self) -> bool:
        """Returns whether the calling thread trains, and is between two updates."""
        is_served = self._saver.serving and not self._is_over
        return self._gate.is_training_thread and not self._gate.updating and is_served

    def _has_moved(self) -> bool:
        """Returns whether the rest of an epoch's body has changed what the last boundary held."""
        return self._gate.is_past and self._capturing is not None and bool(self._capturing.snapshots.moved())

    def _ask(self, request: Request, pending: PendingSave) -> None:
        """Asks for the boundary here, where it is there and training may call."""
        here = self._gate.boundary
        if here is None or not self._may_call() or self._has_moved():
            self._ask_for_any(request, pending)
            return
        request = replace(request, at=here.number)
        self._outcomes.expect(pending)
        if pending.answer is None:
            self._gate.renew(replace(self.renewed(here), asked=(*here.asked, request)))
            self._intake.hear(request, here.number)

    def _ask_for_any(self, request: Request, pending: PendingSave) -> None:
        error = "training has ended" if self._is_over else ""  # a hook of the last save asks
        if request.slot and self._among_ranks and not error:
            error = f"slot {request.slot!r}: among ranks all ask for it together, between step() and the next update"
            self._session.log.error(f"checkpoint failed: {error}")
        if error:
            pending.resolve(Answer(saved=False, error=error))
            return
        self._outcomes.expect(pending)
        self._intake.hear(request)

    def _tell_of_step(self) -> None:
        """Tells once that a save that training waits for has nothing of the body that it is asked for in."""
        if not self._is_told_of_step:
            self._is_told_of_step = True
            self._session.log.announce(
                f"a save that the rest of an epoch's body waits for is as of step {self._session.step}, without what"
                " the body has done since; without wait it is of the end of the body"
            )

    def _id_of_call(self, boundary: Boundary, request: Request) -> str:
        wanted = (request.stop, request.slot, request.label)
        number = sum((before.stop, before.slot, before.label) == wanted for before in self._calls)
        self._calls.append(request)
        token = self._session.run.lease.holder.token
        text = f"{token}/{boundary.number}/{number}/{'/'.join(map(str, wanted))}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]


class AtEndOfBody(PendingSave):
    """A save that is kept for the end of an epoch's body. If training waits for it, it asks for the last step instead.

    Args:
        request: The request's id.
        gate: Blocks the training thread while it waits for the answer.
        step: The step that is to be saved.
        own: What has kept it.
    """

    def __init__(self, request: str, gate: Gate, step: int | None, own: OwnRequests) -> None:
        super().__init__(request, gate, step)
        self._own = own

    def _wait(self, timeout: float | None) -> bool:
        if self._gate.is_training_thread:
            self._own.hurry(self)
        return super()._wait(timeout)
