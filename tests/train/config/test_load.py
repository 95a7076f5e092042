import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from holdfast.errors import ConfigError
from holdfast.settings import DynamicCheckpoint
from holdfast.train.config import choices
from holdfast.train.config.fields import DatasetConfig, SpecialTokens, TrainConfig
from holdfast.train.config.load import Loaded, load

# Five lines that can be used. What a test adds begins in line 6.
ENOUGH = """\
base_model: org/model
learning_rate: 1e-4
datasets:
  - path: org/data
    type: alpaca
"""
LORA = "adapter: lora\nlora_r: 8\nlora_alpha: 16\nlora_target_linear: true\n"


@pytest.fixture(autouse=True)
def nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test runs in an empty directory, in which loading makes nothing."""
    monkeypatch.chdir(tmp_path)
    yield
    assert {path.name for path in tmp_path.iterdir()} <= {"config.yml", "here"}


def loaded(text: str, *overrides: str) -> Loaded:
    Path("config.yml").write_text(text, encoding="utf-8")
    return load(Path("config.yml"), overrides)


def problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(text, *overrides)
    assert caught.value.exit_code == 2
    return caught.value.problems


def test_a_key_that_no_text_can_hold_is_told_of() -> None:
    (line,) = problems(f'{ENOUGH}"x\\ud800": 1\n')
    assert line.endswith("'x\\ud800' holds a character that text cannot hold")


def test_a_short_configuration_has_the_defaults() -> None:
    found = loaded(ENOUGH)
    assert found.config == TrainConfig(
        base_model="org/model",
        learning_rate=1e-4,
        datasets=(DatasetConfig(path="org/data", type="alpaca"),),
    )
    assert (found.ignored, found.notices) == ((), ())


def test_every_key_is_read() -> None:
    Path("here").mkdir()
    found = loaded(
        """\
base_model: ./here
reinit_weights: yes
datasets:
  - path: org/data
    type: chat_template
    split: train[:5%]
    name: small
    field_messages: turns
    chat_template: chatml
  - {path: json, type: completion, data_files: a.jsonl}
  - {path: json, type: pretrain, data_files: [a.jsonl, b.jsonl]}
