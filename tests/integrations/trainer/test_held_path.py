import tempfile
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

import holdfast
from helpers.small_trainer import small_trainer, train
from holdfast.integrations.trainer.held_path import named
from holdfast.store.folder import Folder


class _ReadsTheStep(Trainer):  # type: ignore[misc]
    """A trainer that takes the step from the name of what it resumes from."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.loaded = int(resume_from_checkpoint.rpartition("checkpoint-")[2])
        super()._load_from_checkpoint(resume_from_checkpoint, model)


def test_a_trainer_that_reads_the_step_in_the_path_that_it_loads_from_can(tmp_path: Path) -> None:
    train(tmp_path / "out", max_steps=2, save_steps=2)
    trainer = holdfast.attach(small_trainer(tmp_path / "out", kind=_ReadsTheStep, max_steps=3))
    trainer.train(resume_from_checkpoint="auto")
    assert (trainer.loaded, trainer.state.global_step) == (2, 3)


def test_the_path_leads_to_what_is_open_and_no_error_has_it_and_nothing_of_it_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    for made in ("temporary", "checkpoint-2"):
        (tmp_path / made).mkdir()
    (tmp_path / "checkpoint-2" / "file").write_text("opened")
    before = len(list(Path("/proc/self/fd").iterdir()))
    with (
        pytest.raises(OSError) as caught,
        Folder.open(tmp_path / "checkpoint-2") as folder,
        named(folder) as path,
    ):
        (tmp_path / "checkpoint-2").rename(tmp_path / "moved")
        (tmp_path / "checkpoint-2").mkdir()
        assert path.name == "checkpoint-2" and (path / "file").read_text() == "opened"
        (path / "missing").read_text()
    assert caught.value.filename == str(tmp_path / "checkpoint-2" / "missing")
    assert not list((tmp_path / "temporary").iterdir()) and len(list(Path("/proc/self/fd").iterdir())) == before


def test_without_a_place_for_its_name_the_path_leads_there_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    (tmp_path / "file").touch()
    with Folder.open(tmp_path) as folder, named(folder) as path:
        assert (path / "file").exists()
