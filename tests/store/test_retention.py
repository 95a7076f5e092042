import os
from pathlib import Path

import pytest

from helpers.support import ASKED, OTHER_RUN, RUN, SCHEDULED, commit_checkpoint, every_crash, stage
from holdfast.store import catalog, files, names, pins, retention
from holdfast.store.retention import RetentionPolicy, StillWantedError
from holdfast.store.verify import verify


def surplus(root: Path, keep: RetentionPolicy, *protected: Path) -> list[str]:
    return [
        path.name for path in retention.surplus(root, root / ".holdfast", catalog.entries(root), RUN, keep, protected)
    ]


def commit_all(root: Path, *steps: int, reasons: tuple[object, ...] = (SCHEDULED,), run: str = RUN) -> None:
    for step in steps:
        commit_checkpoint(root, step, reasons=reasons, run=run)


def test_without_limits_all_are_kept(tmp_path: Path) -> None:
    commit_all(tmp_path, 1, 2, 3)
    assert surplus(tmp_path, RetentionPolicy(None, None)) == []


def test_the_oldest_commits_go_first_not_the_lowest_steps_nor_the_oldest_files(tmp_path: Path) -> None:
    commit_all(tmp_path, 30, 10, 20)
    for age, step in enumerate((30, 20, 10)):
        os.utime(tmp_path / f"checkpoint-{step}", (age, age))
    assert surplus(tmp_path, RetentionPolicy(1, None)) == ["checkpoint-30", "checkpoint-10"]


def test_the_limit_of_the_schedule_counts_scheduled_checkpoints_alone(tmp_path: Path) -> None:
    commit_all(tmp_path, 1, 2)
    commit_all(tmp_path, 3, 4, reasons=(ASKED,))
    commit_all(tmp_path, 5)
    commit_all(tmp_path, 6, reasons=(SCHEDULED, ASKED))
    assert surplus(tmp_path, RetentionPolicy(1, None)) == ["checkpoint-1", "checkpoint-2"]
    assert surplus(tmp_path, RetentionPolicy(None, 1)) == ["checkpoint-3", "checkpoint-4"]
    assert surplus(tmp_path, RetentionPolicy(2, 2)) == ["checkpoint-1", "checkpoint-3"]


@pytest.mark.parametrize(
    "unasked",
    [
        {**SCHEDULED, "door": "signal", "why": "SIGTERM", "stop": True},
        {**SCHEDULED, "door": "command", "why": "holdfast stop", "stop": True},
        {**SCHEDULED, "door": "exception", "why": "KeyError"},
    ],
)
def test_what_stops_and_exceptions_leave_counts_with_the_scheduled_ones_unless_it_has_a_label(
    tmp_path: Path, unasked: dict[str, object]
) -> None:
    commit_all(tmp_path, 1, reasons=(unasked,))
    commit_all(tmp_path, 2, reasons=({**unasked, "label": "before the holidays"},))
    commit_all(tmp_path, 3)
    commit_all(tmp_path, 4, reasons=(unasked,))
    assert surplus(tmp_path, RetentionPolicy(1, None)) == ["checkpoint-1", "checkpoint-3"]


def test_what_was_asked_for_when_it_was_there_is_no_longer_counted_with_the_scheduled_ones(tmp_path: Path) -> None:
    commit_all(tmp_path, 1, 2, 3)
    manifest = catalog.read(tmp_path / "checkpoint-1").manifest
    assert manifest is not None
    (tmp_path / names.CONTROL).mkdir(mode=0o700)
    assert pins.mark_as_asked_for(tmp_path / ".holdfast", manifest.attempt)
    assert not pins.mark_as_asked_for(tmp_path / ".holdfast", manifest.attempt)
    assert surplus(tmp_path, RetentionPolicy(1, None)) == ["checkpoint-2"]
    assert not pins.pinned(tmp_path / ".holdfast")


def for_slot(slot: object, **changes: object) -> dict[str, object]:
    return {**SCHEDULED, "door": "python", "why": "Checkpointer.save", "slot": slot, **changes}