output_dir: ./out
dataset_prepared_path: prepared
dynamic_checkpoint: {enabled: true, check_interval: 0, trigger_file_path: save.me, keep: 3}
save_minutes: 30
keep_every: 1000
save_on_exception: false
stop_grace_seconds: 12.5
rank_timeout_seconds: 7.5
staging_memory: 2GB
save_rate_limit: 500 MB
save_io_priority: idle
resume_settings: keep
mirror: s3://bucket/run
mirror_keep: 5
mirror_endpoint: http://127.0.0.1:9000
mirror_region: eu-central-1
sequence_len: 64
sample_packing: true
pad_to_sequence_len: false
train_on_inputs: true
chat_template: chatml
special_tokens: {bos_token: <s>, eos_token: </s>, pad_token: <pad>, unk_token: <unk>}
micro_batch_size: 2
gradient_accumulation_steps: 4
learning_rate: 2e-4
optimizer: sgd
lr_scheduler: linear
weight_decay: 1e-2
max_grad_norm: 1
seed: 7
adapter: lora
lora_r: 8
lora_alpha: 16
lora_dropout: 0.05
lora_target_modules: [q_proj, v_proj]
lora_target_linear: false
lora_modules_to_save: [lm_head]
load_in_4bit: false
load_in_8bit: no
bf16: auto
fp16: false
tf32: true
gradient_checkpointing: offload
attn_implementation: sdpa
num_epochs: 3
warmup_ratio: 0.1
logging_steps: 5
save_strategy: steps
save_steps: 500
save_total_limit: 2
resume_from_checkpoint: auto
auto_resume_from_checkpoints: true
val_set_size: 0.05
eval_strategy: steps
eval_steps: 0.25
"""
    )
    assert found.notices == ()
    expected = TrainConfig(
        base_model="./here",
        reinit_weights=True,
        datasets=(
            DatasetConfig(
                path="org/data",
                type="chat_template",
                split="train[:5%]",
                name="small",
                field_messages="turns",
                chat_template="chatml",
            ),
            DatasetConfig(path="json", type="completion", data_files=("a.jsonl",)),
            DatasetConfig(path="json", type="pretrain", data_files=("a.jsonl", "b.jsonl")),
        ),
        output_dir="./out",
        dataset_prepared_path="prepared",
        dynamic_checkpoint=DynamicCheckpoint(enabled=True, check_interval=0, trigger_file_path="save.me", keep=3),
        save_minutes=30,
        keep_every=1000,
        save_on_exception=False,
        stop_grace_seconds=12.5,
        rank_timeout_seconds=7.5,
        staging_memory=2_000_000_000,
        save_rate_limit=500_000_000,
        save_io_priority="idle",
        resume_settings="keep",
        mirror="s3://bucket/run",
        mirror_keep=5,
        mirror_endpoint="http://127.0.0.1:9000",
        mirror_region="eu-central-1",
        sequence_len=64,
        sample_packing=True,
        pad_to_sequence_len=False,
        train_on_inputs=True,
        chat_template="chatml",
        special_tokens=SpecialTokens(bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"),
        micro_batch_size=2,
        gradient_accumulation_steps=4,
        learning_rate=2e-4,
        optimizer="sgd",
        lr_scheduler="linear",
        weight_decay=0.01,
        max_grad_norm=1.0,
        seed=7,
        adapter="lora",
        lora_r=8,
        lora_alpha=16,
        lora_dropout=0.05,
        lora_target_modules=("q_proj", "v_proj"),
        lora_target_linear=False,
        lora_modules_to_save=("lm_head",),
        load_in_4bit=False,
        load_in_8bit=False,
        bf16="auto",
        fp16=False,
        tf32=True,
        gradient_checkpointing="offload",
        attn_implementation="sdpa",
        num_epochs=3.0,
        warmup_ratio=0.1,
        logging_steps=5,
        save_strategy="steps",
        save_steps=500,
        save_total_limit=2,
        resume_from_checkpoint="auto",
        auto_resume_from_checkpoints=True,
        val_set_size=0.05,
        eval_strategy="steps",
        eval_steps=0.25,
    )
    assert found.config == expected
    unset = set(TrainConfig.model_fields) - found.config.model_fields_set
    assert unset == {"max_steps", "warmup_steps", "saves_per_epoch", "evals_per_epoch", "lora_model_dir", "plugins"}


def test_a_key_of_a_dataset_with_nothing_after_it_has_its_default() -> None:
    assert loaded(f"{ENOUGH}    split:\n    data_files:\n").config.datasets[0].split is None


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        loaded(ENOUGH).config.seed = 1


READ_AS: list[tuple[str, str, Any]] = [
    ("learning_rate: 2e-4", "learning_rate", 2e-4),
    ("save_minutes: 5e-1", "save_minutes", 0.5),
    ("stop_grace_seconds: 6e1", "stop_grace_seconds", 60.0),
    ("rank_timeout_seconds: 6e1", "rank_timeout_seconds", 60.0),
    ("learning_rate: 1", "learning_rate", 1.0),
    ("weight_decay: '0.1'", "weight_decay", 0.1),
    ("save_strategy: no", "save_strategy", "no"),
    ("save_strategy: 'no'", "save_strategy", "no"),
    ("save_steps: 5", "save_steps", 5),
    ("save_steps: 5.0", "save_steps", 5),
    ("save_steps: 1e2", "save_steps", 100),
    ("save_steps: 0.25", "save_steps", 0.25),
    ("val_set_size: 0", "val_set_size", 0.0),
    ("val_set_size: 1e-1", "val_set_size", 0.1),
    ("val_set_size: 200", "val_set_size", 200.0),
    ("lora_target_modules: all-linear", "lora_target_modules", "all-linear"),
    ("bf16: on", "bf16", True),
    ("gradient_checkpointing: true", "gradient_checkpointing", True),
    ("resume_from_checkpoint: true", "resume_from_checkpoint", True),
    ("resume_from_checkpoint: false", "resume_from_checkpoint", False),
    ("resume_from_checkpoint: local", "resume_from_checkpoint", "local"),
    ("special_tokens:", "special_tokens", SpecialTokens()),
    ("special_tokens: {pad_token: }", "special_tokens", SpecialTokens()),
    ("dynamic_checkpoint: {check_interval: , enabled: }", "dynamic_checkpoint", DynamicCheckpoint()),
    ("output_dir:", "output_dir", "./model-out"),
    ("num_epochs:", "num_epochs", 1.0),
    ("adapter:", "adapter", None),
    ("deepspeed:\nfsdp: []\nfsdp_config: {}\nrl: false", "seed", None),
]


@pytest.mark.parametrize(("text", "key", "value"), READ_AS)
def test_a_value_is_read_as(text: str, key: str, value: Any) -> None:
    text = text if text.startswith("learning_rate") else f"learning_rate: 1\n{text}"
    found = getattr(loaded(f"{ENOUGH.replace('learning_rate: 1e-4', '#')}{text}\n").config, key)
    assert (found, type(found)) == (value, type(value))


def test_a_home_directory_is_written_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    text = f"{ENOUGH}output_dir: ~/out\nresume_from_checkpoint: ~/here\ndataset_prepared_path: ~\n"
    config = loaded(text, "base_model='~/here'").config
    assert (config.base_model, config.output_dir) == (f"{tmp_path}/here", f"{tmp_path}/out")
    assert config.resume == f"{tmp_path}/here"
    assert config.dataset_prepared_path is None, "a bare ~ is YAML's null"


WRONG: dict[str, list[str]] = {
    # keys
    "learning_rat: 1": ["config.yml:6: learning_rat: unknown key, did you mean 'learning_rate'?"],
    "learning_rat:": ["config.yml:6: learning_rat: unknown key, did you mean 'learning_rate'?"],
    "model_typ: x": ["config.yml:6: model_typ: unknown key, did you mean 'model_type'?"],
    "quux: 1": ["config.yml:6: quux: unknown key"],
    '"a\\nb": 1': ["config.yml:6: 'a\\nb': unknown key"],
    "dynamic_checkpoint:\n  enabld: true": [
        "config.yml:7: dynamic_checkpoint.enabld: unknown key, did you mean 'enabled'?"
    ],
    "special_tokens: {pad: x}": ["config.yml:6: special_tokens.pad: unknown key, did you mean 'pad_token'?"],
    "seed: 1\nseed: 2": ["config.yml:7: seed: duplicate key, first given in line 6"],
    # kinds
    "micro_batch_size: two": ["config.yml:6: micro_batch_size: expected a whole number, found 'two'"],
    "micro_batch_size: true": ["config.yml:6: micro_batch_size: expected a whole number, found true"],
    "micro_batch_size: 1.5": ["config.yml:6: micro_batch_size: expected a whole number, found 1.5"],
    "micro_batch_size: '2'": ["config.yml:6: micro_batch_size: expected a whole number, found '2'"],
    "micro_batch_size: [2]": ["config.yml:6: micro_batch_size: expected a whole number, found a list"],
    "weight_decay: much": ["config.yml:6: weight_decay: expected a number, found 'much'"],
    "weight_decay: yes": ["config.yml:6: weight_decay: expected a number, found true"],
    "weight_decay: .nan": ["config.yml:6: weight_decay: expected a finite number, found .nan"],
    "weight_decay: inf": ["config.yml:6: weight_decay: expected a finite number, found .inf"],
    "train_on_inputs: 1": ["config.yml:6: train_on_inputs: expected true or false, found 1"],
    "train_on_inputs: 'yes'": ["config.yml:6: train_on_inputs: expected true or false, found 'yes'"],
    "chat_template: 3": ["config.yml:6: chat_template: expected text, found 3 (in quotes it would be text)"],
    "output_dir: 2024-01-31": [
        "config.yml:6: output_dir: expected text, found the date 2024-01-31 (in quotes it would be text)"
    ],
    "output_dir: [a]": ["config.yml:6: output_dir: expected text, found a list"],
    "output_dir: ''": ["config.yml:6: output_dir: must not be empty"],
    "output_dir: ~no-such-user-here/x": [
        "config.yml:6: output_dir: there is no home directory for '~no-such-user-here/x'"
    ],
    "special_tokens: <pad>": ["config.yml:6: special_tokens: expected keys and values, found '<pad>'"],
    "dynamic_checkpoint: true": ["config.yml:6: dynamic_checkpoint: expected keys and values, found true"],
    "lora_modules_to_save: lm_head": ["config.yml:6: lora_modules_to_save: expected a list, found 'lm_head'"],
    "plugins: [1]": ["config.yml:6: plugins.0: expected text, found 1 (in quotes it would be text)"],
    "plugins:\n  - a\n  - ": ["config.yml:8: plugins.1: expected text, found nothing"],
    "bf16: maybe": ["config.yml:6: bf16: expected auto, true or false, found 'maybe'"],
    "tf32: 1": ["config.yml:6: tf32: expected auto, true or false, found 1"],
    "gradient_checkpointing: offload_disk": [
        "config.yml:6: gradient_checkpointing: expected true, false or offload, found 'offload_disk'"
    ],
    "lora_target_modules: {a: b}": [
        "config.yml:6: lora_target_modules: expected text or a list of text, found keys and values"
    ],
    "lora_target_modules: [a, 1]": ["config.yml:6: lora_target_modules: expected text or a list of text, found a list"],
    "lora_target_modules: ['']": ["config.yml:6: lora_target_modules: must not be empty"],
    "lora_target_modules: ''": ["config.yml:6: lora_target_modules: must not be empty"],
    "lora_target_modules: []": ["config.yml:6: lora_target_modules: must not be empty"],
    "resume_from_checkpoint: 500": [
        "config.yml:6: resume_from_checkpoint: expected auto, local, true, false or the path of a checkpoint, found 500"
    ],
    "resume_from_checkpoint: ''": [
        "config.yml:6: resume_from_checkpoint: expected auto, local, true, false or the path of a checkpoint, found ''"
    ],
    # bounds
    "num_epochs: 0": ["config.yml:6: num_epochs: must be greater than 0, found 0"],
    "max_steps: -1": ["config.yml:6: max_steps: must be at least 1, found -1"],
    "warmup_ratio: 1": ["config.yml:6: warmup_ratio: must be less than 1, found 1"],
    "warmup_steps: -1": ["config.yml:6: warmup_steps: must be at least 0, found -1"],
    "logging_steps: 0": ["config.yml:6: logging_steps: must be at least 1, found 0"],
    "saves_per_epoch: 0": ["config.yml:6: saves_per_epoch: must be at least 1, found 0"],
    "save_total_limit: 0": ["config.yml:6: save_total_limit: must be at least 1, found 0"],
    "sequence_len: 0": ["config.yml:6: sequence_len: must be at least 1, found 0"],
    "gradient_accumulation_steps: 0": ["config.yml:6: gradient_accumulation_steps: must be at least 1, found 0"],
    "weight_decay: -0.1": ["config.yml:6: weight_decay: must be at least 0, found -0.1"],
    "max_grad_norm: -1": ["config.yml:6: max_grad_norm: must be at least 0, found -1"],
    "seed: -1": ["config.yml:6: seed: must be at least 0, found -1"],
    "seed: 4294967296": ["config.yml:6: seed: must be less than 4294967296, found 4294967296"],
    "lora_r: 0": ["config.yml:6: lora_r: must be at least 1, found 0"],
    "lora_dropout: 1.0": ["config.yml:6: lora_dropout: must be less than 1, found 1.0"],
    "val_set_size: -1": ["config.yml:6: val_set_size: must be at least 0, found -1"],
    "val_set_size: 1.5": [
        "config.yml:6: val_set_size: expected a share of the data below 1, or a whole number of examples, found 1.5"
    ],
    **{
        f"save_steps: {value}": [
            f"config.yml:6: save_steps: expected a whole number of steps, or a share of the run below 1, found {value}"
        ]
        for value in ("0", "-5", "1.5", "true", ".inf")
    },
    "save_steps: [5]": [
        "config.yml:6: save_steps: expected a whole number of steps, or a share of the run below 1, found a list"
    ],
    "save_steps: often": ["config.yml:6: save_steps: expected a number, found 'often'"],
    "dynamic_checkpoint: {check_interval: -1}": [
        "config.yml:6: dynamic_checkpoint.check_interval: must be at least 0, found -1"
    ],
    "dynamic_checkpoint: {check_interval: true}": [
        "config.yml:6: dynamic_checkpoint.check_interval: expected a whole number, found true"
    ],
    "dynamic_checkpoint: {keep: 0}": ["config.yml:6: dynamic_checkpoint.keep: must be at least 1, found 0"],
    # names
    "optimizer: adam": [
        "config.yml:6: optimizer: expected one of adamw_torch, adamw_torch_fused, adafactor, sgd, adagrad, rmsprop, "
        "found 'adam', did you mean 'adamw_torch'?"
    ],
    "optimizer: AdamW_torch": [
        "config.yml:6: optimizer: expected one of adamw_torch, adamw_torch_fused, adafactor, sgd, adagrad, rmsprop, "
        "found 'AdamW_torch', did you mean 'adamw_torch'?"
    ],
    "optimizer: galore_adamw": [
        "config.yml:6: optimizer: 'galore_adamw' is not offered in this version; "
        "there are adamw_torch, adamw_torch_fused, adafactor, sgd, adagrad, rmsprop"
    ],
    "lr_scheduler: cosin": [
        "config.yml:6: lr_scheduler: expected one of linear, cosine, cosine_with_restarts, polynomial, constant, "
        "constant_with_warmup, inverse_sqrt, reduce_lr_on_plateau, greedy, found 'cosin', did you mean 'cosine'?"
    ],
    "lr_scheduler: cosine_with_min_lr": [
        "config.yml:6: lr_scheduler: 'cosine_with_min_lr' needs arguments, for which this version has no key"
    ],
    "save_strategy: step": [
        "config.yml:6: save_strategy: expected one of no, steps, epoch, found 'step', did you mean 'steps'?"
    ],
    "eval_strategy: yes": ["config.yml:6: eval_strategy: expected one of no, steps, epoch, found true"],
    "adapter: Lora": ["config.yml:6: adapter: expected one of lora, qlora, found 'Lora', did you mean 'lora'?"],
    # what this version does not do
    "deepspeed: zero2.json": [
        "config.yml:6: deepspeed: DeepSpeed shards training over several devices, which this version does not do; "
        "leave the key out"
    ],
    "fsdp: full_shard": [
        "config.yml:6: fsdp: FSDP shards training over several devices, which this version does not do; "
        "leave the key out"
    ],
    "fsdp_config: {reshard_after_forward: true}": [
        "config.yml:6: fsdp_config: FSDP shards training over several devices, which this version does not do; "
        "leave the key out"
    ],
    "rl: dpo": [
        "config.yml:6: rl: preference and reinforcement learning is something this version does not do; "
        "leave the key out"
    ],
}


@pytest.mark.parametrize(("text", "expected"), WRONG.items())
def test_a_wrong_key_or_value_is_told(text: str, expected: list[str]) -> None:
    assert problems(f"{ENOUGH}{text}\n") == expected


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "..", ".", "", ".hidden", "checkpoint-5", "MANIFEST.json"])
def test_a_trigger_file_is_a_plain_name_in_output_dir(name: str) -> None:
    (problem,) = problems(f"{ENOUGH}dynamic_checkpoint:\n  trigger_file_path: '{name}'\n")
    where, said = (
        "config.yml:7: dynamic_checkpoint.trigger_file_path: ",
        "is not a file name that a trigger file may have",
    )
    assert problem.startswith(f"{where}'{name}' {said}: ")


MISSING: dict[str, list[str]] = {
    "seed: 1\n": [
        "config.yml:1: base_model: required key is missing",
        "config.yml:1: datasets: required key is missing",
        "config.yml:1: learning_rate: required key is missing",
    ],
    "base_model:\nlearning_rate: 1\ndatasets:\n": [
        "config.yml:1: base_model: required key has no value",
        "config.yml:3: datasets: required key has no value",
    ],
    "base_model: a/b\nlearning_rate: 1\ndatasets: []\n": ["config.yml:3: datasets: must not be empty"],
    "base_model: a/b\nlearning_rate: 1\ndatasets: {path: x}\n": [
        "config.yml:3: datasets: expected a list, found keys and values"
    ],
    "base_model: a/b\nlearning_rate: 1\ndatasets:\n  - a/b\n  - ~\n": [
        "config.yml:4: datasets.0: expected keys and values, found 'a/b'",
        "config.yml:5: datasets.1: expected keys and values, found nothing",
    ],
    "base_model: a/b\nlearning_rate: 1\ndatasets:\n  - path: a/b\n  - type: alpaca\n": [
        "config.yml:4: datasets.0.type: required key is missing",
        "config.yml:5: datasets.1.path: required key is missing",
    ],
    "base_model: a/b\nlearning_rate: 1\ndatasets:\n  - path: a/b\n    typ: alpaca\n": [
        "config.yml:4: datasets.0.type: required key is missing",
        "config.yml:5: datasets.0.typ: unknown key, did you mean 'type'?",
    ],
    "base_model: a/b\nlearning_rate: 1\ndatasets:\n  - path: a/b\n    type: alpca\n": [
        "config.yml:5: datasets.0.type: expected one of completion, chat_template, alpaca, pretrain, found 'alpca', "
        "did you mean 'alpaca'?"
    ],
    "base_model: a/b\nlearning_rate: 1\ndatasets:\n  - {path: json, type: pretrain, data_files: []}\n": [
        "config.yml:4: datasets.0.data_files: must not be empty"
    ],
}


@pytest.mark.parametrize(("text", "expected"), MISSING.items())
def test_what_is_required_and_missing_is_told(text: str, expected: list[str]) -> None:
    assert problems(text) == expected


NOT_TOGETHER: dict[str, list[str]] = {
    "save_steps: 5\nsaves_per_epoch: 2": ["config.yml:6: save_steps: cannot be given together with saves_per_epoch"],
    "save_steps: 5\nsave_strategy: epoch": ["config.yml:6: save_steps: needs save_strategy: steps, which is 'epoch'"],
    "save_strategy: no\nsave_steps: 5": ["config.yml:7: save_steps: needs save_strategy: steps, which is 'no'"],
    "saves_per_epoch: 2\nsave_strategy: epoch": [
        "config.yml:6: saves_per_epoch: needs save_strategy: steps, which is 'epoch'"
    ],
    "val_set_size: 0.1\neval_steps: 5\nevals_per_epoch: 2": [
        "config.yml:7: eval_steps: cannot be given together with evals_per_epoch"
    ],
    "val_set_size: 0.1\neval_steps: 5\neval_strategy: no": [
        "config.yml:7: eval_steps: needs eval_strategy: steps, which is 'no'"
    ],
    "val_set_size: 0.1\nevals_per_epoch: 5\neval_strategy: epoch": [
        "config.yml:7: evals_per_epoch: needs eval_strategy: steps, which is 'epoch'"
    ],
    "val_set_size: 0.1\nevals_per_epoch: 0\neval_strategy: epoch": [
        "config.yml:7: evals_per_epoch: 0 contradicts eval_strategy: epoch"
    ],
    "eval_steps: 5": ["config.yml:6: eval_steps: needs a val_set_size greater than 0: there is nothing to evaluate on"],
    "eval_strategy: epoch\nval_set_size: 0.0": [
        "config.yml:6: eval_strategy: needs a val_set_size greater than 0: there is nothing to evaluate on"
    ],
    "lr_scheduler: greedy": [
        "config.yml:6: lr_scheduler: 'greedy' follows the loss of evaluations, and there are none"
    ],
    "lr_scheduler: reduce_lr_on_plateau\nval_set_size: 0.1\neval_strategy: no": [
        "config.yml:6: lr_scheduler: 'reduce_lr_on_plateau' follows the loss of evaluations, and there are none"
    ],
    "warmup_steps: 5\nwarmup_ratio: 0.1": ["config.yml:7: warmup_ratio: cannot be given together with warmup_steps"],
    "bf16: true\nfp16: true": ["config.yml:7: fp16: cannot be true together with bf16: true"],
    "adapter: lora": [
        "config.yml:6: adapter: 'lora' needs lora_r",
        "config.yml:6: adapter: 'lora' needs lora_alpha",
        "config.yml:6: adapter: 'lora' needs lora_target_modules, or lora_target_linear: true",
    ],
    "adapter: lora\nlora_r: 8\nlora_alpha: 16\nlora_target_linear: false": [
        "config.yml:6: adapter: 'lora' needs lora_target_modules, or lora_target_linear: true"
    ],
    LORA.replace("adapter: lora", "adapter: qlora"): ["config.yml:6: adapter: 'qlora' needs load_in_4bit: true"],
    "lora_model_dir: org/adapter": ["config.yml:6: lora_model_dir: needs adapter: lora"],
    "auto_resume_from_checkpoints: true\nresume_from_checkpoint: false": [
        "config.yml:7: resume_from_checkpoint: "
        "contradicts auto_resume_from_checkpoints: true, which resumes the newest checkpoint"
    ],
}


@pytest.mark.parametrize(("text", "expected"), NOT_TOGETHER.items())
def test_keys_that_contradict_each_other_are_told(text: str, expected: list[str]) -> None:
    assert problems(f"{ENOUGH}{text}\n") == expected


def test_a_path_to_resume_contradicts_resuming_the_newest() -> None:
    Path("here").mkdir()
    assert problems(f"{ENOUGH}resume_from_checkpoint: here\nauto_resume_from_checkpoints: true\n") == [
        "config.yml:6: resume_from_checkpoint: "
        "contradicts auto_resume_from_checkpoints: true, which resumes the newest checkpoint"
    ]


TOGETHER = [
    "save_steps: 5\nsave_strategy: steps",
    "saves_per_epoch: 5\nsave_strategy: steps",
    "val_set_size: 0.1\nevals_per_epoch: 2\neval_strategy: steps",
    "val_set_size: 0.1\nevals_per_epoch: 0\neval_strategy: no",
    "eval_strategy: no",
    "save_strategy: no",
    "max_steps: 5",
    "lora_target_linear: false\nlora_dropout: 0",
    "lr_scheduler: constant",
    "lr_scheduler: greedy\nval_set_size: 10",
    "fp16: true",
    "bf16: true\nfp16: false",
    LORA,
    "adapter: lora\nlora_model_dir: org/adapter",
    "auto_resume_from_checkpoints: true\nresume_from_checkpoint: true",
    "auto_resume_from_checkpoints: false\nresume_from_checkpoint: false",
    "dynamic_checkpoint: {enabled: true}",
]


@pytest.mark.parametrize("text", TOGETHER)
def test_keys_that_go_together_are_taken_without_a_word(text: str) -> None:
    assert loaded(f"{ENOUGH}{text}\n").notices == ()


@pytest.mark.skipif(choices.has_bitsandbytes(), reason="bitsandbytes is installed")
def test_few_bits_are_refused_where_bitsandbytes_is_missing() -> None:
    assert problems(f"{ENOUGH}{LORA}load_in_8bit: true\noptimizer: adamw_8bit\n") == [
        "config.yml:10: load_in_8bit: needs the package bitsandbytes, which is not installed",
        "config.yml:11: optimizer: 'adamw_8bit' needs the package bitsandbytes, which is not installed",
    ]


@pytest.fixture
def bitsandbytes(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of that name. Nothing imports it: it is only looked for."""
    site = tmp_path_factory.mktemp("site")
    (site / "bitsandbytes").mkdir()
    (site / "bitsandbytes" / "__init__.py").touch()
    monkeypatch.syspath_prepend(site)


