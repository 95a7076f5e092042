"""Makes rows of examples: token ids, and labels that say which of them are learnt.

The tokenizer and its chat template make the tokens. A row is never longer than `sequence_len`: texts are split, pairs
and conversations are cut, and how much was cut is counted.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

from holdfast.errors import HoldfastError
from holdfast.train import model

if TYPE_CHECKING:
    from holdfast.train.config.fields import DatasetConfig
    from holdfast.train.config.load import TrainConfig

_NOT_LEARNT = -100  # what torch's losses leave out

# ShareGPT's words for who speaks, and those of chat templates.
_ROLES = {"human": "user", "gpt": "assistant"}

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
    """The row that an example, or a piece of it, became."""

    input_ids: list[int]
    labels: list[int]
    cut: int = 0
    """The number of tokens that did not fit and were left away."""


Maker = Callable[[dict[str, Any]], Iterable[_Row]]


def maker(source: "DatasetConfig", config: "TrainConfig", tokenizer: Any, template: str | None) -> Maker:
    """Returns the maker of rows for `source`. `template` is the chat template, where its type needs one."""
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


def template_of(source: "DatasetConfig", config: "TrainConfig", tokenizer: Any) -> str:
    """Returns the chat template of `source`, with marks around what the assistant says unless everything is learnt."""
    template = model.chat_template(source.chat_template, tokenizer)  # the run's own is the tokenizer's by now
    return template if config.train_on_inputs else model.marked_template(template, tokenizer)


def make_rows(
    batch: dict[str, list[Any]], numbers: list[int], make: Maker, columns: list[str], name: str
) -> dict[str, list[Any]]:
    """Makes the rows of a batch of examples, for `datasets.Dataset.map`.

    Args:
        batch: The examples, a list for each column.
        numbers: The places of the examples in the data set, for messages.
        make: The maker of the rows of one example.
        columns: The columns to hand over.
        name: The data set, for messages.

    Raises:
        HoldfastError: An example cannot be used.
    """
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
    """Gives a text, ended, in as many pieces as it needs."""
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
    """Gives an instruction and its answer, which alone is learnt unless `whole`."""
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
    """Gives messages through the chat template; what the assistant says alone is learnt unless `whole`."""
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
