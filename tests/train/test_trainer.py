import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import ConfigError
from holdfast.train import model, rows
from holdfast.train.config.load import TrainConfig
from holdfast.train.trainer import build

Configure = Callable[..., TrainConfig]
WriteRows = Callable[..., Path]

LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}
PAIRS = [{"instruction": f"Say {n}.", "input": "now" if n % 2 else "", "output": f"It is {n}."} for n in range(6)]
TALKS = [
    [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"A value of {n}."}]
    for n in range(4)
]

# peft 0.21 asks transformers 5.23 by a name that it is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def quiet(line: str) -> None:
    """Takes what is said, and leaves it."""


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


# What is built


def test_building_writes_nothing_into_the_output_directory(configure: Configure) -> None:
    config = configure()
    trainer = build(config, quiet)
    assert not list(Path(config.output_dir).glob("*"))
    assert type(trainer).__name__ == "SFTTrainer"


def test_every_setting_reaches_the_trainer(configure: Configure) -> None:
    keys = {
        "micro_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "num_epochs": 1.5,
        "learning_rate": 0.5,
        "lr_scheduler": "linear",
        "warmup_ratio": 0.25,
        "optimizer": "adamw_torch",
        "weight_decay": 0.125,
        "max_grad_norm": 0.75,
        "logging_steps": 7,
        "seed": 11,
        "save_strategy": "steps",
        "save_steps": 9,
        "val_set_size": 4,
        "eval_steps": 0.5,
        "pad_to_sequence_len": True,
    }
    args = build(configure(**keys), quiet).args
    found = {
        "per_device_train_batch_size": 3,
        "per_device_eval_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 1.5,
        "max_steps": -1,
        "learning_rate": 0.5,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.25,
        "optim": "adamw_torch",
        "weight_decay": 0.125,
        "max_grad_norm": 0.75,
        "logging_steps": 7,
        "seed": 11,
        "save_strategy": "steps",
        "save_steps": 9,
        "eval_strategy": "steps",
        "eval_steps": 0.5,
        "pad_to_multiple_of": 32,
    }
    assert {name: getattr(args, name) for name in found} == found


def test_trls_defaults_that_nobody_asked_for_are_off(configure: Configure) -> None:
    args = build(configure(bf16=False), quiet).args
    off = ("bf16", "fp16", "packing", "gradient_checkpointing", "save_total_limit", "push_to_hub", "eval_on_start")
    assert not any(getattr(args, name) for name in off)
    assert args.report_to == []
    assert args.dataloader_num_workers == 0
    assert args.disable_tqdm


def test_it_logs_as_often_as_axolotl_does(configure: Configure) -> None:
    assert build(configure(max_steps=100), quiet).args.logging_steps == 1
    assert build(configure(max_steps=1000), quiet).args.logging_steps == 5
    assert build(configure(max_steps=100_000), quiet).args.logging_steps == 10


def test_what_was_chosen_is_said(configure: Configure) -> None:
    said: list[str] = []
    build(configure(bf16=False), said.append)
    assert said[0].startswith("precision: fp32: bf16 is turned off")
    assert said[1].startswith("data: 24 examples")
    assert len(said) == 2


def test_how_packed_rows_are_computed_is_said(configure: Configure) -> None:
    said: list[str] = []
    trainer = build(configure(sample_packing=True), said.append)
    assert said[-1] == "packing: row by row, which suits the attention of this model (sdpa)"
    assert not trainer.padding_free


def test_what_trl_refuses_is_a_configuration_error(configure: Configure) -> None:
    with pytest.raises(ConfigError, match="lm_head"):
        build(configure(**{**LORA, "lora_target_linear": False, "lora_target_modules": ["lm_head"]}), quiet)


