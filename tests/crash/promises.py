"""What a run has promised at a moment, and whether a disk keeps it: section 5 of the design, as code."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from crash.disk import Disk, Told
from holdfast.mirror.queue import Queue
from holdfast.run import outcome
from holdfast.run.directory import RunDirectory
from holdfast.run.inbox import Inbox
from holdfast.store import catalog, names, pins
from holdfast.store.manifest import Manifest
from holdfast.store.verify import verify

RUN_FOLDER = "run"
LAYOUT = "native"


@dataclass
class Promises:
    """What somebody was told, and may rely on. Checkpoints go by the digests of their manifests."""

    saved: set[str] = field(default_factory=set)
    doomed: set[str] = field(default_factory=set)
    """What retention may have begun to delete: it may be there or not, but no half of it."""
    asked: set[str] = field(default_factory=set)
    pinned: set[str] = field(default_factory=set)
    """Attempts, as pins name them."""
    queued: set[str] = field(default_factory=set)
    """Attempts that wait for a mirror, and stay here until they are there."""
    newest: int = 0
    """The sequence of the newest commit that was promised: what a resume takes is never older."""
    started: int = 0
    """The last start that was told of, by its generation: no outcome is of one before."""
    ended: int = 0
    """The last start that has told how it ended."""

    @classmethod
    def at(cls, disk: Disk, count: int) -> "Promises":
        """What was promised when no more than so many events had happened."""
        made = cls()
        for event in disk.events[:count]:
            if isinstance(event, Told) and event.kind in ("newest", "started", "ended"):
                setattr(made, event.kind, max(getattr(made, event.kind), int(event.value)))
            elif isinstance(event, Told):
                getattr(made, event.kind).add(event.value)
        # An answer is public as soon as its file is there, whether that is durable or not.
        for path, content in disk.up_to(count).visible():
            if path.startswith(f"{RUN_FOLDER}/{names.CONTROL}/answers/") and path.endswith(".json") and content:
                answer = json.loads(content)
                made.saved |= {answer["digest"]} if answer["saved"] else set()
        return made


def good_checkpoints(root: Path) -> dict[str, Manifest]:
    """Every checkpoint of a run directory by its digest, the newest first.

    Raises:
        AssertionError: Something has a checkpoint's name and is none: the commit lets nothing of that kind be seen.
    """
    good = {}
    for entry in catalog.entries(root) if root.is_dir() else []:
        report = verify(entry.path)
        assert report.good and entry.manifest is not None, f"{entry.path.name} is no checkpoint: {report.problems}"
        good[entry.manifest.sha256] = entry.manifest
    return good


def broken(root: Path, good: dict[str, Manifest], promises: Promises) -> str:
    """Which promise a run directory breaks that has these checkpoints; empty where it keeps them all."""
    if promises.saved - promises.doomed - set(good):
        return f"a checkpoint that was acknowledged is lost; there are {[one.step for one in good.values()]}"
    newest = max((manifest.sequence for manifest in good.values()), default=0)
    if newest < promises.newest:
        return f"the newest is of commit {newest}, and {promises.newest} was acknowledged"
    if promises.pinned - {manifest.attempt for manifest in good.values()}:
        return "a pinned checkpoint is lost"
    if promises.pinned and promises.pinned - pins.pinned(root / ".holdfast"):
        return "a pin is lost"
    if promises.queued - {manifest.attempt for manifest in good.values()}:
        return "a checkpoint that waits for a mirror is lost"
    if promises.queued - {queued.attempt for queued in Queue(RunDirectory.open(root)).waiting()}:
        return "a checkpoint that waited for a mirror waits no more"
    return _lost_request(root, promises.asked, {*good, *promises.doomed})


def is_outcome_lost(root: Path, promises: Promises) -> bool:
    """Whether a run directory, before another start, has lost that the last start began, or how it ended."""
    last = outcome.last_in(root)
    if last is None or last.generation < promises.started:
        return promises.started > 0
    return last.generation == promises.ended and not last.has_ended


def _lost_request(root: Path, asked: Iterable[str], known: set[str]) -> str:
    inbox = Inbox(RunDirectory.open(root))
    pending = {request.id for request in inbox.pending()[0]}
    for request in asked:
        answer = inbox.answer_to(request)
        if answer is None and request not in pending:
            return "a request is neither answered nor there any more"
        if answer is not None and answer.saved and answer.digest not in known:
            return "an answer names a checkpoint that is not there"
    return ""
