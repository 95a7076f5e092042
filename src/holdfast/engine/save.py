"""One save, from the requests to their answers. To be read from top to bottom."""

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from holdfast.capture.boundary import Boundary
from holdfast.capture.snapshot import Snapshot
from holdfast.engine import mirroring
from holdfast.errors import LateError, NoSpaceError, SaveError, TornError
from holdfast.mirror.supervisor import Supervisor
from holdfast.run.inbox import Inbox
from holdfast.run.journal import Journal
from holdfast.run.request import Answer, Request
from holdfast.run.run import Run
from holdfast.run.status import StatusFile
from holdfast.store import catalog, commit, digest, files, names, references, retention, terms
from holdfast.store.manifest import MOST_NAMED, MOST_REASONS, File, Manifest

# What is left free beside the checkpoint: the journal, answers and the next manifest need room too.
_RESERVE_BYTES = 16 << 20
_RESERVE_INODES = 64
# A disk with less than this after an error is why the error came, whatever the library that met it says (seen:
# torch.save reports a full disk as "unexpected pos").
_FULL_BELOW_BYTES = 1 << 20


def save(
    run: Run,
    snapshot: Snapshot,
    requests: Sequence[Request],
    policy: retention.RetentionPolicy,
    patient: Sequence[Request] = (),
    mirror: Supervisor | None = None,
) -> Answer:
    """Saves a snapshot and answers everybody who asked for it. Training outlives a save that fails.

    Args:
        run: The open run.
        snapshot: The snapshot of a boundary.
        requests: Those that it is saved for; at least one.
        policy: The rules by which checkpoints stay.
        patient: Those of the requests that stay open when it fails, because it will be tried again for them.
        mirror: The mirror that it is sent to.

    Raises:
        LateError: A rank did not come to the boundary in time. Nothing is answered: a mark is to be saved.
        TornError: The state was written to while it was read. Nothing is answered: the save is to be tried again.
    """
    begun = time.monotonic()
    step = snapshot.boundary.step
    status: StatusFile = run.status
    phase = status.now.phase
    status.update(phase="saving")
    attempt = None
    try:
        sequence, term = _place_in_order(run, step)
        needed = int(snapshot.estimated_bytes * 1.1) + _RESERVE_BYTES
        if mirror is not None and files.free_space(run.folder)[0] < needed:
            _retain(run, policy, snapshot.protected, mirror, needed)
        _preflight(run, needed)
        attempt = commit.Attempt(run.folder, run.identity, step)
        known = snapshot.write(attempt.folder)
        sealed = attempt.seal(digest.of_descriptor, known)
        manifest = _manifest(run, snapshot, requests, (sequence, term), attempt.token, sealed)
        if problem := references.problem(attempt.folder, manifest):
            raise SaveError(problem)
        published = attempt.publish(manifest, run.require_lease)
        run.require_in_place()
    except (TornError, LateError):
        if attempt is not None:
            attempt.discard()
        status.update(phase=phase)
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it ends this attempt and not the training
        cause = _cause(run, error)  # before the disk has its room back
        if attempt is not None:
            cause = attempt.folder.in_words(cause)
            attempt.discard()
        answer = Answer(saved=False, step=step, seconds=_since(begun), error=cause)
    else:
        answer = Answer(
            saved=True,
            path=str(published.path.absolute()),
            step=step,
            bytes=manifest.size,
            seconds=_since(begun),
            digest=manifest.sha256,
            durable=published.durable,
            not_finite=manifest.not_finite,
            finite=_newest_finite(run) if manifest.not_finite else "",
            not_carried=tuple(snapshot.not_carried()),
            labels=tuple(dict.fromkeys(request.label for request in requests if request.label)),
            slots=tuple(sorted({request.slot for request in requests if request.slot})),
            attempt=attempt.token,
        )
        if mirror is not None:
            mirroring.put(run, mirror, manifest, snapshot.protected)  # whoever has the answer finds it there
    status.update(phase=phase)
    report(run, answer, requests, patient)
    if answer.saved:
        _retain(run, policy, snapshot.protected, mirror)
    return answer


def answer_all(run: Run, answer: Answer, requests: Iterable[Request]) -> None:
    """Gives every request the same answer. One that cannot be written leaves its request for the next start."""
    inbox: Inbox = run.inbox
    with suppress(OSError):
        run.status.write()  # who has the answer finds nothing pending
    for request in requests:
        try:
            inbox.answer(request, answer)
        except OSError as error:
            run.journal.write("unanswered", request=request.id, problem=str(error))


def _place_in_order(run: Run, step: int) -> tuple[int, int]:
    """Returns the number of the commit, and the term that it counts for, before anything is written."""
    if step >= names.NUMBERS_END:
        raise SaveError(f"a checkpoint cannot be of step {step:,}: steps are below 10^15")
    present, claimed, identity = run.catalog.entries(), run.catalog.claimed, run.identity
    term = run.term or catalog.term_to_write(present, claimed, identity)
    return catalog.next_sequence(present, identity, terms.first_number(claimed, identity)), term


def _preflight(run: Run, needed: int) -> None:
    run.require_in_place()
    root, (space, inodes) = run.root, files.free_space(run.folder)
    if space < needed:
        raise NoSpaceError(f"the checkpoint needs {needed:,} bytes and {root} has {space:,} free")
    if 0 <= inodes < _RESERVE_INODES:
        raise NoSpaceError(f"{root} has {inodes} inodes free, and a checkpoint needs {_RESERVE_INODES}")


