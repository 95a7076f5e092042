"""A mirror in a training's saves: what is queued, what gives way where the disk fills up, and what is said of it."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from holdfast.errors import HoldfastError
from holdfast.log import RunLog
from holdfast.mirror import turns
from holdfast.mirror.destination import Destination
from holdfast.mirror.queue import Kind, Queue, Queued
from holdfast.mirror.supervisor import Supervisor
from holdfast.resume.choose import ResumePoint
from holdfast.run.needed import needed
from holdfast.run.request import Request
from holdfast.run.run import Run
from holdfast.settings import SaveSettings
from holdfast.store import files, retention
from holdfast.store.manifest import Manifest

# With less of a disk free what waits for the mirror gives way.
_LEAST_FREE = 0.1
_MOST_NAMED = 5


def mirror_of(run: Run, settings: SaveSettings, policy: retention.RetentionPolicy, log: RunLog) -> Supervisor | None:
    """Returns the mirror of a start; None in a rank that does not publish, and where the start has claimed none.

    Args:
        run: The open run.
        settings: The settings of its saves.
        policy: The rules by which its checkpoints stay on this disk.
        log: Takes lines for the user.
    """
    if run.rank or not run.term or settings.mirror is None:
        return None
    destination = Destination(
        settings.mirror,
        run.term,
        settings.mirror_keep,
        policy.on_demand,
        policy.every,
        settings.mirror_endpoint,
        settings.mirror_region,
    )
    return Supervisor(run, destination, log)


def begin(run: Run, mirror: Supervisor | None, resumed_from: ResumePoint | None) -> None:
    """Begins to send: first the checkpoint that was resumed from, if it is not there. Without a mirror nothing waits.

    Args:
        run: The open run.
        mirror: Its mirror.
        resumed_from: That checkpoint, if there is one.
    """
    if mirror is None:
        with suppress(OSError):
            if not run.rank:
                Queue(run.directory).give_up("the run was started without this mirror")
        return
    mirror.start()
    manifest = None if resumed_from is None else resumed_from.manifest
    if resumed_from is not None and manifest is not None and resumed_from.continues(run.root) == run.identity:
        queued = _as_it_waits(run, mirror, manifest)
        _put(run, mirror, replace(queued, kind="scheduled" if queued.kind == "scheduled" else "requested"))


def put(run: Run, mirror: Supervisor, manifest: Manifest, protected: Iterable[Path]) -> None:
    """Queues a checkpoint that was just committed, before anything is deleted, and what it needs, if that is not there.

    Args:
        run: The open run.
        mirror: Its mirror.
        manifest: The checkpoint's manifest.
        protected: Checkpoints that something still needs: the one this run resumed from, the best one.
    """
    _put(run, mirror, _queued(run, manifest, protected))


def ask_for(run: Run, mirror: Supervisor, manifest: Manifest, requests: Iterable[Request]) -> None:
    """Has a checkpoint sent that is there already, and that somebody has asked for now: it is not skipped any more."""
    answer = mirror.queue.answer_to(manifest.attempt)
    if answer is not None and answer.mirrored:
        return
    kind: Kind = "stop" if any(request.stop for request in requests) else "requested"
    mirror.put(replace(_as_it_waits(run, mirror, manifest), kind=kind))


def make_room(run: Run, verdicts: Sequence[retention.Verdict], mirror: Supervisor, needed: int = 0) -> bool:
    """Has the oldest checkpoint that only the mirror keeps on a full disk give way; False where none does.

    Args:
        run: The open run.
        verdicts: The decisions on its checkpoints, newest first.
        mirror: Its mirror.
        needed: The bytes that the next checkpoint takes.
    """
    if files.free_share(run.folder) >= _LEAST_FREE and files.free_space(run.folder)[0] >= needed:
        return False
    waiting = mirror.waiting
    for verdict in reversed(verdicts):
        manifest = verdict.entry.manifest
        if manifest is None or verdict.kept != retention.WAITS:
            continue
        for queued in waiting[:-1]:
            if queued.attempt == manifest.attempt:
                mirror.queue.drop(queued, "the disk was nearly full, and it gave way")
                return True
    return False


def last_line(run: Run, mirror: Supervisor) -> str:
    """Returns the last line of a training: up to where the mirror has it, and what is on this disk only."""
    newest = None
    with suppress(OSError):
        ours = (each.manifest for each in run.catalog.entries() if each.manifest is not None)
        newest = next((manifest for manifest in ours if manifest.run == run.identity), None)
    there = mirror.mirrored
    upto = f"mirrored up to step {there['step']}" if there else "nothing is mirrored"
    waiting = mirror.waiting
    with suppress(OSError):  # what was sent since the last look waits no more
        waiting = mirror.queue.waiting()
    skipped = turns.overtaken(waiting)
    left = {each.attempt: each.step for each in waiting if each not in skipped}
    if newest is not None:
        left[newest.attempt] = newest.step
    if there:
        left.pop(there["attempt"], None)
    if not left:
        return f"{upto} ({mirror.destination.url})"
    steps = [str(step) for step in left.values()]
    if len(steps) > _MOST_NAMED:
        steps = [*steps[: _MOST_NAMED - 1], "...", steps[-1]]
    are, them = ("is", "it") if len(steps) == 1 else ("are", "them")
    return f"{upto}; {', '.join(steps)} {are} on this disk only: holdfast push {run.root} sends {them}"


def _put(run: Run, mirror: Supervisor, queued: Queued) -> None:
    """Queues a checkpoint, and what it needs: that may be of a time without a mirror."""
    mirror.put(queued)
    attempts = frozenset(queued.protected or ())
    with suppress(OSError):  # the checkpoint is committed, whatever the disk does now
        for entry in run.catalog.entries() if attempts else ():
            manifest = entry.manifest
            if manifest is not None and manifest.attempt in attempts and manifest.run == run.identity:
                mirror.need(replace(_queued(run, manifest, None), kind="requested", protected=queued.protected))


def _as_it_waits(run: Run, mirror: Supervisor, manifest: Manifest) -> Queued:
    """Returns the words of a checkpoint in the queue; where it is not in it, those that it would have."""
    if (queued := next((each for each in mirror.waiting if each.attempt == manifest.attempt), None)) is not None:
        return queued
    try:
        return _queued(run, manifest, needed(run.directory, run.catalog.entries()))
    except (OSError, HoldfastError):
        return _queued(run, manifest, None)


def _queued(run: Run, manifest: Manifest, paths: Iterable[Path] | None) -> Queued:
    """Returns the words of a checkpoint in the queue.

    Args:
        run: The open run.
        manifest: The checkpoint's manifest.
        paths: Those that are needed beside it; None where nobody knows.
    """
    attempts: tuple[str, ...] | None = None
    with suppress(OSError):  # the checkpoint is committed, whatever the disk does now
        if paths is not None:
            wanted = {path.resolve() for path in paths}
            manifests = [entry.manifest for entry in run.catalog.entries() if entry.path.resolve() in wanted]
            attempts = tuple(each.attempt for each in manifests if each is not None)
    return Queued(manifest.attempt, manifest.step, manifest.sequence, manifest.size, _kind_of(manifest), attempts)


def _kind_of(manifest: Manifest) -> Kind:
    if any(reason.get("stop") is True or reason.get("door") == "exception" for reason in manifest.reasons):
        return "stop"
    wanted = any(reason.get("slot") or retention.wants_checkpoint(reason) for reason in manifest.reasons)
    return "requested" if wanted else "scheduled"
