"""The cost of a save to the training: the time that it was blocked, and the staging memory that would spare it that."""

from holdfast.capture.boundary import Boundary
from holdfast.capture.gate import Gate
from holdfast.capture.replicas import Replicas
from holdfast.capture.snapshot import Snapshots
from holdfast.capture.staging_budget import StagingBudget
from holdfast.engine.session import Session
from holdfast.run.journal import Journal
from holdfast.run.request import Answer
from holdfast.run.status import StatusFile

# Training that is blocked longer than this at its gate hears why.
_WORTH_SAYING_SECONDS = 0.1


def account_for(session: Session, snapshots: Snapshots, boundary: Boundary, waited: float) -> str:
    """Says how long training was blocked for a save, and returns what the line of the save says of it.

    Args:
        session: The training.
        snapshots: Takes its snapshots; the last one is that of the save.
        boundary: The boundary that was saved.
        waited: The seconds that training was blocked.
    """
    journal: Journal = session.run.journal
    replicas: Replicas = snapshots.replicas
    streamed = snapshots.streamed
    if waited:
        journal.write("held", step=boundary.step, seconds=round(waited, 4), streamed=streamed)
    if streamed and waited > _WORTH_SAYING_SECONDS:
        session.log.warning(
            f"training waited {waited:.2f} s for this save: its steps are shorter than the write, and the staging"
            " memory did not hold the rest; it grows up to staging_memory"
        )
    return replicas.report(waited)


def learn(session: Session, snapshots: Snapshots, budget: StagingBudget, answer: Answer) -> None:
    """Lets the staging memory grow to what a save has shown, and shows it.

    Args:
        session: The training.
        snapshots: Takes its snapshots; the last one is that of the save.
        budget: The staging memory.
        answer: The answer of the save.
    """
    gate: Gate = session.gate
    status: StatusFile = session.run.status
    budget.grow(answer.bytes, answer.seconds, list(gate.undisturbed_seconds))
    status.update(
        staging_bytes=budget.bytes,
        writes=snapshots.writes,
        copied_buffers=dict(snapshots.copied_buffers),
        held_seconds=round(gate.blocked_seconds, 3),
    )