def _manifest(
    run: Run,
    snapshot: Snapshot,
    requests: Sequence[Request],
    place: tuple[int, int],
    attempt: str,
    sealed: tuple[File, ...],
) -> Manifest:
    saved: Boundary = snapshot.boundary
    sequence, term = place
    by_term = (terms.WORD,) if terms.is_required(run.catalog.claimed, run.identity, term) else ()
    named = _most_telling(requests)
    boundary = saved.record()
    if any(others := snapshot.others()):
        boundary["ranks"] = list(others)
    return Manifest(
        layout=snapshot.layout,
        run=run.identity,
        attempt=attempt,
        parent=run.parent,
        sequence=sequence,
        step=saved.step,
        world_size=snapshot.world_size,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        reasons=tuple(_reason(request) for request in named),
        boundary=boundary,
        versions=dict(snapshot.versions),
        files=sealed,
        tensors=snapshot.tensors(),
        not_finite=tuple(sorted(set(snapshot.not_finite()))[:MOST_NAMED]),
        requires=tuple(sorted({*snapshot.requires(), *by_term})),
        settings=snapshot.settings,
        more_reasons=len(requests) - len(named),
        term=term,
    )


def _most_telling(requests: Sequence[Request]) -> Sequence[Request]:
    """Returns those requests that manifest and journal name: all, or of too many those that retention goes by."""
    if len(requests) <= MOST_REASONS:
        return requests

    def rank(request: Request) -> tuple[bool, bool]:
        return not (request.label or request.slot), not retention.wants_checkpoint(_reason(request))

    return sorted(requests, key=rank)[:MOST_REASONS]


def _reason(request: Request) -> dict[str, object]:
    """Returns the manifest's entry for a request. Retention counts what a stop leaves otherwise than what was asked."""
    return {**request.reason(), "stop": True} if request.stop else request.reason()


def _newest_finite(run: Run) -> str:
    """Returns the name of the newest checkpoint that a training which went wrong can go back to; empty for none."""
    try:
        entry = retention.newest_finite(run.folder, run.catalog.entries(), run.identity)
    except OSError:
        return ""  # retention meets the same error, and writes it down
    return "" if entry is None else entry.path.name


def report(run: Run, answer: Answer, requests: Sequence[Request], patient: Sequence[Request] = ()) -> None:
    """Shows what became of a save in status and journal, and answers who asked; the patient hear of no failure."""
    status: StatusFile = run.status
    journal: Journal = run.journal
    named = _most_telling(requests)
    asked = {"ids": [request.id for request in named], "doors": sorted({request.door for request in requests})}
    if len(named) < len(requests):
        asked["more"] = len(requests) - len(named)
    if answer.saved:
        last = {"path": answer.path, "step": answer.step, "bytes": answer.bytes, "seconds": answer.seconds}
        if answer.not_finite:
            last["not_finite"] = list(answer.not_finite)
        status.update(last_checkpoint={**last, "at": answer.answered_at}, failing_since=None, next_try_at=None)
        journal.write("saved", **last, digest=answer.digest, durable=answer.durable, **asked)
    else:
        failed, since = status.now.failed_saves + 1, status.now.failing_since or answer.answered_at
        status.update(failed_saves=failed, last_failure=answer.error, failing_since=since, next_try_at=None)
        journal.write("failed", step=answer.step, error=answer.error, failed_saves=failed, **asked)
    answer_all(run, answer, requests if answer.saved else [request for request in requests if request not in patient])


def _retain(
    run: Run,
    policy: retention.RetentionPolicy,
    protected: Iterable[Path],
    mirror: Supervisor | None,
    needed: int = 0,
) -> None:
    """Deletes what no rule keeps; on a full disk also what waits for the mirror alone: one, or as much as is needed."""
    gives_way = mirror is not None
    while True:
        try:
            verdicts = _judge(run, policy, protected)
            if gives_way := mirror is not None and gives_way and mirroring.make_room(run, verdicts, mirror, needed):
                verdicts = _judge(run, policy, protected)
        except OSError as error:
            run.journal.write("not deleted", path=str(run.root), problem=str(error))
            return
        for verdict in reversed(verdicts):
            if verdict.kept is None:
                _delete(run, verdict.entry.path)
        if not (needed and gives_way):
            return


def _judge(run: Run, policy: retention.RetentionPolicy, protected: Iterable[Path]) -> list[retention.Verdict]:
    return retention.judge(run.folder, run.directory.control, run.catalog.entries(), run.identity, policy, protected)


def _delete(run: Run, path: Path) -> None:
    try:
        retention.delete(run.folder, run.directory.control, path)
    except OSError as error:
        run.journal.write("not deleted", path=str(path), problem=str(error))
    else:
        run.journal.write("deleted", path=str(path))


def _cause(run: Run, error: Exception) -> str:
    text = str(error) or type(error).__name__
    try:
        full = not isinstance(error, NoSpaceError) and files.free_space(run.folder)[0] < _FULL_BELOW_BYTES
    except OSError:
        return text
    return f"the disk of {run.root} is full ({text})" if full else text


def _since(begun: float) -> float:
    return round(time.monotonic() - begun, 3)
