"""TRL's trainers, as small as they can be: a model of one layer, a tokenizer of sixty words, data in memory."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    Trainer,
)

disable_progress_bars()

_ROWS = 24
_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
_TOKENIZER = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_USUAL = {
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "learning_rate": 1e-2,
}
_GENERATION = {"num_generations": 4, "max_completion_length": 6}
Kind = Callable[..., Trainer]


def make(kind: str, out: Path, *, lora: bool = False, base: Path | None = None, **settings: Any) -> Trainer:
    """Returns a trainer that is not attached yet.

    Args:
        kind: A key of `KINDS`.
        out: Its `output_dir`.
        lora: Trains an adapter in place of the model.
        base: A folder that the model is loaded from, as most people's is; it is made where it is not there. Without it
            the model is one that was made here.
        **settings: The arguments that differ from the usual ones.
    """
    adapter: dict[str, Any] = {}
    if lora:
        from peft import LoraConfig

        task = {"task_type": "SEQ_CLS"} if kind == "reward" else {}
        adapter["peft_config"] = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.1, **task)
    if base is not None and not base.exists():
        _causal().save_pretrained(base)
    model = _causal() if base is None else str(base)
    torch.manual_seed(0)  # an adapter begins at random
    return KINDS[kind](model, str(out), adapter, {**_USUAL, **settings})


def _sft(model: Any, out: str, adapter: Mapping[str, Any], settings: Mapping[str, Any]) -> Trainer:
    rows = {"prompt": _words("w{0} w{1} "), "completion": _words("w{2} w{3}")}
    return trl.SFTTrainer(model, trl.SFTConfig(out, **settings), **_data(rows), **adapter)


def _dpo(model: Any, out: str, adapter: Mapping[str, Any], settings: Mapping[str, Any]) -> Trainer:
    reference = None if adapter else _causal()
    return trl.DPOTrainer(model, reference, args=trl.DPOConfig(out, **settings), **_data(_pairs()), **adapter)


def _reward(model: Any, out: str, adapter: Mapping[str, Any], settings: Mapping[str, Any]) -> Trainer:
    torch.manual_seed(0)
    judge = LlamaForSequenceClassification(_config(num_labels=1))
    return trl.RewardTrainer(judge, args=trl.RewardConfig(out, **settings), **_data(_pairs()), **adapter)


def _kto(model: Any, out: str, adapter: Mapping[str, Any], settings: Mapping[str, Any]) -> Trainer:
    rows = {
        "prompt": _words("w{0} "),
        "completion": _words("w{0} w3 w{3}"),
        "label": [number % 2 > 0 for number in range(_ROWS)],
    }
    reference = None if adapter else _causal()
    return trl.KTOTrainer(model, reference, args=trl.KTOConfig(out, **settings), **_data(rows), **adapter)


def _rloo(model: Any, out: str, adapter: Mapping[str, Any], settings: Mapping[str, Any]) -> Trainer:
    args = trl.RLOOConfig(out, **{**_GENERATION, **settings})
    return trl.RLOOTrainer(model=model, reward_funcs=_variety, args=args, **_data(_prompts()), **adapter)


def _grpo(model: Any, out: str, adapter: Mapping[str, Any], settings: Mapping[str, Any]) -> Trainer:
    args = trl.GRPOConfig(out, **{**_GENERATION, **settings})
    return trl.GRPOTrainer(model=model, reward_funcs=_variety, args=args, **_data(_prompts()), **adapter)


def _orpo(model: Any, out: str, adapter: Mapping[str, Any], settings: Mapping[str, Any]) -> Trainer:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    args = ORPOConfig(out, **{"max_length": 32, "remove_unused_columns": False, **settings})
    trainer: Trainer = ORPOTrainer(model, args=args, **_data(_pairs()), **adapter)
    return trainer


KINDS: dict[str, Kind] = {
    "sft": _sft,
    "dpo": _dpo,
    "reward": _reward,
    "kto": _kto,
    "rloo": _rloo,
    "grpo": _grpo,
    "orpo": _orpo,
}
"""The kinds of TRL's trainers."""


def _config(**others: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **others,
    )


def _causal() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(_config())


def _tokenizer() -> PreTrainedTokenizerFast:
    words = [*_SPECIAL, *(f"w{number}" for number in range(60))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_TOKENIZER)


def _data(rows: Mapping[str, Any]) -> dict[str, Any]:
    data = Dataset.from_dict(rows)
    return {"train_dataset": data, "eval_dataset": data.select(range(8)), "processing_class": _tokenizer()}


def _words(form: str) -> list[str]:
    return [form.format(number, number + 1, number % 7, number * 7 % 50) for number in range(_ROWS)]


def _pairs() -> dict[str, list[str]]:
    return {"prompt": _words("w{0} "), "chosen": _words("w1 w{2} w5"), "rejected": _words("w{0} w3")}


def _prompts() -> dict[str, list[str]]:
    return {"prompt": _words("w{0} w{1}")}


def _variety(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(len(set(text.split()))) for text in completions]
