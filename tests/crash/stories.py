"""What the program does to a disk, in short pieces: each is recorded, and then its power is cut everywhere."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

import pytest

from crash.disk import Disk, lay_out
from crash.promises import LAYOUT, RUN_FOLDER, good_checkpoints
from crash.recorder import Recorder
from helpers.support import RUN
from holdfast.capture.boundary import Boundary
from holdfast.capture.snapshot import Snapshot
from holdfast.engine import save as saving
from holdfast.layouts.layout import BY_NAME
from holdfast.log import RunLog
from holdfast.mirror.queue import Queue, Queued
from holdfast.resume.choose import select_checkpoint
from holdfast.run.directory import RunDirectory
from holdfast.run.request import Request
from holdfast.run.run import Run
from holdfast.store import catalog, files, pins, retention
from holdfast.store.blocks import BlockFile
from holdfast.store.folder import Folder, Where
from holdfast.store.retention import RetentionPolicy, StillWantedError

KEEP_ALL = RetentionPolicy(None, None)
FILES = {"training.json": b"{}", "random.json": b"{}", "folder/part": b"piece"}

Story = Callable[[Recorder], None]

QUIET = RunLog(lambda line: None)


def begin(top: Path, *steps: int) -> None:
    """Makes a run that has a checkpoint of each of these steps, and whose process has died."""
    (top / RUN_FOLDER).mkdir()
    run = Run.open(top / RUN_FOLDER, continues=RUN) if steps else None
    for step in steps:
        assert run is not None
        assert saving.save(run, snapshot(step), [Request("schedule")], KEEP_ALL).saved


def promise_what_is_there(recorder: Recorder) -> None:
    """What lies in a run directory before a story begins was acknowledged."""
    for digest, manifest in good_checkpoints(recorder.top / RUN_FOLDER).items():
        recorder.tell("saved", digest)
        recorder.tell("newest", str(manifest.sequence))


def snapshot(step: int) -> Snapshot:
    """Three small files, written as tensors are: synced by nobody but the commit."""

    def write(staging: Folder) -> dict[str, str]:
        folder = staging.through
        (folder / "folder").mkdir()
        for name, content in FILES.items():
            with BlockFile(folder / name) as file:
                file.write(memoryview(content + b" of %d" % step), 0)
        return {}

    return Snapshot(boundary=Boundary(step, "update"), write=write, layout=LAYOUT, estimated_bytes=100)


def resume(recorder: Recorder) -> Run:
    """A start that goes on from the newest good checkpoint."""
    select_checkpoint(recorder.top / RUN_FOLDER, "auto", BY_NAME[LAYOUT], QUIET)
    run = Run.open(recorder.top / RUN_FOLDER, continues=RUN)
    recorder.tell("started", str(run.lease.holder.generation))
    return run


def saves(step: int, keep: RetentionPolicy = KEEP_ALL) -> Story:
    """A start, a request, its save and its answer, what retention deletes afterwards, and the end."""

    def story(recorder: Recorder) -> None:
        run = resume(recorder)
        request = Request("command")
        run.inbox.submit(request)
        recorder.tell("asked", request.id)
        if keep != KEEP_ALL:
            for digest in good_checkpoints(run.root):
                recorder.tell("doomed", digest)
        answer = saving.save(run, snapshot(step), [request], keep)
        assert answer.saved, answer.error
        there = good_checkpoints(run.root)
        assert keep == KEEP_ALL or there.keys() == {answer.digest}, "nothing was deleted"
        recorder.tell("newest", str(there[answer.digest].sequence))
        run.close("finished", 0)
        recorder.tell("ended", str(run.lease.holder.generation))

    return story


def opens(recorder: Recorder) -> None:
    """A start alone: what a dead process left is swept."""
    root = recorder.top / RUN_FOLDER
    there = catalog.entries(root) if root.is_dir() else []
    chosen = select_checkpoint(root, "auto", BY_NAME[LAYOUT], QUIET)
    assert (chosen.path if chosen else None) == (there[0].path if there else None), "a start takes not the newest"
    resume(recorder)


def prunes(recorder: Recorder) -> None:
    """Somebody else deletes all but the newest checkpoint, as `holdfast prune` does, whatever the run is doing."""
    root = recorder.top / RUN_FOLDER
    for path in retention.surplus(root, root / ".holdfast", catalog.entries(root), RUN, RetentionPolicy(0, 0, last=1)):
        manifest = catalog.read(path).manifest
        assert manifest is not None
        recorder.tell("doomed", manifest.sha256)
        retention.delete(root, root / ".holdfast", path)


def pins_the_oldest(recorder: Recorder) -> None:
    """A pin, which is told to somebody."""
    root = recorder.top / RUN_FOLDER
    manifest = catalog.entries(root)[-1].manifest
    assert manifest is not None
    pins.pin(root / ".holdfast", manifest.attempt)
    recorder.tell("pinned", manifest.attempt)


def queues_the_oldest(recorder: Recorder) -> None:
    """A checkpoint that is put into the queue for a mirror, and then what retention deletes, which is not that one."""
    root = recorder.top / RUN_FOLDER
    manifest = catalog.entries(root)[-1].manifest
    assert manifest is not None
    queued = Queued(manifest.attempt, manifest.step, manifest.sequence, manifest.size, "requested")
    Queue(RunDirectory.open(root)).put(queued)
    recorder.tell("queued", manifest.attempt)
    prunes(recorder)


def deletes_what_is_being_pinned(recorder: Recorder) -> None:
    """A deletion, right before whose rename somebody pins the checkpoint, and sees it there."""
    root = recorder.top / RUN_FOLDER
    rename = files.rename_new

    def rename_after_a_pin(source: Where, target: Where) -> None:
        if not pins.pinned(root / ".holdfast"):
            pins_the_oldest(recorder)
        rename(source, target)

    with pytest.MonkeyPatch.context() as patch, suppress(StillWantedError):
        patch.setattr(files, "rename_new", rename_after_a_pin)
        retention.delete(root, root / ".holdfast", catalog.entries(root)[-1].path)


def asks(recorder: Recorder) -> None:
    """A start, and a request that nobody has served yet."""
    request = Request("command")
    resume(recorder).inbox.submit(request)
    recorder.tell("asked", request.id)


STORIES: dict[str, tuple[tuple[int, ...], Story]] = {
    "the first request of a run": ((), asks),
    "a save": ((7,), saves(8)),
    "a save of a step that is there": ((7,), saves(7)),
    "a save and what retention deletes": ((6, 7), saves(8, RetentionPolicy(0, 1))),
    "a prune": ((5, 6, 7), prunes),
    "a pin": ((6, 7), pins_the_oldest),
    "what waits for a mirror": ((5, 6, 7), queues_the_oldest),
    "a pin while its checkpoint is being deleted": ((6, 7), deletes_what_is_being_pinned),
}
"""By name: which checkpoints there are before, and what happens."""


def told(top: Path, name: str, meanwhile: AbstractContextManager[object] | None = None) -> Disk:
    """Lets a story happen in a new directory, and gives the disk, on which all that came before is durable.

    Args:
        top: The directory.
        name: Which story.
        meanwhile: What holds while the story happens, and not before it.
    """
    steps, story = STORIES[name]
    top.mkdir()
    with Recorder(top).recording():
        begin(top, *steps)
    recorder = Recorder(top)
    promise_what_is_there(recorder)
    with meanwhile or nullcontext(), recorder.recording():
        story(recorder)
    return recorder.disk


def told_on(top: Path, disk: Disk, count: int, second: Story) -> Disk:
    """Lets SIGKILL end a story after so many events, and another process go on where it was: nothing is lost yet."""
    left = disk.up_to(count)
    lay_out(left.visible(), top)
    recorder = Recorder(top, left)
    with recorder.recording():
        second(recorder)
    return recorder.disk
