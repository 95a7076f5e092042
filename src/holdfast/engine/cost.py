"""The cost of a save to the training: the time that it was blocked, and the staging memory that would spare it that."""

from typing import Any

from holdfast.capture.arena_making import Making
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


def account_for(
    session: Session, snapshots: Snapshots, budget: StagingBudget, boundary: Boundary, waited: float
) -> str:
    """Says how long training was blocked for a save, and returns what the line of the save says of it.

    Args:
        session: The training.
        snapshots: Takes its snapshots; the last one is that of the save.
        budget: The staging memory.
        boundary: The boundary that was saved.
        waited: The seconds that training was blocked.
    """
    journal: Journal = session.run.journal
    replicas: Replicas = snapshots.replicas
    streamed = snapshots.streamed
    if waited:
        journal.write("held", step=boundary.step, seconds=round(waited, 4), streamed=streamed)
    # Many small files take all blocks for a moment, too: that is not what training has waited for.
    is_larger = snapshots.state_bytes > budget.bytes or budget.making is not None
    if streamed and is_larger and waited > _WORTH_SAYING_SECONDS:
        session.log.warning(f"training waited {waited:.2f} s for this save: {_why_streamed(budget.making)}")
    return replicas.report(waited)


def learn(session: Session, snapshots: Snapshots, budget: StagingBudget, answer: Answer) -> None:
    """Lets the staging memory grow to what a save has shown, and shows it.

    Args:
        session: The training.
        snapshots: Takes its snapshots; the last one is that of the save.
        budget: The staging memory.
        answer: The answer of the save.
    """
    grow(session, budget, answer.bytes, answer.seconds)
    session.run.status.update(
        writes=snapshots.writes,
        copied_buffers=dict(snapshots.copied_buffers),
        held_seconds=round(session.gate.blocked_seconds, 3),
    )


def grow(session: Session, budget: StagingBudget, size: int, seconds: float) -> None:
    """Lets the staging memory of a rank grow to what its share of a save has shown.

    Args:
        session: The training.
        budget: The staging memory.
        size: The bytes that were written.
        seconds: The time that it took.
    """
    gate: Gate = session.gate
    try:
        budget.grow(size, seconds, list(gate.undisturbed_seconds))
    except OSError as error:
        session.log.warning(f"the staging memory stays at {_gigabytes(budget.bytes)}: {error}")
    session.run.status.update(staging_bytes=budget.bytes)
    tell_of_staging(session, budget)


def tell_of_staging(session: Session, budget: StagingBudget) -> None:
    """Tells, once, that the staging memory of a training on a GPU is there, and what it lacks.

    Args:
        session: The training.
        budget: The staging memory.
    """
    making = budget.news()
    if making is None:
        return
    status: StatusFile = session.run.status
    journal: Journal = session.run.journal
    status.update(staging_bytes=making.bytes, staging=state_of(making))
    more: dict[str, Any] = {"reason": making.reason} if making.reason else {}
    if rank := session.log.rank:
        more["rank"] = rank
    journal.write("staging", bytes=making.bytes, seconds=round(making.seconds, 3), locked=making.is_locked, **more)
    if making.reason:
        session.log.warning(f"the staging memory is {state_of(making)}: training may wait longer for saves")


def state_of(making: Making | None) -> str:
    """Returns the state of the staging memory in a few words; none where there is no GPU."""
    if making is None:
        return ""
    if not making.is_over:
        return "being made"
    if making.bytes < making.wanted_bytes:
        return f"{_gigabytes(making.bytes)} of {_gigabytes(making.wanted_bytes)} ({making.reason})"
    return "page-locked" if making.is_locked else f"not page-locked ({making.reason})"


def _why_streamed(making: Making | None) -> str:
    if making is None:
        return (
            "its next update came before all was read, and the staging memory did not hold the rest; it grows up to"
            " staging_memory"
        )
    there = f"{_gigabytes(making.bytes)} of {_gigabytes(making.wanted_bytes)}"
    if making.is_over and making.reason:
        return f"the staging memory is {there} ({making.reason})"
    return f"its staging memory was still being made, and is {there} by now; later saves find all of it"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
