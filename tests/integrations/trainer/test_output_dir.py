import logging
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import holdfast
from holdfast.integrations.trainer.output_dir import OutputDirectory
from holdfast.store.folder import Folder


class _Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.weight * x).sum()}


class _WritesBeside(Trainer):  # type: ignore[misc]
    """A trainer that does as TRL's do: it leaves a card in `output_dir` before each checkpoint, and adds to a table."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        root = Path(self.args.output_dir)
        (root / "README.md").write_text(f"{root.name} {self.state.global_step}")
        with (root / "table.csv").open("a") as table:
            table.write(f"{self.state.global_step}\n")
        super()._save_checkpoint(model, trial)


def trained(root: Path) -> Trainer:
    args = TrainingArguments(
        str(root),
        use_cpu=True,
        report_to="none",
        max_steps=3,
        save_steps=1,
        per_device_train_batch_size=1,
        disable_tqdm=True,
    )
    trainer = holdfast.attach(_WritesBeside(_Model(), args, train_dataset=[{"x": torch.ones(1)}] * 9))
    trainer.train()
    return trainer


@pytest.mark.parametrize("planted", ["link", "pipe"])
def test_security_s21_what_a_trainer_leaves_beside_a_checkpoint_goes_through_no_link_and_waits_for_no_pipe(
    tmp_path: Path, planted: str
) -> None:
    """A link to a file of the user's, or a pipe that nobody reads, under the name of the card that a trainer writes."""
    root, victim = tmp_path / "my-model", tmp_path / "victim"
    root.mkdir()
    victim.write_text("precious")
    (root / "table.csv").write_text("step\n")
    if planted == "link":
        (root / "README.md").symlink_to(victim)
    else:
        os.mkfifo(root / "README.md")
    trained(root)
    assert victim.read_text() == "precious"
    assert not (root / "README.md").is_symlink() and (root / "README.md").read_text() == "my-model 3"
    assert (root / "table.csv").read_text() == "step\n1\n2\n3\n"
    for checkpoint in root.glob("checkpoint-*"):
        assert not (checkpoint / "README.md").exists() and not list(checkpoint.glob(".*"))
    args = torch.load(root / "checkpoint-3" / "training_args.bin", weights_only=False)
    assert args.output_dir == str(root) and type(args) is TrainingArguments


class _FailsOnce(Trainer):  # type: ignore[misc]
    """A trainer whose only save is made when it has ended: the first try fails."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if "failed" not in vars(self.model):
            self.model.failed = True
            raise OSError("the disk is full")
        super()._save_checkpoint(model, trial)


@pytest.mark.parametrize("kind", [Trainer, _FailsOnce])
def test_no_log_line_of_a_save_has_the_path_of_a_descriptor(tmp_path: Path, kind: type[Trainer]) -> None:
    lines: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, handler = logging.getLogger("transformers"), Kept()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        config = GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=16, bos_token_id=1, eos_token_id=1)
        args = TrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to="none", max_steps=1, save_steps=1)
        rows = [{"input_ids": [1, 2], "labels": [1, 2]}] * 8
        holdfast.attach(kind(GPT2LMHeadModel(config), args, train_dataset=rows)).train()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    assert any("checkpoint-1/config.json" in line for line in lines), lines
    assert [line for line in lines if "/proc/" in line] == []


def left(root: Path, place: Path, before: set[str], **written: str) -> list[str]:
    place.mkdir(exist_ok=True)
    with Folder.open(root) as folder, OutputDirectory(folder, place, before) as output:
        for name, content in written.items():
            path = output.path / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
        problems = output.leave()
    assert not list(place.iterdir())
    return problems


def test_what_is_left_is_new_or_was_seen_and_nothing_else_is_overwritten(tmp_path: Path) -> None:
    root, place, before = tmp_path / "run", tmp_path / "place", set[str]()
    (root / "logs").mkdir(parents=True)
    (root / "logs" / "there").write_text("kept")
    (root / "large").write_bytes(bytes((1 << 20) + 1))
    problems = left(root, place, before, logs__there="lost", large="lost", logs__new="1", card="1")
    assert [problem.split(",")[0] for problem in problems] == ["logs/there", "large"], problems
    assert (root / "logs" / "there").read_text() == "kept" and (root / "large").stat().st_size > 1 << 20
    assert before == {"logs/new", "card"}
    assert left(root, place, before, logs__new="2", card="2") == []
    assert (root / "logs" / "new").read_text() == (root / "card").read_text() == "2"
    assert stat.S_IMODE((root / "card").stat().st_mode) == 0o600


def test_what_a_trainer_adds_to_is_not_replaced_by_the_addition_when_it_has_become_large(tmp_path: Path) -> None:
    root, place, before = tmp_path / "run", tmp_path / "place", set[str]()
    root.mkdir()
    assert left(root, place, before, **{"table.csv": "1", "model": "x" * ((1 << 20) + 1)}) == []
    (root / "table.csv").write_bytes(bytes((1 << 20) + 1))
    (problem,) = left(root, place, before, **{"table.csv": "2", "model": "y" * ((1 << 20) + 1)})
    assert problem.startswith("table.csv") and (root / "table.csv").stat().st_size > 1 << 20
    assert (root / "model").read_text().startswith("y")


def test_what_a_trainer_adds_to_is_there_among_very_many_files(tmp_path: Path) -> None:
    root, place, before = tmp_path / "run", tmp_path / "place", set[str]()
    root.mkdir()
    assert left(root, place, before, zz="1") == []
    for number in range(120):
        (root / f"file-{number}").write_text("small")
    place.mkdir(exist_ok=True)
    with Folder.open(root) as folder, OutputDirectory(folder, place, before) as output:
        assert (output.path / "zz").read_text() == "1"


def test_a_link_that_a_trainer_makes_is_left_as_one_and_leads_into_the_run_directory(tmp_path: Path) -> None:
    root, place, before = tmp_path / "run", tmp_path / "place", set[str]()
    for made in (root, place):
        made.mkdir()
    (root / "mine").write_text("kept")
    (root / "folder").mkdir()
    for number in (1, 2):
        with Folder.open(root) as folder, OutputDirectory(folder, place, before) as output:
            (output.path / "mine").unlink()
            for name, leads_to in {
                "latest": f"checkpoint-{number}",
                "whole": str(output.path / f"checkpoint-{number}"),
                "elsewhere": "/dev/null",
                "folder": "nowhere",
            }.items():
                (output.path / name).symlink_to(leads_to)
            (problem,) = output.leave()
        assert problem.startswith("folder, which") and (root / "folder").is_dir()
        links = {path.name: str(path.readlink()) for path in root.iterdir() if path.is_symlink()}
        checkpoint = f"checkpoint-{number}"
        assert links == {"latest": checkpoint, "whole": str(root / checkpoint), "elsewhere": "/dev/null"}
        assert sorted(path.name for path in root.iterdir()) == ["elsewhere", "folder", "latest", "mine", "whole"]


def test_a_link_in_the_place_of_a_folder_is_named_and_not_followed(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    root.mkdir()
    elsewhere.mkdir()
    (root / "logs").symlink_to(elsewhere)
    (problem,) = left(root, tmp_path / "place", set(), logs__table="1")
    assert problem.startswith("logs/table") and not list(elsewhere.iterdir())