@pytest.mark.usefixtures("bitsandbytes")
def test_with_bitsandbytes_its_optimizers_are_there() -> None:
    assert loaded(f"{ENOUGH}optimizer: paged_adamw_8bit\n").config.optimizer == "paged_adamw_8bit"


@pytest.mark.usefixtures("bitsandbytes")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_few_bits_are_refused_where_there_is_no_cuda_device() -> None:
    assert problems(f"{ENOUGH}{LORA.replace('lora', 'qlora', 1)}load_in_4bit: true\n") == [
        "config.yml:10: load_in_4bit: needs a CUDA device, and there is none"
    ]


@pytest.mark.usefixtures("bitsandbytes")
@pytest.mark.parametrize(
    ("text", "expected"),
    {
        "load_in_4bit: true": "config.yml:6: load_in_4bit: "
        "needs an adapter: weights in so few bits cannot be trained themselves",
        f"{LORA}load_in_4bit: true\nload_in_8bit: true": "config.yml:11: load_in_8bit: "
        "cannot be true together with load_in_4bit: true",
        f"{LORA.replace('lora', 'qlora', 1)}load_in_4bit: true\nload_in_8bit: true": "config.yml:11: load_in_8bit: "
        "contradicts adapter: qlora, which is in 4 bits",
    }.items(),
)
def test_few_bits_that_contradict_other_keys(text: str, expected: str) -> None:
    found = [line for line in problems(f"{ENOUGH}{text}\n") if "CUDA" not in line]
    assert found == [expected]


