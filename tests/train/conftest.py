"""A small model that has a real tokenizer, made once, and configurations of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast.train.config.load import TrainConfig

TEXTS = [
    f"def function_{number}(value):\n    '''Returns the value {number} times.'''\n    return [value] * {number}\n"
    for number in range(24)
]

Configure = Callable[..., TrainConfig]
WriteRows = Callable[..., Path]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """What the tokenizer was trained on."""
    return TEXTS


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the config of a small Llama and a byte-level tokenizer, and no weights."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    specials = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXTS, vocab_size=320, special_tokens=list(specials.values()), show_progress=False)
    PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, **specials).save_pretrained(folder)
    LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        attention_dropout=0.1,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `datasets` keeps what it has read, instead of in the home directory."""
    import datasets

    folder = tmp_path_factory.mktemp("cache")
    datasets.config.HF_DATASETS_CACHE = folder
    return folder


@pytest.fixture
def write_rows(tmp_path: Path) -> WriteRows:
    """Writes rows to a .jsonl file."""

    def write(rows: list[dict[str, Any]], name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def configure(small_model: Path, cache: Path, tmp_path: Path, write_rows: WriteRows) -> Configure:
    """Makes a configuration of a short run; the keys that are given replace its own."""

    def make(**keys: Any) -> TrainConfig:
        given: dict[str, Any] = {
            "base_model": str(small_model),
            "reinit_weights": True,
            "output_dir": str(tmp_path / "out"),
            "dataset_prepared_path": str(tmp_path / "prepared"),
            "sequence_len": 32,
            "micro_batch_size": 4,
            "learning_rate": 0.01,
            "save_strategy": "no",
            **keys,
        }
        if "datasets" not in given:
            path = write_rows([{"text": text} for text in TEXTS], "texts.jsonl")
            given["datasets"] = [{"path": str(path), "type": "completion"}]
        return TrainConfig.model_validate(given)

    return make