def test_the_newest_of_a_slot_has_it_and_those_before_go_unless_something_else_keeps_them(tmp_path: Path) -> None:
    best, second = for_slot("best", label="0.9"), for_slot("second")
    commit_all(tmp_path, 1, reasons=(best,))
    commit_all(tmp_path, 2, reasons=(best, SCHEDULED))
    commit_all(tmp_path, 3, reasons=(best, second))
    commit_all(tmp_path, 4, reasons=(best, ASKED))
    commit_all(tmp_path, 10, reasons=(best,))
    commit_all(tmp_path, 5, 6)
    assert surplus(tmp_path, RetentionPolicy(None, None)) == ["checkpoint-1"]
    assert surplus(tmp_path, RetentionPolicy(1, 0, labelled=True)) == ["checkpoint-1", "checkpoint-2", "checkpoint-5"]
    assert surplus(tmp_path, RetentionPolicy(0, 0)) == [f"checkpoint-{step}" for step in (1, 2, 4, 5)]
    assert surplus(tmp_path, RetentionPolicy(0, 0, every=1)) == []
    commit_all(tmp_path, 7, reasons=(best,))
    assert "checkpoint-10" in surplus(tmp_path, RetentionPolicy(None, None))


def test_a_slot_is_lost_to_no_damaged_checkpoint_no_other_run_and_no_strangers(tmp_path: Path) -> None:
    commit_all(tmp_path, 1, 2, 3, 4, reasons=(for_slot("best"),))
    commit_all(tmp_path, 5, reasons=(for_slot("best"),), run=OTHER_RUN)
    (tmp_path / "checkpoint-3" / "model.safetensors").unlink()
    (tmp_path / "checkpoint-4").chmod(0o777)
    commit_all(tmp_path, 6)
    assert surplus(tmp_path, RetentionPolicy(0, 0)) == ["checkpoint-1"]


@pytest.mark.parametrize("slot", ["", "a/b", ".", None, 7, ["best"], {"best": 1}, "x" * 200])
def test_what_is_no_name_is_no_slot_whoever_wrote_it(tmp_path: Path, slot: object) -> None:
    commit_all(tmp_path, 1, reasons=(for_slot(slot),))
    commit_all(tmp_path, 2, 3)
    assert retention.slots_held(catalog.entries(tmp_path)) == {}
    assert surplus(tmp_path, RetentionPolicy(None, None)) == []
    assert surplus(tmp_path, RetentionPolicy(None, 0)) == ["checkpoint-1"]


def test_the_newest_good_checkpoint_is_never_among_them(tmp_path: Path) -> None:
    commit_all(tmp_path, 1, 2)
    assert surplus(tmp_path, RetentionPolicy(0, 0)) == ["checkpoint-1"]
    (tmp_path / "checkpoint-2" / "model.safetensors").unlink()
    assert surplus(tmp_path, RetentionPolicy(0, 0)) == []


def test_what_is_spared_is_not_among_them_by_whatever_path_it_is_named(tmp_path: Path) -> None:
    commit_all(tmp_path, 1, 2, 3)
    (tmp_path / "link").symlink_to(tmp_path)
    assert surplus(tmp_path, RetentionPolicy(1, None), tmp_path / "link" / "checkpoint-1") == ["checkpoint-2"]
    assert surplus(tmp_path / "link", RetentionPolicy(1, None), tmp_path / "checkpoint-1") == ["checkpoint-2"]


@pytest.mark.parametrize("kind", ["of another run", "damaged", "foreign", "unfinished"])
def test_fault_18_20_what_is_not_this_runs_good_checkpoint_is_neither_counted_nor_deleted(
    tmp_path: Path, kind: str
) -> None:
    """Checkpoints of another run, damaged, foreign and unfinished ones lie between those of this run."""
    commit_all(tmp_path, 1)
    commit_all(tmp_path, 2, run=OTHER_RUN if kind == "of another run" else RUN)
    if kind == "damaged":
        (tmp_path / "checkpoint-2" / "optimizer.pt").write_bytes(b"short")
    elif kind in ("foreign", "unfinished"):
        (tmp_path / "checkpoint-2" / "MANIFEST.json").unlink()
    if kind == "unfinished":
        (tmp_path / "checkpoint-2" / "trainer_state.json").unlink()
    commit_all(tmp_path, 3)
    assert surplus(tmp_path, RetentionPolicy(2, None)) == []
    assert surplus(tmp_path, RetentionPolicy(1, None)) == ["checkpoint-1"]


