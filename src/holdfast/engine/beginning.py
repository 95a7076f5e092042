"""The requests that come before the first update: they are answered with the checkpoint that was resumed from."""

import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from holdfast.capture.boundary import Boundary
from holdfast.capture.snapshot import Snapshot
from holdfast.engine import mirroring, save
from holdfast.engine.peers import Peers
from holdfast.engine.session import Session
from holdfast.errors import SaveError, ended_by_signal
from holdfast.ranks.launcher import stopped_after_save
from holdfast.resume.choose import ResumePoint
from holdfast.run.request import Answer, Request
from holdfast.store import catalog, digest, files, pins, retention
from holdfast.store.folder import Folder
from holdfast.store.manifest import File, Manifest

_NOTHING_TO_SAVE = "no step was taken yet, so there is nothing to save"

_BLOCK = 4 << 20


def resumed_from(session: Session) -> Answer | None:
    """Returns the answer that names the checkpoint which was resumed from; None where none has a manifest."""
    chosen = session.origin.chosen
    manifest = None if chosen is None else chosen.manifest
    if chosen is None or manifest is None:
        return None
    return Answer(
        saved=True,
        path=str(chosen.path.absolute()),
        step=manifest.step,
        bytes=manifest.size,
        digest=manifest.sha256,
        not_finite=manifest.not_finite,
    )


def outcomes(
    session: Session, requests: Sequence[Request], policy: retention.RetentionPolicy
) -> list[tuple[Answer, list[Request]]]:
    """Answers requests, whose files go, and returns who got which answer; empty where there is no checkpoint yet.

    Args:
        session: The training, which has made no update yet.
        requests: The requests, no stop among them.
        policy: The rules by which checkpoints stay.
    """
    answer, chosen = resumed_from(session), session.origin.chosen
    if answer is None or chosen is None or chosen.manifest is None:
        return []
    asked = [request for request in requests if request.door != retention.SCHEDULE]
    labels = {reason.get("label") for reason in chosen.manifest.reasons}
    # Its slot may have been given to a newer one since.
    new = [request for request in asked if request.slot or (request.label and request.label not in labels)]
    same = [request for request in asked if request not in new]
    keep_as_asked_for(session, answer, same)
    save.answer_all(session.run, answer, same)
    answered = [(answer, same)]
    if new:
        answered.append(
            (save.save(session.run, copy_of(chosen, chosen.manifest), new, policy, (), session.mirror), new)
        )
    return answered


def stop(session: Session, peers: Peers, requests: Sequence[Request]) -> None:
    """Answers a stop, and whatever comes with it: it saves nothing, and training ends."""
    answer = resumed_from(session) or Answer(saved=False, error=_NOTHING_TO_SAVE)
    why = f"nothing is new since {answer.path}" if answer.saved else answer.error
    code = stopped_after_save() if answer.saved else ended_by_signal(signal.SIGTERM)
    save.answer_all(session.run, answer, requests)
    ids = [request.id for request in requests]
    session.outcomes.resolve(answer, ids)
    stops = [request for request in requests if request.stop]
    asked = ", ".join(sorted({request.why for request in stops}))
    # Whoever asked in this process ends its own loop.
    at_once = any(request.door != "python" for request in stops)
    peers.end_unsaved(answer, ids, code, f"{asked}: {why}; ending", at_once=at_once)


def keep_as_asked_for(session: Session, answer: Answer, requests: Sequence[Request]) -> None:
    """Notes that somebody has asked for a checkpoint that is there already: retention counts it so from now on.

    A mirror is sent it whatever comes after it.
    """
    run, asked = session.run, [request for request in requests if request.door != retention.SCHEDULE]
    path = Path(answer.path)
    manifest = catalog.read(path).manifest if asked and path.parent.resolve() == run.root.resolve() else None
    if manifest is None:
        return
    if session.mirror is not None:
        mirroring.ask_for(run, session.mirror, manifest, asked)
    if all(request.stop or request.slot for request in asked):
        return
    try:
        pins.mark_as_asked_for(run.directory.control, manifest.attempt)
    except OSError as error:
        run.journal.write("unmarked", path=str(path), problem=str(error))


def copy_of(chosen: ResumePoint, manifest: Manifest) -> Snapshot:
    """Returns a snapshot that is a copy of a checkpoint: nothing was trained since, and it goes by another label."""
    entry = {name: value for name, value in manifest.boundary.items() if name != "face"}
    return Snapshot(
        boundary=Boundary(manifest.step, str(manifest.boundary.get("face", "update")), entry),
        write=partial(_copy, chosen.folder, manifest.files),
        layout=manifest.layout,
        estimated_bytes=manifest.size,
        versions=manifest.versions,
        protected=[chosen.path],
        world_size=manifest.world_size,
        tensors=lambda: manifest.tensors,
        not_finite=lambda: manifest.not_finite,
        requires=lambda: manifest.requires,
        settings=manifest.settings,
    )


def _copy(source: Folder, listed: Sequence[File], folder: Folder) -> Mapping[str, str]:
    """Copies the files of a checkpoint; returns their digests, which must be those that it has.

    Raises:
        SaveError: The checkpoint is damaged by now.
    """
    digests, directory = {}, folder.through
    for file in listed:
        target = directory / file.path
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (
            files.open_inside(source, file.path) as read,
            os.fdopen(os.dup(read), "rb") as content,
            target.open("xb") as written,
        ):
            shutil.copyfileobj(content, written, _BLOCK)
        with files.open_regular(target) as copied:
            digests[file.path] = digest.of_descriptor(copied)
        if digests[file.path] != file.digests:
            raise SaveError(f"{source}/{file.path} is not what was written")
    return digests