def test_local_paths_must_be_there() -> None:
    assert problems(
        """\
base_model: ./none
learning_rate: 1
output_dir: config.yml
lora_model_dir: ~/no-such-adapter
resume_from_checkpoint: out/checkpoint-5
datasets:
  - {path: none.jsonl, type: alpaca}
  - {path: none/a.parquet, type: alpaca}
  - {path: ./none, type: alpaca}
  - {path: org/data, type: alpaca}
  - {path: 'https://example.org/a.jsonl', type: alpaca}
  - {path: config.yml, type: alpaca}
adapter: lora
"""
    ) == [
        "config.yml:1: base_model: no such directory: './none'",
        "config.yml:3: output_dir: there is a file of that name: 'config.yml'",
        "config.yml:4: lora_model_dir: no such directory: '~/no-such-adapter'",
        "config.yml:5: resume_from_checkpoint: no such directory: 'out/checkpoint-5'",
        "config.yml:7: datasets.0.path: no such file or directory: 'none.jsonl'",
        "config.yml:8: datasets.1.path: no such file or directory: 'none/a.parquet'",
        "config.yml:9: datasets.2.path: no such file or directory: './none'",
    ]


def test_a_run_directory_is_no_address() -> None:
    (said,) = problems(ENOUGH, "output_dir=s3://bucket/run")
    assert said.startswith("--set output_dir: an address is given") and said.endswith("the address as mirror:")


