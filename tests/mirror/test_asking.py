"""`holdfast.save(mirrored=True)`: a save that is to be in the mirror, from Python in another process."""

from pathlib import Path

import pytest

import holdfast
from helpers.serving import training
from helpers.support import RUN, commit_checkpoint
from holdfast.errors import ConfigError, MirrorError, WaitTimeoutError
from holdfast.mirror.asking import not_mirrored, wait_for_mirror
from holdfast.mirror.queue import Answer, Queue, Queued
from holdfast.run.request import Answer as SaveAnswer
from holdfast.run.run import Run
from holdfast.store import catalog
from holdfast.store.manifest import Manifest


def test_it_has_no_meaning_without_wait_and_for_a_run_without_a_mirror(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mirrored: has no meaning without wait=True"):
        holdfast.save(tmp_path, mirrored=True)
    with training(tmp_path), pytest.raises(ConfigError, match=r"mirrored: the run in .* has no mirror"):
        holdfast.save(tmp_path, wait=True, mirrored=True)


def saved(root: Path) -> tuple[Manifest, SaveAnswer]:
    path = commit_checkpoint(root, 4)
    manifest = catalog.read(path).manifest
    assert manifest is not None
    return manifest, SaveAnswer(True, str(path), manifest.step, digest=manifest.sha256)


def test_what_is_waited_for_is_the_answer_of_the_mirror(tmp_path: Path) -> None:
    run = Run.open(tmp_path, continues=RUN)
    manifest, answer = saved(tmp_path)
    queue = Queue(run.directory)
    with pytest.raises(MirrorError, match="on this disk only: it does not wait for the mirror"):
        wait_for_mirror(tmp_path, answer, None)
    queue.put(Queued(manifest.attempt, 4, manifest.sequence, manifest.size, "requested"))
    with pytest.raises(WaitTimeoutError, match="durable on this disk"):
        wait_for_mirror(tmp_path, answer, 0.0)
    queue.answer(Answer(manifest.attempt, 4, manifest.sequence, True, 1))
    assert wait_for_mirror(tmp_path, answer, 0.0).mirrored
    queue.put(Queued(manifest.attempt, 4, manifest.sequence, manifest.size, "requested"))
    run.close("failed", 1)
    with pytest.raises(MirrorError, match="the training ended before") as refusal:
        wait_for_mirror(tmp_path, answer, None)
    assert refusal.value.hint == not_mirrored(tmp_path, 4, "").hint == f"to send it: holdfast push {tmp_path}"