def test_the_newest_with_finite_numbers_stays_beside_the_newest_and_the_rules_are_as_they_were(tmp_path: Path) -> None:
    commit_all(tmp_path, 1, 2)
    for step in (3, 4, 5):
        commit_checkpoint(tmp_path, step, reasons=(SCHEDULED,), not_finite=("model.w",))
    assert surplus(tmp_path, RetentionPolicy(0, 0)) == ["checkpoint-1", "checkpoint-3", "checkpoint-4"]
    assert surplus(tmp_path, RetentionPolicy(2, 0)) == ["checkpoint-1", "checkpoint-3"]
    (tmp_path / "checkpoint-2" / "optimizer.pt").unlink()
    assert surplus(tmp_path, RetentionPolicy(1, 0)) == ["checkpoint-3", "checkpoint-4"]
    commit_all(tmp_path, 6)
    assert surplus(tmp_path, RetentionPolicy(1, 0)) == ["checkpoint-1", "checkpoint-3", "checkpoint-4", "checkpoint-5"]


def test_a_superseded_checkpoint_follows_the_rule_that_held_for_it(tmp_path: Path) -> None:
    commit_all(tmp_path, 1, 1, 2)
    (first,) = tmp_path.glob("superseded-1-*")
    assert surplus(tmp_path, RetentionPolicy(2, None)) == [first.name]


def test_every_so_many_steps_one_is_kept_for_good(tmp_path: Path) -> None:
    commit_all(tmp_path, 50, 100, 150, 200, 250)
    commit_all(tmp_path, 300, reasons=(ASKED,))
    commit_all(tmp_path, 350)
    assert surplus(tmp_path, RetentionPolicy(1, 0, every=100)) == ["checkpoint-50", "checkpoint-150", "checkpoint-250"]


def test_the_last_so_many_are_kept_whoever_asked_and_whatever_the_other_rules_say(tmp_path: Path) -> None:
    commit_all(tmp_path, 1, 2)
    commit_all(tmp_path, 3, reasons=(ASKED,))
    commit_all(tmp_path, 4)
    assert surplus(tmp_path, RetentionPolicy(0, 0, last=3)) == ["checkpoint-1"]
    assert surplus(tmp_path, RetentionPolicy(3, 0, last=2)) == []
    assert surplus(tmp_path, RetentionPolicy(0, 0, last=9)) == []


def test_each_verdict_says_why_a_checkpoint_stays(tmp_path: Path) -> None:
    commit_all(tmp_path, 1, 2, 3, 10, 11)
    commit_all(tmp_path, 12, reasons=(ASKED,))
    commit_all(tmp_path, 13)
    commit_all(tmp_path, 14, run=OTHER_RUN)
    (tmp_path / "checkpoint-1" / "optimizer.pt").unlink()
    protected = [tmp_path / "checkpoint-2"]
    verdicts = retention.judge(
        tmp_path,
        tmp_path / ".holdfast",
        catalog.entries(tmp_path),
        RUN,
        RetentionPolicy(1, 1, every=5, last=2),
        protected,
    )
    assert {verdict.entry.step: verdict.kept for verdict in verdicts} == {
        14: "of another run",
        13: "the newest good one",
        12: "one of the last 2",
        11: None,
        10: "its step is a multiple of 5",
        3: None,
        2: "still needed",
        1: "damaged: optimizer.pt: is missing",
    }
    verdicts = retention.judge(
        tmp_path, tmp_path / ".holdfast", catalog.entries(tmp_path), RUN, RetentionPolicy(3, None)
    )
    kept = {verdict.entry.step: verdict.kept for verdict in verdicts}
    assert (kept[12], kept[10]) == ("all on-demand ones stay", "one of the last 3 scheduled ones")


def test_who_deletes_what_has_gone_is_told_so(tmp_path: Path) -> None:
    commit_all(tmp_path, 1, 2)
    with pytest.raises(FileNotFoundError):
        retention.delete(tmp_path, tmp_path / ".holdfast", tmp_path / "checkpoint-3")


@pytest.mark.parametrize("when", ["before it is looked at", "right before its name goes"])
def test_a_new_checkpoint_is_not_taken_for_the_one_whose_name_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    commit_all(tmp_path, 1, 2)
    doomed = catalog.read(tmp_path / "checkpoint-1").manifest
    assert doomed is not None
    real = files.rename_new

    def rename_too_late(source: Path, target: Path) -> None:
        monkeypatch.undo()
        commit_all(tmp_path, 1)
        real(source, target)

    if when == "before it is looked at":
        commit_all(tmp_path, 1)
    else:
        monkeypatch.setattr(files, "rename_new", rename_too_late)
    with pytest.raises(StillWantedError, match="not the checkpoint that was to be deleted"):
        retention.delete(tmp_path, tmp_path / ".holdfast", tmp_path / "checkpoint-1", doomed.attempt)
    assert [entry.step for entry in catalog.entries(tmp_path)] == [1, 2, 1]