def test_a_model_is_a_directory() -> None:
    assert problems(ENOUGH, "base_model=./config.yml") == ["--set base_model: not a directory: './config.yml'"]


@pytest.mark.parametrize("path", ["./" + "x" * 5000, "./" + "y/" * 3000, "~no-such-user/x"])
def test_a_path_that_no_file_system_has(path: str) -> None:
    assert problems(ENOUGH, f"datasets.0.path='{path}'")[0].startswith("--set datasets.0.path: ")


def test_local_paths_that_are_there() -> None:
    Path("here").mkdir()
    Path("here/a.jsonl").touch()
    text = f"{ENOUGH}resume_from_checkpoint: here\noutput_dir: here\n"
    assert loaded(text, "base_model=./here", "datasets.0.path=here/a.jsonl").config.base_model == "./here"


def test_all_problems_are_told_at_once_in_the_order_of_the_file() -> None:
    assert problems(
        """\
base_model: ./none
learning_rate: fast
datasets:
  - path: none.jsonl
    typ: alpaca
save_steps: 5
saves_per_epoch: 5
seed: 1
seed: 2
micro_batch_size: two
adapter: lora
lora_r: eight
deepspeed: zero2.json
"x": !!binary aGk=
""",
        "sequence_len=long",
        "datasets.0.split",
    ) == [
        "config.yml:1: base_model: no such directory: './none'",
        "config.yml:2: learning_rate: expected a number, found 'fast'",
        "config.yml:4: datasets.0.path: no such file or directory: 'none.jsonl'",
        "config.yml:4: datasets.0.type: required key is missing",
        "config.yml:5: datasets.0.typ: unknown key, did you mean 'type'?",
        "config.yml:6: save_steps: cannot be given together with saves_per_epoch",
        "config.yml:9: seed: duplicate key, first given in line 8",
        "config.yml:10: micro_batch_size: expected a whole number, found 'two'",
        "config.yml:11: adapter: 'lora' needs lora_alpha",
        "config.yml:11: adapter: 'lora' needs lora_target_modules, or lora_target_linear: true",
        "config.yml:12: lora_r: expected a whole number, found 'eight'",
        "config.yml:13: deepspeed: DeepSpeed shards training over several devices, which this version does not do; "
        "leave the key out",
        "config.yml:14: x: YAML's 'binary' is not used here; text is written in quotes",
        "config.yml:14: x: unknown key",
        "--set datasets.0.split: expected KEY=VALUE",
        "--set sequence_len: expected a whole number, found 'long'",
    ]


