"""What a run trains on: rows of token ids, and labels that say which of them count.

`datasets` reads and caches, the tokenizer and its chat template make the tokens, TRL packs them. A row is never longer
than `sequence_len`: texts are split, pairs and conversations are cut, and what was cut is counted and said. The
configuration, the files and the seed alone decide the rows and their order, whether they come from the cache or not.
"""

import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from holdfast.errors import ConfigError, HoldfastError
from holdfast.train import model

if TYPE_CHECKING:
    from holdfast.train.config import TrainConfig
    from holdfast.train.fields import DatasetConfig

_log = logging.getLogger(__name__)

# Part of every cache key: to be raised when the rows that the same input gives change.
_FORMAT = 1
_NOT_LEARNT = -100  # what torch's losses leave out

# ShareGPT's words for who speaks, and those of chat templates.
_ROLES = {"human": "user", "gpt": "assistant"}

_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}
_TEXT_COLUMNS = {"completion": ("text",), "pretrain": ("text",), "alpaca": ("instruction", "output")}

_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
_ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


class _Row(NamedTuple):
    """What one example became, or one piece of it."""

    input_ids: list[int]
    labels: list[int]
    cut: int = 0
    """How many tokens did not fit and were left away."""


_Maker = Callable[[dict[str, Any]], Iterable[_Row]]


