from pathlib import Path

import pytest

from helpers.museum import EXHIBITS, Exhibit
from helpers.support import OTHER_RUN, RESUMABLE, RUN, commit_checkpoint, content_of, every_crash
from holdfast.errors import DamagedCheckpointError, HoldfastError, NoCheckpointError
from holdfast.layouts.layout import TRANSFORMERS
from holdfast.log import RunLog
from holdfast.resume.choose import ResumePoint, select_checkpoint
from holdfast.store.folder import Folder

WHICH = pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.kind)


class Told(RunLog):
    """The lines that the user was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        super().__init__(self.lines.append)


@pytest.fixture
def told() -> Told:
    return Told()


def chosen_step(found: ResumePoint | None) -> int | None:
    return None if found is None or found.manifest is None else found.manifest.step


def foreign(root: Path, step: int) -> Path:
    path = root / f"checkpoint-{step}"
    path.mkdir()
    for name, data in RESUMABLE.items():
        (path / name).write_bytes(data)
    return path


@pytest.mark.parametrize("wanted", [None, False])
def test_nothing_is_chosen_when_nothing_is_wanted_and_what_is_there_is_mentioned(
    tmp_path: Path, told: Told, wanted: bool | None
) -> None:
    assert select_checkpoint(tmp_path, wanted, TRANSFORMERS, told) is None and told.lines == []
    assert select_checkpoint(tmp_path / "missing", wanted, TRANSFORMERS, told) is None and told.lines == []
    commit_checkpoint(tmp_path, 7)
    assert select_checkpoint(tmp_path, wanted, TRANSFORMERS, told) is None
    assert (
        len(told.lines) == 1
        and "holds 1 checkpoints of earlier training" in told.lines[0]
        and "--resume auto" in told.lines[0]
    )


@pytest.mark.parametrize("wanted", ["auto", True])
def test_fault_18_the_newest_commit_is_chosen_not_the_highest_step(
    tmp_path: Path, told: Told, wanted: str | bool
) -> None:
    """A checkpoint of a higher step lies beside a newer commit."""
    for step in (100, 150, 120):
        commit_checkpoint(tmp_path, step)
    found = select_checkpoint(tmp_path, wanted, TRANSFORMERS, told)
    assert found is not None and found.path == tmp_path / "checkpoint-120" and chosen_step(found) == 120
    assert told.lines == []


def test_auto_starts_from_zero_where_there_is_nothing_and_true_does_not(tmp_path: Path, told: Told) -> None:
    for root in (tmp_path, tmp_path / "missing"):
        assert select_checkpoint(root, "auto", TRANSFORMERS, told) is None
        assert told.lines.pop() == f"no checkpoint in {root} yet: starting from zero"
        with pytest.raises(NoCheckpointError, match=f"there is no checkpoint in {root} to resume from"):
            select_checkpoint(root, True, TRANSFORMERS, told)


@WHICH
@pytest.mark.parametrize("wanted", ["auto", True])
def test_fault_15_16_what_cannot_be_resumed_from_is_skipped_by_name_and_reason(
    tmp_path: Path, told: Told, exhibit: Exhibit, wanted: str | bool
) -> None:
    """Every exhibit of the museum of damage as the newest checkpoint of a run."""
    commit_checkpoint(tmp_path, 5)
    exhibit.in_a_run(tmp_path)
    assert chosen_step(select_checkpoint(tmp_path, wanted, TRANSFORMERS, told)) == 5
    assert (
        len(told.lines) == 1 and told.lines[0].startswith("skipped checkpoint-7: ") and exhibit.problem in told.lines[0]
    )


@WHICH
def test_nothing_good_while_there_are_checkpoints_is_an_error_and_not_a_start_from_zero(
    tmp_path: Path, told: Told, exhibit: Exhibit
) -> None:
    exhibit.in_a_run(tmp_path)
    with pytest.raises(NoCheckpointError, match=r"none of the 1 checkpoints in .* can be resumed from: checkpoint-7"):
        select_checkpoint(tmp_path, "auto", TRANSFORMERS, told)
    assert (
        len(told.lines) == 1 and told.lines[0].startswith("skipped checkpoint-7: ") and exhibit.problem in told.lines[0]
    )


@WHICH
def test_one_that_is_named_and_damaged_is_refused_with_its_problems(
    tmp_path: Path, told: Told, exhibit: Exhibit
) -> None:
    path = exhibit.in_a_run(tmp_path)
    before = content_of(tmp_path)
    if exhibit.kind == "foreign":
        chosen = select_checkpoint(tmp_path, str(path), TRANSFORMERS, told)
        assert chosen is not None and (chosen.path, chosen.manifest) == (path, None)
        assert told.lines == [f"{path} was made without Holdfast: it has no manifest, so nothing says that it is whole"]
    else:
        with pytest.raises(DamagedCheckpointError) as raised:
            select_checkpoint(tmp_path, str(path), TRANSFORMERS, told)
        assert raised.value.exit_code == 3 and exhibit.problem in str(raised.value) and raised.value.hint
        assert [problem for problem in raised.value.problems if exhibit.problem in problem]
    assert content_of(tmp_path) == before


def test_a_checkpoint_that_is_named_is_chosen_whatever_is_newer(tmp_path: Path, told: Told) -> None:
    for step in (100, 150):
        commit_checkpoint(tmp_path, step)
    found = select_checkpoint(tmp_path, str(tmp_path / "checkpoint-100"), TRANSFORMERS, told)
    assert chosen_step(found) == 100 and told.lines == []


@pytest.mark.parametrize("name", ["missing", "file", ""])
def test_a_path_that_is_no_directory_is_refused(tmp_path: Path, told: Told, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NoCheckpointError, match="is not a checkpoint: there is no such directory") as refused:
        select_checkpoint(tmp_path, str(tmp_path / (name or "nothing")), TRANSFORMERS, told)
    assert "True for the newest good one, 'auto'" in str(refused.value.hint)


def test_a_directory_that_is_no_checkpoint_is_refused(tmp_path: Path, told: Told) -> None:
    with pytest.raises(HoldfastError, match=r"it has no MANIFEST\.json"):
        select_checkpoint(tmp_path, str(tmp_path), TRANSFORMERS, told)


def test_a_link_to_a_checkpoint_and_a_tilde_are_what_they_stand_for(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = commit_checkpoint(tmp_path, 7)
    (tmp_path / "latest").symlink_to("checkpoint-7")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(path)
    for wanted in (str(tmp_path / "latest"), "~/checkpoint-7", "."):
        found = select_checkpoint(tmp_path, wanted, TRANSFORMERS, told)
        assert found is not None and found.path == path and chosen_step(found) == 7
        assert found.continues(tmp_path) == RUN


def test_a_renamed_directory_is_not_taken_for_the_step_that_it_claims(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(commit_checkpoint(tmp_path, 7).rename(tmp_path / "checkpoint-9"))
    with pytest.raises(DamagedCheckpointError, match="its manifest is of step 7"):
        select_checkpoint(tmp_path, ".", TRANSFORMERS, told)


@pytest.mark.parametrize("name", [name for name in RESUMABLE if name != "model.safetensors"])
def test_a_checkpoint_that_lacks_what_a_resume_needs_is_refused_though_it_verifies(
    tmp_path: Path, told: Told, name: str
) -> None:
    path = commit_checkpoint(tmp_path, 7, {other: data for other, data in RESUMABLE.items() if other != name})
    with pytest.raises(DamagedCheckpointError, match=f"it lacks {name}, without which nothing can be resumed"):
        select_checkpoint(tmp_path, str(path), TRANSFORMERS, told)


def test_files_that_a_callback_added_are_mentioned_and_do_not_matter(tmp_path: Path, told: Told) -> None:
    path = commit_checkpoint(tmp_path, 7)
    (path / "merged").mkdir()
    (path / "merged" / "model.safetensors").write_bytes(b"x")
    (path / "notes\x1b[2J.txt").write_bytes(b"x")
    for wanted in ("auto", str(path)):
        assert chosen_step(select_checkpoint(tmp_path, wanted, TRANSFORMERS, told)) == 7
        assert told.lines[0] == "checkpoint-7: merged/model.safetensors: not in the manifest, and never read"
        assert len(told.lines) == 2 and told.lines[1].isprintable()
        told.lines.clear()


def test_a_strangers_file_that_a_trainer_would_read_is_named_harmlessly(tmp_path: Path, told: Told) -> None:
    path = commit_checkpoint(tmp_path, 7)
    (path / "x\x1b[2J.bin").write_bytes(b"x")
    with pytest.raises(DamagedCheckpointError) as raised:
        select_checkpoint(tmp_path, str(path), TRANSFORMERS, told)
    assert str(raised.value).isprintable()


def test_a_run_goes_on_under_its_identity_only_in_its_own_directory(tmp_path: Path, told: Told) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for root, run in ((here, RUN), (there, OTHER_RUN)):
        root.mkdir()
        commit_checkpoint(root, 7, run=run)
    (tmp_path / "link").symlink_to(here)
    own, others = (select_checkpoint(here, str(root / "checkpoint-7"), TRANSFORMERS, told) for root in (here, there))
    assert own is not None and own.continues(here) == RUN == own.continues(tmp_path / "link")
    assert others is not None and others.continues(here) is None
    assert ResumePoint(Folder.open(foreign(here, 8)), None).continues(here) is None


def test_after_a_crash_at_any_change_of_a_save_auto_goes_on_from_the_newest_that_is_whole(tmp_path: Path) -> None:
    seen = []
    for root in every_crash(tmp_path, lambda root: commit_checkpoint(root, 7), lambda root: commit_checkpoint(root, 8)):
        said = Told()
        seen.append(chosen_step(select_checkpoint(root, "auto", TRANSFORMERS, said)))
        assert said.lines == []
    assert seen == sorted(seen, key=lambda step: step or 0) and set(seen) == {7, 8}