def test_a_value_that_cannot_be_read_is_told_once() -> None:
    assert problems(ENOUGH.replace("1e-4", "!!float fast"), "lora_target_modules=[!!x y]") == [
        "config.yml:2: learning_rate: 'fast' cannot be read; text is written in quotes",
        "--set lora_target_modules: lora_target_modules.0: YAML's 'x' is not used here; text is written in quotes",
    ]


def test_an_override_repairs_the_file() -> None:
    config = loaded(f"{ENOUGH}micro_batch_size: two\n", "micro_batch_size=2", "datasets.0.type=pretrain").config
    assert (config.micro_batch_size, config.datasets[0].type) == (2, "pretrain")


def test_an_override_can_take_a_key_back() -> None:
    assert loaded(f"{ENOUGH}save_steps: 5\n", "save_steps=", "saves_per_epoch=2").config.save_steps is None


def test_an_override_contradicts_the_file() -> None:
    assert problems(f"{ENOUGH}save_steps: 5\n", "saves_per_epoch=2", "save_strategy=no") == [
        "config.yml:6: save_steps: cannot be given together with saves_per_epoch",
        "config.yml:6: save_steps: needs save_strategy: steps, which is 'no'",
        "--set saves_per_epoch: needs save_strategy: steps, which is 'no'",
    ]


