"""Trainings of Axolotl on a CPU: a tiny model, its data, and a configuration."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HOLDFAST, FOR_TESTS = "holdfast.integrations.axolotl.HoldfastPlugin", "helpers.axolotl_plugin.ForTests"
LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "lora_target_linear": True}
_WORDS = ["def", "return", "import", "self", "class", "for", "while", "value", "key", "list", "dict", "yield"]
_SPECIALS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
# A CPU has none of it; of several processes Axolotl maps the model of each to a GPU, unless it may use none.
_ON_CPU = {
    "bf16": False,
    "fp16": False,
    "tf32": False,
    "lora_mlp_kernel": False,
    "lora_qkv_kernel": False,
    "lora_o_kernel": False,
    "lora_embedding_kernel": False,
    "max_memory": {"cpu": "1GiB"},
}


def configuration(folder: Path, *, alone: bool = False, **changes: Any) -> dict[str, Any]:
    """Returns a configuration, whose model and data are in a folder, made if they are not there.

    Args:
        folder: The folder.
        alone: Leaves Holdfast's plugin out.
        **changes: Other keys, or other values of them.
    """
    if not (folder / "model").exists():
        _make(folder)
    return {
        **_ON_CPU,
        "base_model": str(folder / "model"),
        "datasets": [{"path": str(folder / "text.jsonl"), "type": "completion"}],
        "dataset_prepared_path": str(folder / "prepared"),
        "special_tokens": {"pad_token": "<pad>"},
        "sequence_len": 32,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_epochs": 5,
        "learning_rate": 1e-2,
        "optimizer": "adamw_torch",
        "lr_scheduler": "cosine",
        "logging_steps": 1,
        "seed": 42,
        "auto_resume_from_checkpoints": True,
        "dynamic_checkpoint": {"enabled": True},
        "plugins": [FOR_TESTS] if alone else [FOR_TESTS, HOLDFAST],
        **changes,
    }


def without_speed(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns a log without what no two trainings have alike."""
    changing = ("runtime", "per_sec", "memory/")
    return [{k: v for k, v in line.items() if not any(each in k for each in changing)} for line in log]


def _make(folder: Path) -> None:
    vocabulary = {word: number for number, word in enumerate([*_SPECIALS.values(), *_WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_SPECIALS).save_pretrained(folder / "model")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        attention_dropout=0.1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    with (folder / "text.jsonl").open("w") as file:
        for number in range(40):
            text = " ".join(_WORDS[(number * 7 + place * place) % len(_WORDS)] for place in range(12))
            file.write(json.dumps({"text": text}) + "\n")
