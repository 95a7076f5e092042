"""Errors that end a training: they are preceded by a save of the last boundary, or a line says what is lost."""

from holdfast.capture.gate import Gate
from holdfast.capture.snapshot import Snapshots
from holdfast.doors.request_queue import RequestIntake
from holdfast.engine.session import Outcomes, Session
from holdfast.errors import DeviceLostError
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

    def save_before(self, error: Exception, snapshots: Snapshots | None) -> None:
        """Asks for a save of the last boundary: it is as good as ever, whatever has happened after it.

        Where the error is that the device is lost there is none: nothing on it is touched again.

        Args:
            error: The error.
            snapshots: The readers of the state; None where training had not begun.
        """
        if snapshots is not None and _is_loss(error, snapshots):
            snapshots.lost = snapshots.lost or f"the device is lost: {error}"
            return  # `tell_of_loss` says so
        if not self._is_saved or self._gate.is_at_beginning:
            return
        if self._gate.updating and not self._gate.take_mark():
            return  # `tell_of_loss` says so, when the saves that are under way have ended
        boundary, name = self._gate.boundary, type(error).__name__
        if boundary is not None and not self._outcomes.has_saved(boundary):
            self._session.log.info(f"{name}: saving step {boundary.step} before it ends the training")
            self._intake.accept(Request("exception", why=name))

    def tell_of_loss(self, error: Exception, snapshots: Snapshots | None) -> None:
        """Says that there was no save before an error, and which checkpoint a resume would go on from.

        Args:
            error: The error: it has met the state of no boundary, or the device is lost.
            snapshots: The readers of the state; None where training had not begun.
        """
        if not self._is_saved or self._gate.boundary is None:
            return
        is_lost = snapshots is not None and bool(snapshots.lost)
        if not is_lost and not self._gate.updating:
            return
        last, chosen = self._session.run.status.now.last_checkpoint, self._session.origin.chosen
        path = last["path"] if last else str(chosen.path) if chosen is not None else ""
        there = f"the last checkpoint is {path}" if path else "there is no checkpoint yet"
        name = type(error).__name__
        self._session.log.warning(
            f"{name}: the device is lost, and with it what came since, which is not saved; {there}"
            if is_lost
            else f"{name} in the middle of an update: the state is that of no boundary, and is not saved; {there}"
        )


def _is_loss(error: BaseException, snapshots: Snapshots) -> bool:
    """Tells whether an error says that the device is lost, or came of one that says so."""
    device, seen = snapshots.device, set[int]()
    cause: BaseException | None = error
    while device is not None and cause is not None and id(cause) not in seen:
        if isinstance(cause, DeviceLostError) or device.is_loss(cause):
            return True
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return False