def load(config: "TrainConfig", tokenizer: Any, say: Callable[[str], None] = _log.warning) -> tuple[Any, Any | None]:
    """Reads and prepares the data sets of `config`.

    Args:
        config: Its `datasets`, and how their rows become sequences.
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

    raw = _read(source)
    _check_columns(source, raw)
    template = _template(source, config, tokenizer) if source.type == "chat_template" else None
    recipe = [source.model_dump(), config.sequence_len, config.train_on_inputs, template, _identity(tokenizer)]
    rows = raw.map(
        partial(
            _make_rows, make=_maker(source, config, tokenizer, template), columns=raw.column_names, name=source.path
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
    rows = _told_apart(source, config, raw, rows, say)
    if source.type != "pretrain":
        return rows
    from trl import pack_dataset

    return pack_dataset(rows, config.sequence_len, "wrapped", _cached(config, rows, [config.sequence_len, "wrapped"]))


def _read(source: "DatasetConfig") -> Any:
    """Reads one data set as its author wrote it."""
    from datasets import load_dataset, load_from_disk
    from datasets.exceptions import DatasetsError

    path = Path(source.path)
    local = path.exists() or source.path.startswith((".", "/")) or path.suffix in _BUILDERS
    if local and not path.exists():
        raise HoldfastError(
            f"datasets: there is no file or folder {source.path!r}",
            hint=f"Relative paths start at the working directory, {Path.cwd()}.",
        )
    split = source.split or "train"
    if (path / "dataset_dict.json").is_file():
        path /= split
    if (path / "dataset_info.json").is_file():  # a table that `save_to_disk` wrote
        return load_from_disk(str(path))
    options: dict[str, Any] = {"data_files": list(source.data_files)} if source.data_files else {}
    if path.is_file():
        if path.suffix not in _BUILDERS:
            raise HoldfastError(f"datasets: {source.path!r} is none of {', '.join(_BUILDERS)}")
        options["data_files"] = str(path.resolve())
    files = options.get("data_files") or (path.rglob("*") if path.is_dir() else ())
    kinds = {_BUILDERS.get(Path(file).suffix) for file in ([files] if isinstance(files, str) else files)}
    builder = _BUILDERS[path.suffix] if path.is_file() else source.path
    try:
        return load_dataset(builder, source.name, split=split, **options, **_verbatim(source, kinds))
    except (OSError, ValueError, StopIteration, DatasetsError) as error:
        cause = error.__cause__ or error
        reason = str(cause).strip().splitlines()[0] if str(cause).strip() else "there is nothing in it"
        raise HoldfastError(
            f"datasets: cannot read {source.path!r}: {reason}",
            hint=None if local else "It was looked for on the Hugging Face hub. A local file needs its suffix.",
        ) from error


def _verbatim(source: "DatasetConfig", kinds: set[str | None]) -> dict[str, Any]:
    """What makes the readers of `datasets` hand over a text as it was written."""
    kinds = kinds - {None}
    if kinds == {"text"}:
        return {"sample_by": "document"}  # by line, it would drop the line breaks
    if kinds == {"csv"}:
        # Otherwise 007 becomes the number 7, and the word null nothing at all.
        columns = (*_TEXT_COLUMNS.get(source.type, ()), "input")
        return {"keep_default_na": False, "converters": dict.fromkeys(columns, str)}
    return {}


def _check_columns(source: "DatasetConfig", raw: Any) -> None:
    wanted = _TEXT_COLUMNS.get(source.type) or (source.field_messages or "messages",)
    missing = [column for column in wanted if column not in raw.column_names]
    if missing:
        raise HoldfastError(
            f"datasets: {source.path!r} has no column {' or '.join(map(repr, missing))}, which the type "
            f"{source.type} needs; it has {', '.join(map(repr, raw.column_names))}",
            hint="`field_messages` names the column of the messages." if source.type == "chat_template" else None,
        )
    if not len(raw):
        raise HoldfastError(f"datasets: {source.path!r} is empty")


def _maker(source: "DatasetConfig", config: "TrainConfig", tokenizer: Any, template: str | None) -> _Maker:
    limit = config.sequence_len
    if source.type == "completion":
        return partial(_pieces, tokenizer=tokenizer, limit=limit)
    if source.type == "pretrain":
        return partial(_pieces, tokenizer=tokenizer, limit=None)
    if source.type == "alpaca":
        return partial(_pair, tokenizer=tokenizer, limit=limit, whole=config.train_on_inputs)
    column = source.field_messages or "messages"
    return partial(
        _conversation, tokenizer=tokenizer, limit=limit, template=template, column=column, whole=config.train_on_inputs
    )


def _template(source: "DatasetConfig", config: "TrainConfig", tokenizer: Any) -> str:
    template = model.chat_template(source.chat_template, tokenizer)  # the run's own is the tokenizer's by now
    return template if config.train_on_inputs else model.marked_template(template, tokenizer)


def _make_rows(
    batch: dict[str, list[Any]], numbers: list[int], make: _Maker, columns: list[str], name: str
) -> dict[str, list[Any]]:
    made: list[_Row] = []
    for place, number in enumerate(numbers):
        try:
            made += make({column: batch[column][place] for column in columns})
        except Exception as error:
            raise HoldfastError(f"datasets: row {number} of {name!r} cannot be used: {error}") from error
    return {
        "input_ids": [row.input_ids for row in made],
        "labels": [row.labels for row in made],
        "cut": [row.cut for row in made],
        # The first token of a row is never predicted.
        "learnt": [any(label != _NOT_LEARNT for label in row.labels[1:]) for row in made],
    }


def _pieces(example: dict[str, Any], *, tokenizer: Any, limit: int | None) -> Iterator[_Row]:
    """A text, ended, in as many pieces as it needs."""
    text = _text(example, "text")
    if not text:
        yield _Row([], [])
        return
    ids = _tokens(_ended(text, tokenizer), tokenizer)
    starts = list(range(0, len(ids), limit or len(ids)))
    if len(starts) > 1 and starts[-1] == len(ids) - 1:
        starts[-1] -= 1  # a last piece of one token would teach nothing
    for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        yield _Row(ids[start:end], ids[start:end])


def _pair(example: dict[str, Any], *, tokenizer: Any, limit: int, whole: bool) -> Iterator[_Row]:
    """An instruction and its answer, which alone is learnt unless `whole`."""
    parts = {name: _text(example, name) for name in ("instruction", "input", "output")}
    prompt = (_ALPACA_WITH_INPUT if parts["input"] else _ALPACA).format(**parts)
    ids = _tokens(prompt + _ended(parts["output"], tokenizer), tokenizer)
    # Tokens may merge across the border, so the answer starts where the two tokenizations part.
    alone = _tokens(prompt, tokenizer)
    answer = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(alone, ids, strict=False)))
    labels = ids if whole else [_NOT_LEARNT] * answer + ids[answer:]
    yield _Row(ids[:limit], labels[:limit], cut=len(ids[limit:]))


def _conversation(
    example: dict[str, Any], *, tokenizer: Any, limit: int, template: str | None, column: str, whole: bool
) -> Iterator[_Row]:
    """Messages through the chat template; what the assistant says alone is learnt unless `whole`."""
    from trl import maybe_convert_to_chatml

    messages = maybe_convert_to_chatml({"messages": example[column] or []})["messages"]
    if not messages:
        yield _Row([], [])
        return
    messages = [{**message, "role": _ROLES.get(message["role"], message["role"])} for message in messages]
    tools = example.get("tools")
    made = tokenizer.apply_chat_template(
        messages,
        tools=json.loads(tools) if isinstance(tools, str) else tools,
        chat_template=template,
        return_dict=True,
        return_assistant_tokens_mask=not whole,
    )
    ids = made["input_ids"]
    marks = [1] * len(ids) if whole else made["assistant_masks"]
    labels = [token if mark else _NOT_LEARNT for token, mark in zip(ids, marks, strict=True)]
    yield _Row(ids[:limit], labels[:limit], cut=len(ids[limit:]))


def _text(example: dict[str, Any], column: str) -> str:
    value = example.get(column)
    if value is not None and not isinstance(value, str):
        raise TypeError(f"its {column!r} is not text but {value!r}")
    return value or ""


def _ended(text: str, tokenizer: Any) -> str:
    end: str = tokenizer.eos_token
    return text if text.endswith(end) else text + end


def _tokens(text: str, tokenizer: Any) -> list[int]:
    # Quiet, because it would warn of texts that are longer than the model takes, before they are split or cut.
    return list(tokenizer(text, verbose=False)["input_ids"])


def _told_apart(source: "DatasetConfig", config: "TrainConfig", raw: Any, rows: Any, say: Callable[[str], None]) -> Any:
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
    said = [f"{len(raw)} examples of {source.path}, {len(learnt)} rows"]
    if cut.any():
        said.append(
            f"{np.count_nonzero(cut)} were longer than sequence_len {config.sequence_len}, {cut.sum()} tokens cut off"
        )
    if len(learnt) < len(rows):
        said.append(f"{len(rows) - len(learnt)} held nothing to learn from and were left out")
    say(f"data: {'; '.join(said)}")
    if len(learnt) < len(rows):
        rows = rows.select(learnt, keep_in_memory=True)
    return rows.remove_columns(["cut", "learnt"])


def _packed(rows: Any, config: "TrainConfig") -> Any:
    if not config.sample_packing:
        return rows
    from trl import pack_dataset

    return pack_dataset(rows, config.sequence_len, "bfd", _cached(config, rows, [config.sequence_len, "bfd"]))


def _cached(config: "TrainConfig", source: Any, recipe: list[Any]) -> dict[str, Any]:
    """Where `map` keeps what it makes of `source` by `recipe`, and finds it again.

    `datasets` would make a key of its own by pickling the tokenizer, whose pickle changes when it is used.
    """
    import datasets

    versions = [version(package) for package in ("datasets", "tokenizers", "transformers", "trl")]
    key = hashlib.sha256(json.dumps([_FORMAT, versions, source._fingerprint, recipe]).encode()).hexdigest()[:32]
    folder = Path(config.dataset_prepared_path or Path(datasets.config.HF_DATASETS_CACHE) / "holdfast")
    folder.mkdir(parents=True, exist_ok=True)
    return {"new_fingerprint": key, "cache_file_name": str(folder / f"{key}.arrow"), "load_from_cache_file": True}


def _identity(tokenizer: Any) -> list[Any]:
    """What decides the tokens that `tokenizer` makes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else {"vocabulary": tokenizer.get_vocab()}
    # How the last call cut and padded; ours do neither.
    state.pop("truncation", None)
    state.pop("padding", None)
    return [type(tokenizer).__name__, tokenizer.name_or_path, tokenizer.special_tokens_map, state]