def test_keys_that_are_ignored_are_named_in_one_notice() -> None:
    found = loaded(
        f"{ENOUGH}wandb_project: p\nwandb_entity:\nwandb_anything: {{a: 1}}\nmodel_type: LlamaForCausalLM\n"
        "tokenizer_type: AutoTokenizer\nstrict: false\nflash_attention: true\n"
        "plugins: [axolotl.integrations.liger.LigerPlugin]\n"
    )
    names = ("wandb_project", "wandb_anything", "model_type", "tokenizer_type", "strict", "flash_attention", "plugins")
    assert found.ignored == names
    assert found.notices == (f"config.yml: accepted for Axolotl's sake, no effect here: {', '.join(names)}",)
    assert found.config.plugins == ("axolotl.integrations.liger.LigerPlugin",)


NOTICES: dict[str, str] = {
    "dynamic_checkpoint: {check_interval: 10}": "config.yml:6: dynamic_checkpoint: "
    "there but not enabled: the trigger file is not looked at; 'enabled: true' turns it on",
    "save_strategy: steps": "config.yml:6: save_strategy: acts every 500 steps: save_steps is not given",
    "val_set_size: 1\neval_strategy: steps": "config.yml:7: eval_strategy: "
    "acts every 500 steps: eval_steps is not given",
    "save_strategy: no\nsave_total_limit: 2": "config.yml:7: save_total_limit: "
    "no effect: nothing is saved on schedule with save_strategy: no",
    "evals_per_epoch: 4": "config.yml:6: evals_per_epoch: "
    "no effect: val_set_size is 0, so there is nothing to evaluate on",
    "max_steps: 5\nnum_epochs: 2": "config.yml:7: num_epochs: "
    "max_steps decides when the run ends; num_epochs only scales saves_per_epoch, evals_per_epoch",
    "lr_scheduler: constant\nwarmup_ratio: 0.1": "config.yml:7: warmup_ratio: "
    "no effect: the scheduler 'constant' has no warm-up",
    "lr_scheduler: constant\nwarmup_steps: 3": "config.yml:7: warmup_steps: "
    "no effect: the scheduler 'constant' has no warm-up",
    "lora_r: 8\nlora_dropout: 0.1\nlora_alpha: 16": "config.yml:6: lora_r: "
    "no effect (nor lora_alpha, lora_dropout): adapter is not set, and all weights are trained",
    "adapter: lora\nlora_model_dir: org/adapter\nlora_r: 8": "config.yml:8: lora_r: "
    "no effect: the adapter in lora_model_dir brings its own",
}


