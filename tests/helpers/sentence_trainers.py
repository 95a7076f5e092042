"""Trainers of sentence-transformers, as small as they can be, with the losses that people give them."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict, disable_progress_bars
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

disable_progress_bars()

_ROWS = 24
_WIDTH = 16
_SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
_USUAL = {
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "learning_rate": 1e-2,
}
KINDS = ("softmax", "negatives", "dict", "components")
"""A loss with weights; one without; one of each, for a data set each; one whose parts are logged."""


class Parts(torch.nn.Module):
    """A loss that returns its parts."""

    def __init__(self, model: SentenceTransformer, inner: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.inner = inner

    def forward(self, features: Any, labels: Any) -> dict[str, torch.Tensor]:
        loss = self.inner(features, labels)
        return {"first": loss, "second": loss * 0.1}


def make(kind: str, out: Path, base: Path, *, labels: int = 3, dense: int = 0, **settings: Any) -> Any:
    """Returns a trainer that is not attached yet.

    Args:
        kind: One of `KINDS`.
        out: Its `output_dir`.
        base: The folder of its language model, which is made where it is not there.
        labels: The number of classes.
        dense: The width of one more module, whose weights have a folder of their own; 0 for none.
        **settings: The arguments that differ from the usual ones.
    """
    model = _model(base, dense)
    torch.manual_seed(1)
    arguments = SentenceTransformerTrainingArguments(str(out), **{**_USUAL, **settings})
    classes: torch.nn.Module = losses.SoftmaxLoss(model, dense or _WIDTH, labels)
    negatives = losses.MultipleNegativesRankingLoss(model)
    data, loss = {
        "softmax": (_labelled(), classes),
        "negatives": (_pairs(), negatives),
        "dict": (
            DatasetDict({"labelled": _labelled(), "pairs": _pairs()}),
            {"labelled": classes, "pairs": negatives},
        ),
        "components": (_labelled(), Parts(model, classes)),
    }[kind]
    return SentenceTransformerTrainer(model, arguments, train_dataset=data, loss=loss)


def _model(base: Path, dense: int) -> SentenceTransformer:
    if not base.exists():
        _make_base(base)
    torch.manual_seed(0)
    modules: list[Any] = [Transformer(str(base)), Pooling(_WIDTH)]
    return SentenceTransformer(modules=[*modules, *([Dense(_WIDTH, dense)] if dense else [])], device="cpu")


def _make_base(base: Path) -> None:
    words = [*_SPECIAL.values(), "[MASK]", *(f"w{number}" for number in range(60))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, mask_token="[MASK]", model_max_length=32, **_SPECIAL
    ).save_pretrained(base)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
    )
    BertModel(config).save_pretrained(base)


def _pairs() -> Dataset:
    rows = range(_ROWS)
    return Dataset.from_dict({"a": [f"w{n} w{n + 1}" for n in rows], "b": [f"w{n} w{n + 2}" for n in rows]})


def _labelled() -> Dataset:
    rows = range(_ROWS)
    texts = {"a": [f"w{n} w{n + 1}" for n in rows], "b": [f"w{n} w{n * 7 % 50}" for n in rows]}
    return Dataset.from_dict({**texts, "label": [n % 3 for n in rows]})
