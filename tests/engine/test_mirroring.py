"""What gives way on a full disk, and what is queued."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from helpers.mirrored_run import MirroredRun
from helpers.support import commit_checkpoint, fill, tiny_disk
from holdfast.engine import mirroring
from holdfast.mirror import supervisor
from holdfast.mirror.queue import Answer
from holdfast.resume.choose import ResumePoint
from holdfast.run.request import Request
from holdfast.store import retention
from holdfast.store.folder import Folder
from holdfast.store.manifest import Manifest
from holdfast.store.retention import RetentionPolicy, Verdict


@pytest.fixture
def run(tmp_path: Path) -> Iterator[MirroredRun]:
    """A run on a small disk, whose mirror's process does not run."""
    with tiny_disk(tmp_path / "disk", options="size=4m") as disk:
        mirrored = MirroredRun(disk / "run")
        yield mirrored
        mirrored.run.close("finished", 0)
        mirrored.run.let_go()


def manifest_of(run: MirroredRun, step: int) -> Manifest:
    manifest = next(entry.manifest for entry in run.run.catalog.entries() if entry.step == step)
    assert manifest is not None
    return manifest


def verdicts(run: MirroredRun, scheduled: int = 1) -> list[Verdict]:
    policy = RetentionPolicy(scheduled, None)
    folder, control = run.run.folder, run.run.directory.control
    return retention.judge(folder, control, run.run.catalog.entries(), run.run.identity, policy)


def test_on_a_full_disk_the_oldest_that_the_mirror_alone_keeps_gives_way_and_the_newest_never(run: MirroredRun) -> None:
    oldest, middle, newest = (run.save(step) for step in (1, 2, 3))
    assert not mirroring.make_room(run.run, verdicts(run), run.supervisor), "there is room"
    assert not mirroring.make_room(run.run, verdicts(run, 3), run.supervisor, needed=1 << 40), "by a rule they all stay"
    fill(run.root.parent)
    with (run.root.parent / "filler").open("r+b") as filler:
        filler.truncate(filler.seek(0, 2) - (512 << 10))
        assert not mirroring.make_room(run.run, verdicts(run), run.supervisor), "an eighth is free"
    fill(run.root.parent)
    with (run.root.parent / "filler").open("r+b") as filler:
        filler.truncate(filler.seek(0, 2) - (64 << 10))  # what is written down needs a little
    for gone, left in ((oldest, [3, 2]), (middle, [3])):
        assert mirroring.make_room(run.run, verdicts(run), run.supervisor)
        answer = run.supervisor.queue.answer_to(gone.attempt)
        assert answer is not None and answer.why == "the disk was nearly full, and it gave way"
        for verdict in verdicts(run):
            if verdict.kept is None:
                retention.delete(run.run.folder, run.run.directory.control, verdict.entry.path)
        assert [entry.step for entry in run.run.catalog.entries()] == left
    assert not mirroring.make_room(run.run, verdicts(run), run.supervisor)
    assert run.supervisor.queue.answer_to(newest.attempt) is None
    run.supervisor.close()  # nothing is sent here
    later = run.save(4)
    run.supervisor.queue.answer(Answer(later.attempt, 4, later.sequence, mirrored=True))
    run.supervisor.look()
    assert [verdict.kept for verdict in verdicts(run)][-1] == retention.WAITS
    assert not mirroring.make_room(run.run, verdicts(run), run.supervisor), "the last that waits is not given up"


def test_what_the_next_checkpoint_needs_is_made_room_for_also_where_a_tenth_is_free(run: MirroredRun) -> None:
    for step in (1, 2):
        run.save(step)
    assert mirroring.make_room(run.run, verdicts(run), run.supervisor, needed=1 << 40)


def fails() -> NoReturn:
    raise OSError(5, "Input/output error")


def protected(run: MirroredRun) -> list[tuple[str, ...] | None]:
    return [each.protected for each in run.supervisor.queue.waiting()]


def test_a_disk_that_does_not_show_what_is_needed_is_not_taken_for_one_where_nothing_is(
    run: MirroredRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = run.save(1)
    manifest = manifest_of(run, 1)
    mirroring.put(run.run, run.supervisor, manifest, [run.root / "checkpoint-1"])
    assert protected(run) == [(best.attempt,)]
    with monkeypatch.context() as patch:
        patch.setattr(run.run.catalog, "entries", fails)
        mirroring.put(run.run, run.supervisor, manifest, [run.root / "checkpoint-1"])
        assert protected(run) == [None]
        run.supervisor.queue.give_up("to be asked for again")
        mirroring.ask_for(run.run, run.supervisor, manifest, [Request("command")])
        assert protected(run) == [None]


def test_what_is_gone_on_from_stays_what_it_was_in_the_queue(run: MirroredRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.supervisor, "start", lambda: None)
    best = run.save(1)
    run.supervisor.put(replace(run.save(2, "stop"), protected=(best.attempt,)))
    run.save(3)
    for step, waits in ((2, ("requested", (best.attempt,))), (3, ("scheduled", ()))):
        with Folder.open(run.root / f"checkpoint-{step}") as folder:
            mirroring.begin(run.run, run.supervisor, ResumePoint(folder, manifest_of(run, step)))
        queued = next(each for each in run.supervisor.queue.waiting() if each.step == step)
        assert (queued.kind, queued.protected) == waits


def test_on_a_disk_that_is_full_to_the_last_byte_it_gives_way_without_an_answer(run: MirroredRun) -> None:
    oldest, _ = run.save(1), run.save(2)
    fill(run.root.parent)
    assert mirroring.make_room(run.run, verdicts(run), run.supervisor)
    assert [verdict.kept for verdict in verdicts(run)][-1] is None
    assert run.supervisor.queue.answer_to(oldest.attempt) is None
    assert [queued.step for queued in run.supervisor.queue.waiting()] == [2]


def test_what_a_checkpoint_needs_is_sent_with_it_once_also_where_it_is_of_a_time_without_a_mirror(
    run: MirroredRun,
) -> None:
    run.supervisor.close()  # nothing is sent here
    commit_checkpoint(run.root, 1)
    best = run.run.catalog.entries()[0]
    for step in (2, 3):
        commit_checkpoint(run.root, step, term=run.term)
        manifest = run.run.catalog.entries()[0].manifest
        assert manifest is not None
        mirroring.put(run.run, run.supervisor, manifest, [best.path])
        if step == 2:
            first = run.supervisor.queue.waiting()[0]
            assert best.manifest is not None and first.attempt == best.manifest.attempt
            assert (first.kind, first.protected) == ("requested", (first.attempt,))
            run.supervisor.queue.refuse(first, "it is damaged")
            run.supervisor.look()
    assert [queued.step for queued in run.supervisor.queue.waiting()] == [2, 3], "not again and again"


def test_of_many_that_wait_the_status_has_the_first_and_how_many_more(
    run: MirroredRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.supervisor.close()  # nothing is sent here
    monkeypatch.setattr(supervisor, "_MOST_SHOWN", 2)
    for step in (1, 2, 3, 4):
        run.save(step, "requested")
    run.supervisor.look()
    shown = run.run.status.now.mirror
    assert shown is not None and [each["step"] for each in shown["waiting"]] == [1, 2]
    assert shown["more_waiting"] == {"count": 2, "bytes": 2 * shown["waiting"][0]["bytes"]}