# What it does


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"sample_packing": True},
        {"sample_packing": True, "pad_to_sequence_len": True},
        {"gradient_accumulation_steps": 2, "gradient_checkpointing": True},
        {"gradient_checkpointing": "offload"},
        {"bf16": True},
        LORA,
        {**LORA, "bf16": True, "gradient_checkpointing": True},
    ],
    ids=lambda keys: ",".join(keys) or "plain",
)
def test_it_learns_without_a_word_of_its_own(configure: Configure, keys: dict[str, Any]) -> None:
    trainer = build(configure(max_steps=6, **keys), quiet)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        trainer.train()
    found = losses(trainer)
    assert len(found) == 6
    assert found[-1] < found[0]
    assert printed.getvalue() == ""


def test_held_out_rows_are_evaluated(configure: Configure) -> None:
    trainer = build(configure(max_steps=4, val_set_size=4, eval_strategy="steps", eval_steps=2), quiet)
    trainer.train()
    evaluated = [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert evaluated == [2, 4]


def test_the_same_configuration_gives_the_same_weights(configure: Configure) -> None:
    config = configure(max_steps=5, logging_steps=1)
    runs = []
    for _ in range(2):
        runs.append(build(config, quiet))  # seeds the random numbers that training then draws
        runs[-1].train()
    first, second = (trainer.model.state_dict() for trainer in runs)
    assert losses(runs[0]) == losses(runs[1])
    assert all(first[name].equal(second[name]) for name in first)


# What is handed over is what TRL would have made


@pytest.mark.parametrize("train_on_inputs", [False, True])
@pytest.mark.parametrize("type", ["alpaca", "chat_template"])
def test_rows_are_those_of_trls_own_preparation(
    configure: Configure, write_rows: WriteRows, tmp_path: Path, type: str, train_on_inputs: bool
) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    path = write_rows(PAIRS if type == "alpaca" else [{"messages": talk} for talk in TALKS])
    config = configure(
        datasets=[{"path": str(path), "type": type}],
        chat_template="chatml",
        train_on_inputs=train_on_inputs,
        sequence_len=240,
        bf16=False,
    )
    trainer = build(config, quiet)
    tokenizer = model.load_tokenizer(config)
    given: list[dict[str, Any]]
    if type == "alpaca":
        form = {True: rows._ALPACA_WITH_INPUT, False: rows._ALPACA}
        given = [{"prompt": form[bool(pair["input"])].format(**pair), "completion": pair["output"]} for pair in PAIRS]
    else:
        given = [{"messages": talk} for talk in TALKS]
        tokenizer.chat_template = model.marked_template(tokenizer.chat_template, tokenizer)
    # Its name, and the one in transformers before 5.23.
    names = ("activation_checkpointing", "gradient_checkpointing")
    checkpointing = next(name for name in names if name in SFTConfig.__dataclass_fields__)
    args = SFTConfig(
        output_dir=str(tmp_path / "trl"),
        max_length=240,
        completion_only_loss=None if type == "chat_template" else not train_on_inputs,
        assistant_only_loss=type == "chat_template" and not train_on_inputs,
        report_to="none",
        bf16=False,
        use_cpu=True,
        **{checkpointing: False},
    )
    theirs = SFTTrainer(
        model=trainer.model, args=args, train_dataset=Dataset.from_list(given), processing_class=tokenizer
    ).train_dataset
    assert trainer.train_dataset["input_ids"][:] == theirs["input_ids"][:]
    assert trainer.train_dataset["labels"][:] == theirs["labels"][:]


def test_examples_in_one_row_do_not_see_each_other(configure: Configure, write_rows: WriteRows) -> None:
    import torch

    keys = {"datasets": [{"path": str(write_rows(PAIRS)), "type": "alpaca"}], "sequence_len": 1024, "bf16": False}
    apart, packed = (build(configure(**keys, sample_packing=packing), quiet) for packing in (False, True))
    network = apart.model.eval()
    assert len(packed.train_dataset) < len(apart.train_dataset) == 6
    sums = []
    for trainer in (apart, packed):
        batch = trainer.data_collator(list(trainer.train_dataset))
        with torch.no_grad():
            mean = network(**batch).loss
        learnt = int((batch["labels"][:, 1:] != -100).sum())
        sums.append((mean.item() * learnt, learnt))
    assert sums[0][1] == sums[1][1]
    assert sums[0][0] == pytest.approx(sums[1][0], rel=1e-5)