@pytest.mark.parametrize(("text", "notice"), NOTICES.items())
def test_keys_that_do_not_do_what_they_seem_to_are_noticed(text: str, notice: str) -> None:
    assert loaded(f"{ENOUGH}{text}\n").notices == (notice,)


def test_a_limit_has_an_effect_where_the_clock_alone_asks_for_saves() -> None:
    assert loaded(f"{ENOUGH}save_strategy: no\nsave_minutes: 5\nsave_total_limit: 2\n").notices == ()


def test_notices_come_in_the_order_of_the_file_after_that_of_ignored_keys() -> None:
    found = loaded(f"{ENOUGH}lora_r: 8\nevals_per_epoch: 1\nstrict: true\ndynamic_checkpoint: {{}}\n")
    assert [notice.partition(": ")[0] for notice in found.notices] == [
        "config.yml",
        "config.yml:6",
        "config.yml:7",
        "config.yml:9",
    ]


def test_neither_a_good_nor_a_bad_configuration_imports_torch_or_takes_long() -> None:
    Path("config.yml").write_text(ENOUGH)
    script = """
import pathlib, sys, time
from holdfast.errors import ConfigError
from holdfast.train.config import choices
from holdfast.train.config.load import load
start = time.perf_counter()
load(pathlib.Path("config.yml"))
try:
    load(pathlib.Path("config.yml"), ["optimizer=x", "lora_r=0", "load_in_4bit=true"])
except ConfigError:
    print(time.perf_counter() - start, *{"torch", "transformers", "numpy", "datasets"} & set(sys.modules))
"""
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    seconds, *imported = done.stdout.split()
    assert imported == []
    assert float(seconds) < 0.5
    assert time.perf_counter() - begun < 10, "of which nearly all is Python's own start"


KEYS = st.sampled_from([*TrainConfig.model_fields, "path", "type", "deepspeed", "wandb_x", "<<", "0", "x"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["auto", "no", "lora", "alpaca", "steps", "~", "./x", "2e-4", "{}", "\0", "\ud800"])
    | st.text(max_size=5)
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def harmless(text: str, *overrides: str) -> None:
    """Loads, or says in single printable lines why not."""
    Path("config.yml").write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load(Path("config.yml"), overrides)
    except ConfigError as error:
        assert error.problems
        for line in error.problems:
            assert line.startswith(("config.yml", "--set "))
            assert "\n" not in line
            line.encode()


@settings(deadline=None)
@given(st.text(max_size=60) | st.text("ab:-[]{}&*!|>'\"\n \t#<,?%@~0.", max_size=60), st.text(max_size=20))
@example("a: &a {<<: [*a]}", "=")
@example("? {a: b}\n: c", "datasets.0=")
def test_no_text_raises_anything_but_a_configuration_error(text: str, override: str) -> None:
    harmless(text)
    harmless(ENOUGH + text, override)


@settings(deadline=None)
@given(st.dictionaries(KEYS, TREES, max_size=5), st.lists(st.tuples(KEYS, TREES), max_size=2))
def test_no_values_raise_anything_but_a_configuration_error(
    values: dict[str, Any], overrides: list[tuple[str, Any]]
) -> None:
    overridden = [f"{key}={written(value)}" for key, value in overrides]
    harmless(written(values), *overridden)
    harmless(
        written({"base_model": "a/b", "learning_rate": 1, "datasets": [{"path": "a/b", "type": "alpaca"}]} | values)
    )


def written(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6)
