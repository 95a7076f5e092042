"""A Trainer resumed with other settings than it was saved with: they hold from the first step on, and are named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainerControl, TrainingArguments

import holdfast
from helpers.full import in_full
from holdfast.errors import CheckpointError
from holdfast.store import catalog

CUT = 5


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.layer(x) - labels).square().mean()}


class Rows(Dataset[Any]):
    def __init__(self, size: int = 16) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        return {"x": torch.tensor([1.0, place / 16]), "labels": torch.tensor([1.0])}


class CutAt(TrainerCallback):  # type: ignore[misc]
    """Ends training after a step, which is saved."""

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step == CUT:
            control.should_save = control.should_training_stop = True


def train(
    root: Path,
    *,
    cut: bool = False,
    resume: str | bool | None = None,
    callbacks: list[TrainerCallback] | None = None,
    optimizers: tuple[Any, Any] | None = None,
    resume_settings: Any = "follow",
    size: int = 16,
    model: Model | None = None,
    **changes: Any,
) -> Trainer:
    arguments: dict[str, Any] = {
        "output_dir": str(root),
        "per_device_train_batch_size": 4,
        "num_train_epochs": 3,
        "learning_rate": 0.01,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    trainer = Trainer(
        model or Model(),
        TrainingArguments(**{**arguments, **changes}),
        train_dataset=Rows(size),
        eval_dataset=Rows(4),
        callbacks=[*(callbacks or []), *([CutAt()] if cut else [])],
        optimizers=optimizers or (None, None),
    )
    holdfast.attach(trainer, resume_settings=resume_settings)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def rates(trainer: Trainer) -> list[float]:
    return [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]


def named(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        line
        for line in caplog.messages
        if line.endswith("from your configuration") or "stays" in line or "none;" in line
    ]


OTHERS = in_full("another rate, and another schedule with arguments, stay")
CHANGES = [
    pytest.param({}, [], marks=OTHERS),
    pytest.param({"learning_rate": 0.0005}, ["learning_rate: 0.01 -> 0.0005"]),
    pytest.param({"num_train_epochs": 5}, ["num_train_epochs: 3 -> 5"], marks=OTHERS),
    pytest.param({"max_steps": 8, "warmup_steps": 6}, ["warmup_steps: 2 -> 6", "max_steps: -1 -> 8"], marks=OTHERS),
    pytest.param({"lr_scheduler_type": "linear"}, ["lr_scheduler_type: cosine -> linear"], marks=OTHERS),
    pytest.param(
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2.0}},
        ["lr_scheduler_type: cosine -> polynomial", 'lr_scheduler_kwargs: none -> {"power": 2.0}'],
    ),
]


@pytest.mark.parametrize(("changes", "lines"), CHANGES)
def test_the_learning_rate_is_what_a_training_with_the_new_settings_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], lines: list[str]
) -> None:
    train(tmp_path / "run", cut=True)
    whole = train(tmp_path / "whole", **changes)
    caplog.clear()
    resumed = train(tmp_path / "run", resume=str(tmp_path / "run" / f"checkpoint-{CUT}"), **changes)
    assert rates(resumed)[CUT:] == rates(whole)[CUT:]
    assert named(caplog) == [f"{line}, from your configuration" for line in lines]


def test_hyperparameters_hold_and_are_recorded_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tmp_path, cut=True, save_strategy="epoch")
    caplog.clear()
    changes: dict[str, Any] = {
        "weight_decay": 0.2,
        "adam_beta1": 0.8,
        "max_grad_norm": 0.5,
        "save_strategy": "epoch",
    }
    resumed = train(tmp_path, resume="auto", **changes)
    assert resumed.optimizer.param_groups[0]["weight_decay"] == 0.2
    assert resumed.optimizer.param_groups[1]["weight_decay"] == 0.0
    assert {group["betas"] for group in resumed.optimizer.param_groups} == {(0.8, 0.999)}
    assert named(caplog) == [
        "weight_decay: 0 -> 0.2, from your configuration",
        "adam_beta1: 0.9 -> 0.8, from your configuration",
        "max_grad_norm: 1 -> 0.5, from your configuration",
    ]
    manifest = catalog.read(tmp_path / "checkpoint-12").manifest
    assert manifest is not None and manifest.version == 1
    assert manifest.settings["arguments"]["adam_beta1"] == 0.8
    assert manifest.settings["data"] == {"samples": 16}
    optimizer = manifest.settings["parts"]["optimizer"]
    assert optimizer["class"] == "AdamW" and optimizer["groups"][0]["settings"]["lr"] == 0.01
    assert manifest.settings["parts"]["scheduler"]["numbers"]["function"]["num_training_steps"] == 12
    assert not {"hub_token", "output_dir", "run_name"} & manifest.settings["arguments"].keys()


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("reduce_lr_on_plateau", "linear"),
        pytest.param("linear", "reduce_lr_on_plateau", marks=in_full("the other way round")),
    ],
)
def test_a_schedule_of_another_class_takes_the_place_of_the_old(before: str, now: str, tmp_path: Path) -> None:
    every: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "loss"}
    whole = train(tmp_path / "whole", lr_scheduler_type=now, **every)
    train(tmp_path / "run", cut=True, lr_scheduler_type=before, **every)
    resumed = train(tmp_path / "run", resume="auto", lr_scheduler_type=now, **every)
    assert rates(resumed)[CUT:] == rates(whole)[CUT:]


def test_with_keep_the_training_is_that_of_the_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = train(tmp_path / "whole")
    train(tmp_path / "run", cut=True)
    caplog.clear()
    changes: dict[str, Any] = {
        "learning_rate": 0.5,
        "lr_scheduler_type": "linear",
        "per_device_train_batch_size": 2,
        "tf32": False,
    }
    kept = train(tmp_path / "run", resume="auto", resume_settings="keep", **changes)
    assert rates(kept) == rates(whole)
    assert all(map(torch.equal, kept.model.parameters(), whole.model.parameters()))
    why = "from the checkpoint, as resume_settings says; your configuration has"
    assert named(caplog) == [
        f"learning_rate: stays 0.01, {why} 0.5",
        f"lr_scheduler_type: stays cosine, {why} linear",
        f"per_device_train_batch_size: stays 4, {why} 2",
        "tf32: none -> false, from your configuration",
    ]
    assert kept.args.learning_rate == 0.5, "the user's arguments were changed"


def test_what_cannot_be_a_value_is_not_kept(tmp_path: Path) -> None:
    train(tmp_path, cut=True)
    manifest_file = tmp_path / f"checkpoint-{CUT}" / "MANIFEST.json"
    manifest = catalog.read(manifest_file.parent).manifest
    assert manifest is not None
    manifest.settings["arguments"].update(learning_rate="fast", lr_scheduler_type="nothing")
    manifest_file.write_bytes(manifest.encode())
    with pytest.raises(CheckpointError, match="the checkpoint's learning_rate cannot be kept: 'fast' is no value"):
        train(tmp_path, resume="auto", resume_settings="keep")


def test_optimizers_of_the_users_own_follow_what_their_script_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def own(model: Model, lr: float, size: int) -> tuple[Any, Any]:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
        return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, size, 0.5)

    def run(root: Path, lr: float, size: int, **how: Any) -> Trainer:
        model = Model()
        return train(root, model=model, optimizers=own(model, lr, size), **how)

    whole = run(tmp_path / "whole", 0.02, 4)
    run(tmp_path / "run", 0.01, 3, cut=True)
    caplog.clear()
    assert rates(run(tmp_path / "run", 0.02, 4, resume="auto"))[CUT:] == rates(whole)[CUT:]
    assert named(caplog) == [
        "optimizer.lr: 0.01 -> 0.02, from your configuration",
        "scheduler.step_size: 3 -> 4, from your configuration",
    ]


@pytest.mark.parametrize("anew", [False, True])
def test_the_arguments_of_early_stopping_are_those_of_the_user(
    anew: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    how: dict[str, Any] = {
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "restore_callback_states_from_checkpoint": anew,
    }
    train(tmp_path, cut=True, callbacks=[EarlyStoppingCallback(3)], **how)
    for mode, patience in (("follow", 7), ("keep", 3)):
        caplog.clear()
        saved = str(tmp_path / f"checkpoint-{CUT}")
        resumed = train(tmp_path, resume=saved, callbacks=[EarlyStoppingCallback(7)], resume_settings=mode, **how)
        (callback,) = (cb for cb in resumed.callback_handler.callbacks if isinstance(cb, EarlyStoppingCallback))
        assert callback.early_stopping_patience == patience
        (line,) = named(caplog)
        assert line.startswith(
            "EarlyStoppingCallback.early_stopping_patience: " + ("3 -> 7" if mode == "follow" else "")
        )


def test_a_data_set_of_another_size_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tmp_path, cut=True)
    caplog.clear()
    train(tmp_path, resume="auto", size=20)
    assert named(caplog) == []
    (line,) = (line for line in caplog.messages if "samples" in line)
    assert line.startswith("data: the data set has 20 samples and had 16")


def test_of_a_checkpoint_without_settings_one_line_says_that_changes_cannot_be_seen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path, cut=True)
    saved = tmp_path / f"checkpoint-{CUT}"
    content = json.loads((saved / "MANIFEST.json").read_text())
    (saved / "MANIFEST.json").unlink()
    assert content["settings"]
    caplog.clear()
    resumed = train(tmp_path, resume=str(saved), learning_rate=0.5)
    assert named(caplog) == [
        "settings: the checkpoint records none; what you changed since cannot be seen, and what it holds is kept"
    ]
    assert rates(resumed)[CUT] < 0.01