def test_a_deletion_and_the_sweep_of_a_start_do_not_disturb_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_all(tmp_path, 1, 2)
    real = os.unlink
    swept: list[str] = []

    def sweep_first(path: str, **options: int) -> None:
        if not swept:
            swept.append(path)
            retention.sweep(tmp_path, tmp_path / ".holdfast")
        real(path, **options)

    monkeypatch.setattr(os, "unlink", sweep_first)
    retention.delete(tmp_path, tmp_path / ".holdfast", tmp_path / "checkpoint-1")
    assert swept and [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_delete_removes_the_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    commit_all(tmp_path, 1, 2)
    retention.delete(tmp_path, tmp_path / ".holdfast", tmp_path / "checkpoint-1")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_delete_follows_no_link(tmp_path: Path) -> None:
    commit_all(tmp_path, 1)
    (tmp_path / "checkpoint-1" / "linked").symlink_to(tmp_path / "outside")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").touch()
    retention.delete(tmp_path, tmp_path / ".holdfast", tmp_path / "checkpoint-1")
    assert (tmp_path / "outside" / "precious").exists()


def test_a_crash_at_any_change_of_a_deletion_leaves_no_half_that_looks_whole(tmp_path: Path) -> None:
    seen = set()
    for root in every_crash(
        tmp_path,
        lambda root: commit_all(root, 1, 2),
        lambda root: retention.delete(root, root / ".holdfast", root / "checkpoint-1"),
    ):
        reports = [verify(entry.path) for entry in catalog.entries(root)]
        assert all(report.good for report in reports)
        left = [report.entry.step for report in reports]
        assert left in ([2, 1], [2])
        seen.add((len(left), bool(list(root.glob(".trash-*")))))
        retention.sweep(root, root / ".holdfast")
        assert sorted(path.name for path in root.iterdir()) == sorted(f"checkpoint-{step}" for step in left)
    assert seen == {(2, False), (1, True), (1, False)}


def test_a_sweep_removes_what_dead_attempts_left_and_nothing_else(tmp_path: Path) -> None:
    commit_all(tmp_path, 1)
    litter = [names.staging(RUN, 2, "0" * 32), names.staging(OTHER_RUN, 3, "1" * 32), names.trash("2" * 32)]
    for name in litter:
        (tmp_path / name).mkdir()
        stage(tmp_path / name)
    litter.append(names.temporary("model.safetensors", 4711))
    (tmp_path / litter[-1]).write_bytes(b"half a model")
    kept = [".tmp-mine", ".trash", ".holdfast", ".config.json.new", "model.safetensors", names.trash("3" * 32)[1:]]
    for name in kept:
        (tmp_path / name).mkdir()
    assert retention.sweep(tmp_path, tmp_path / ".holdfast") == (sorted(litter), {})
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "checkpoint-1"}
    assert retention.sweep(tmp_path, tmp_path / ".holdfast") == ([], {})


def test_a_sweep_gives_a_pinned_checkpoint_its_name_back_and_no_half_of_one(tmp_path: Path) -> None:
    (tmp_path / ".holdfast").mkdir(mode=0o700)
    commit_all(tmp_path, 1, 2, 2)
    for step, doomed in (("checkpoint-1", "0" * 32), ("superseded-2-*", "1" * 32), ("checkpoint-2", "2" * 32)):
        (path,) = tmp_path.glob(step)
        manifest = catalog.read(path).manifest
        assert manifest is not None
        pins.pin(tmp_path / ".holdfast", manifest.attempt)
        path.rename(tmp_path / names.trash(doomed))
    (tmp_path / names.trash("2" * 32) / "model.safetensors").unlink()
    commit_all(tmp_path, 2)
    assert retention.sweep(tmp_path, tmp_path / ".holdfast") == ([names.trash("2" * 32)], {})
    left = sorted(entry.path.name.split("-")[0] + str(entry.step) for entry in catalog.entries(tmp_path))
    assert left == ["checkpoint1", "checkpoint2", "superseded2"]


def test_a_sweep_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").touch()
    for name in (names.trash("0" * 32), names.staging(RUN, 2, "0" * 32)):
        (tmp_path / name).symlink_to(tmp_path / "outside")
    (tmp_path / names.temporary("model.safetensors", 1)).symlink_to(tmp_path / "outside" / "precious")
    assert retention.sweep(tmp_path, tmp_path / ".holdfast") == ([".model.safetensors.1.new"], {})
    assert (tmp_path / "outside" / "precious").exists()
