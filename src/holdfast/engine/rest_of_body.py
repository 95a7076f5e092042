"""The rest of an epoch's body, which may change what could not be copied: a save of it may have to wait for its end."""

from collections.abc import Sequence

from holdfast.capture.boundary import Boundary
from holdfast.capture.gate import Gate
from holdfast.capture.replicas import in_short
from holdfast.capture.snapshot import Snapshots
from holdfast.engine.session import Session
from holdfast.errors import TornError


def stale_before(session: Session, snapshots: Snapshots, before: int) -> int:
    """Returns the number of a boundary that is of no use any more: the last one, if a body has changed what it held.

    Args:
        session: The training.
        snapshots: Takes its snapshots.
        before: The number of one that is known to be.
    """
    gate: Gate = session.gate
    here = gate.boundary
    if here is None or here.number <= before or not gate.is_past or gate.is_blocked:
        return before
    if not (moved := snapshots.moved()):
        return before
    tell(session, here, moved)
    return here.number


def tell(session: Session, boundary: Boundary, moved: Sequence[str]) -> None:
    """Tells that a save waits for the end of the body."""
    why = f"{in_short(moved)} changed in the epoch's body after step {boundary.step}"
    line, shown = f"{why}: a save waits for the end of the body", session.run.status.now.body
    if line not in shown:
        session.run.status.update(body=f"{shown.partition(': ')[0]}: {line}")
        session.log.info(line)


def begin_grace(session: Session) -> None:
    """Begins the grace of a stop that was asked for, and waits for the end of a body: that may be longer."""
    if session.gate.is_past:
        session.stop.noticed.set()
        session.stop.begin_grace()


def lost(torn: TornError, boundary: Boundary) -> str:
    """Returns why training that waits for a save in the rest of a body cannot have it."""
    return (
        f"{in_short(torn.names)} changed in the epoch's body after step {boundary.step}, and was not copied before:"
        " ask for the save before that, or at the end of the body, or give more staging_memory"
    )
