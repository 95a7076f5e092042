"""The data that a run trains on: rows of token ids, and labels that say which of them count.

`datasets` reads and caches, the tokenizer and its chat template make the tokens, TRL packs them. A row is never longer
than `sequence_len`: texts are split, pairs and conversations are cut, and what was cut is counted and said. The
configuration, the files and the seed alone decide the rows and their order, whether they come from the cache or not.
"""

import hashlib
import json
import logging
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.errors import ConfigError, HoldfastError
from holdfast.train.dataset import check_columns, read
from holdfast.train.rows import make_rows, maker, template_of

if TYPE_CHECKING:
    from holdfast.train.config.fields import DatasetConfig
    from holdfast.train.config.load import TrainConfig

_log = logging.getLogger(__name__)

# Part of every cache key: to be raised when the rows that the same input gives change.
_FORMAT = 1


def load(config: "TrainConfig", tokenizer: Any, say: Callable[[str], None] = _log.warning) -> tuple[Any, Any | None]:
    """Reads and prepares the data sets of `config`.

    Args:
        config: The `datasets`, and the keys by which their rows become sequences.
        tokenizer: As `model.load_tokenizer` gives it.
        say: Takes one line on each data set: what it holds, and what of it was cut or left out.

    Returns:
        Two `datasets.Dataset`, the second None unless `val_set_size` holds something out. Their columns are `input_ids`
        and `labels`; with `sample_packing` also `seq_lengths`, the lengths of the examples in a row.

    Raises:
        HoldfastError: A data set cannot be read, lacks a column, or holds nothing to learn from.
    """
    from datasets import concatenate_datasets, disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    prepared = [_prepare(source, config, tokenizer, say) for source in config.datasets]
    rows = concatenate_datasets(prepared)
    if not config.held_out:
        return _packed(rows, config), None
    try:
        halves = rows.train_test_split(config.held_out, seed=config.random_seed)
    except ValueError as error:
        raise ConfigError([f"val_set_size: of {len(rows)} rows, {config.val_set_size} is too much: {error}"]) from error
    return _packed(halves["train"], config), _packed(halves["test"], config)


def _prepare(source: "DatasetConfig", config: "TrainConfig", tokenizer: Any, say: Callable[[str], None]) -> Any:
    from datasets import Features, List, Value

    raw = read(source)
    check_columns(source, raw)
    template = template_of(source, config, tokenizer) if source.type == "chat_template" else None
    recipe = [source.model_dump(), config.sequence_len, config.train_on_inputs, template, _identity(tokenizer)]
    rows = raw.map(
        partial(
            make_rows,
            make=maker(source, config, tokenizer, template),
            columns=raw.column_names,
            name=source.path,
        ),
        batched=True,
        with_indices=True,
        remove_columns=raw.column_names,
        features=Features(
            {
                "input_ids": List(Value("int32")),
                "labels": List(Value("int32")),
                "cut": Value("int64"),
                "learnt": Value("bool"),
            }
        ),
        desc=f"Tokenizing {source.path}",
        **_cached(config, raw, recipe),
    )
    rows = _only_learnt(source, config, raw, rows, say)
    if source.type != "pretrain":
        return rows
    from trl import pack_dataset

    return pack_dataset(rows, config.sequence_len, "wrapped", _cached(config, rows, [config.sequence_len, "wrapped"]))


def _only_learnt(
    source: "DatasetConfig", config: "TrainConfig", raw: Any, rows: Any, say: Callable[[str], None]
) -> Any:
    """Leaves out the rows that nothing could be learnt from, and says what was cut, split and left out."""
    import numpy as np

    table = rows.with_format("numpy")
    learnt = np.flatnonzero(table["learnt"][:])
    cut = np.asarray(table["cut"][:])
    if not len(learnt):
        raise HoldfastError(
            f"datasets: {source.path!r} holds nothing to learn from in its {len(raw)} rows",
            hint=f"No token that counts lies in the first {config.sequence_len} of a row (`sequence_len`).",
        )
    facts = [f"{len(raw)} examples of {source.path}, {len(learnt)} rows"]
    if cut.any():
        facts.append(
            f"{np.count_nonzero(cut)} were longer than sequence_len {config.sequence_len}, {cut.sum()} tokens cut off"
        )
    if len(learnt) < len(rows):
        facts.append(f"{len(rows) - len(learnt)} held nothing to learn from and were left out")
    say(f"data: {'; '.join(facts)}")
    if len(learnt) < len(rows):
        rows = rows.select(learnt, keep_in_memory=True)
    return rows.remove_columns(["cut", "learnt"])


def _packed(rows: Any, config: "TrainConfig") -> Any:
    if not config.sample_packing:
        return rows
    from trl import pack_dataset

    return pack_dataset(rows, config.sequence_len, "bfd", _cached(config, rows, [config.sequence_len, "bfd"]))


def _cached(config: "TrainConfig", source: Any, recipe: list[Any]) -> dict[str, Any]:
    """Returns the options by which `map` keeps what it makes of `source` by `recipe`, and finds it again.

    `datasets` would make a key of its own by pickling the tokenizer, whose pickle changes when it is used.
    """
    import datasets

    versions = [version(package) for package in ("datasets", "tokenizers", "transformers", "trl")]
    key = hashlib.sha256(json.dumps([_FORMAT, versions, source._fingerprint, recipe]).encode()).hexdigest()[:32]
    folder = Path(config.dataset_prepared_path or Path(datasets.config.HF_DATASETS_CACHE) / "holdfast")
    folder.mkdir(parents=True, exist_ok=True)
    return {"new_fingerprint": key, "cache_file_name": str(folder / f"{key}.arrow"), "load_from_cache_file": True}


def _identity(tokenizer: Any) -> list[Any]:
    """Returns everything that decides the tokens that `tokenizer` makes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else {"vocabulary": tokenizer.get_vocab()}
    # These say how the last call cut and padded; ours do neither.
    state.pop("truncation", None)
    state.pop("padding", None)
    return [type(tokenizer).__name__, tokenizer.name_or_path, tokenizer.special_tokens_map, state]
