"""Errors that end a training: they are preceded by a save of the last boundary, or a line says what is lost."""

from holdfast.capture.gate import Gate
from holdfast.doors.request_queue import RequestIntake
from holdfast.engine.session import Outcomes, Session
from holdfast.run.request import Request


class Failure:
    """The end of a training by an error of its own.

    Args:
        session: The training.
        intake: What hears requests in this rank.
        is_saved: True where a save is to come before it, as `save_on_exception` says.
    """

    def __init__(self, session: Session, intake: RequestIntake, *, is_saved: bool) -> None:
        self._session = session
        self._gate: Gate = session.gate
        self._outcomes: Outcomes = session.outcomes
        self._intake = intake
        self._is_saved = is_saved

    def save_before(self, error: Exception) -> None:
        """Asks for a save of the last boundary: it is as good as ever, whatever has happened after it."""
        if not self._is_saved or self._gate.is_at_beginning:
            return
        if self._gate.updating and not self._gate.take_mark():
            return  # `tell_of_loss` says so, when the saves that are under way have ended
        boundary, name = self._gate.boundary, type(error).__name__
        if boundary is not None and not self._outcomes.has_saved(boundary):
            self._session.log.info(f"{name}: saving step {boundary.step} before it ends the training")
            self._intake.accept(Request("exception", why=name))

    def tell_of_loss(self, error: Exception) -> None:
        """Says that an error met the state of no boundary, and which checkpoint a resume would go on from."""
        if not self._is_saved or self._gate.boundary is None or not self._gate.updating:
            return
        last, chosen = self._session.run.status.now.last_checkpoint, self._session.origin.chosen
        path = last["path"] if last else str(chosen.path) if chosen is not None else ""
        there = f"the last checkpoint is {path}" if path else "there is no checkpoint yet"
        name = type(error).__name__
        self._session.log.warning(
            f"{name} in the middle of an update: the state is that of no boundary, and is not saved; {there}"
        )
