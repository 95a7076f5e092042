import os
import shutil
from pathlib import Path

import pytest

from helpers.support import OTHER_RUN, RUN, commit_checkpoint
from holdfast.errors import SaveError
from holdfast.store import catalog, names


def steps(root: Path) -> list[int]:
    return [entry.step for entry in catalog.entries(root)]


def test_the_newest_commit_comes_first_whatever_its_step_its_age_or_its_run(tmp_path: Path) -> None:
    for step in (100, 150, 120):
        path = commit_checkpoint(tmp_path, step, run=OTHER_RUN if step == 150 else "a" * 32)
        os.utime(path, (1000 - step, 1000 - step))
    assert steps(tmp_path) == [120, 150, 100]


def test_a_superseded_checkpoint_is_listed_in_the_order_of_its_own_commit(tmp_path: Path) -> None:
    for step in (150, 200, 150):
        commit_checkpoint(tmp_path, step)
    found = [entry.path.name.split("-")[0] for entry in catalog.entries(tmp_path)]
    assert steps(tmp_path) == [150, 200, 150] and found == ["checkpoint", "checkpoint", "superseded"]


def test_those_without_a_manifest_come_last_by_step(tmp_path: Path) -> None:
    commit_checkpoint(tmp_path, 5)
    for step in (7, 900, 80):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert steps(tmp_path) == [5, 900, 80, 7]


def test_only_directories_of_a_checkpoints_name_are_listed(tmp_path: Path) -> None:
    real = commit_checkpoint(tmp_path, 7)
    (tmp_path / "checkpoint-8").symlink_to(real)
    (tmp_path / "checkpoint-9").touch()
    for name in ("checkpoint-final", "checkpoint-007", names.staging("0" * 32, 9, "0" * 32), names.trash("0" * 32)):
        real.rename(tmp_path / name)
        assert steps(tmp_path) == []
        (tmp_path / name).rename(real)
    assert steps(tmp_path) == [7]


def test_an_entry_says_why_it_has_no_manifest(tmp_path: Path) -> None:
    checkpoint = commit_checkpoint(tmp_path, 7)
    assert catalog.read(checkpoint).problem is None
    manifest = checkpoint / "MANIFEST.json"
    data = manifest.read_bytes()
    problems = []
    manifest.write_bytes(data[:-1])
    problems.append(catalog.read(checkpoint).problem)
    manifest.write_bytes(data)
    renamed = checkpoint.rename(tmp_path / "checkpoint-8")
    problems.append(catalog.read(renamed).problem)
    (renamed / "MANIFEST.json").unlink()
    problems.append(catalog.read(renamed).problem)
    (renamed / "MANIFEST.json").mkdir()
    problems.append(catalog.read(renamed).problem)
    assert problems == [
        "the manifest is cut short or is not one of ours",
        "its manifest is of step 7",
        "it has no MANIFEST.json: it was not finished, or not made by Holdfast",
        "its MANIFEST.json cannot be read: is not a regular file",
    ]


def test_a_copy_under_a_name_of_ones_own_is_read_by_its_manifest(tmp_path: Path) -> None:
    copied = commit_checkpoint(tmp_path, 7).rename(tmp_path / "best")
    entry = catalog.read(copied)
    assert entry.problem is None and entry.step == 7


def test_a_manifest_larger_than_any_of_ours_is_not_read(tmp_path: Path) -> None:
    checkpoint = commit_checkpoint(tmp_path, 7)
    with (checkpoint / "MANIFEST.json").open("r+b") as file:
        file.truncate((64 << 20) + 1)
    assert "larger than" in (catalog.read(checkpoint).problem or "")


def test_foreign_is_what_has_a_trainers_state_and_no_manifest(tmp_path: Path) -> None:
    checkpoint = commit_checkpoint(tmp_path, 7)
    assert not catalog.read(checkpoint).foreign
    (checkpoint / "MANIFEST.json").unlink()
    assert catalog.read(checkpoint).foreign
    (checkpoint / "MANIFEST.json").symlink_to("nowhere")
    assert not catalog.read(checkpoint).foreign, "a link that dangles is a manifest that somebody planted"
    (checkpoint / "MANIFEST.json").unlink()
    (checkpoint / "trainer_state.json").unlink()
    assert not catalog.read(checkpoint).foreign


def test_the_sequence_only_grows(tmp_path: Path) -> None:
    assert catalog.next_sequence([], RUN) == 1
    for step in (100, 150, 100):
        commit_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-900").mkdir()
    assert catalog.next_sequence(catalog.entries(tmp_path), RUN) == 4
    assert catalog.next_sequence(catalog.entries(tmp_path), OTHER_RUN) == 4, "a new run in a used directory is newer"


def test_a_number_to_which_no_run_comes_counts_for_its_own_run_alone(tmp_path: Path) -> None:
    commit_checkpoint(tmp_path, 100)
    commit_checkpoint(tmp_path, 900, run=OTHER_RUN, sequence=10**15 - 1)
    present = catalog.entries(tmp_path)
    assert catalog.next_sequence(present, RUN) == 2
    with pytest.raises(SaveError, match=r"^checkpoint-900 has the number 999,999,999,999,999, .* move it out"):
        catalog.next_sequence(present, OTHER_RUN)


def test_a_name_of_a_step_that_there_cannot_be_is_a_damaged_checkpoint(tmp_path: Path) -> None:
    commit_checkpoint(tmp_path, 10**15 - 1)
    (tmp_path / f"checkpoint-{10**15 - 1}").rename(tmp_path / f"checkpoint-{10**15}")
    (tmp_path / f"superseded-{10**18}-{RUN}").mkdir()
    problems = {entry.problem for entry in catalog.entries(tmp_path)}
    assert problems == {"its name is of a step that there cannot be: steps are below 10^15"}


def test_who_asks_again_and_again_has_each_manifest_read_once(tmp_path: Path) -> None:
    again = catalog.Catalog(tmp_path)
    commit_checkpoint(tmp_path, 5)
    (before,) = again.entries()
    commit_checkpoint(tmp_path, 6)
    assert again.entries() == catalog.entries(tmp_path)
    assert again.entries()[1] is before
    commit_checkpoint(tmp_path, 5)  # takes the name over
    assert again.entries() == catalog.entries(tmp_path)
    manifest = tmp_path / "checkpoint-6" / names.MANIFEST
    manifest.write_bytes(manifest.read_bytes().replace(b'"step": 6', b'"step": 8'))
    assert again.entries() == catalog.entries(tmp_path)
    shutil.rmtree(tmp_path / "checkpoint-5")
    assert again.entries() == catalog.entries(tmp_path)
