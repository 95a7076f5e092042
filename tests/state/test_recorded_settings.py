"""The settings of a training as they are recorded and compared."""

import enum
import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from holdfast.state.recorded_settings import Change, changes, readable


class Kind(enum.Enum):
    COSINE = "cosine"


def test_numbers_truth_values_and_short_texts_are_recorded_and_nothing_else() -> None:
    values = {
        "rate": 0.1,
        "double": np.float64(0.1),
        "single": np.float32(0.5),
        "count": np.int64(3),
        "on": True,
        "none": None,
        "kind": Kind.COSINE,
        "betas": (0.9, 0.95),
        "modules": {"b", "a"},
        "tensor": torch.tensor(0.5),
        "milestones": Counter([3, 3, 5]),
        "limit": float("inf"),
        "nested": {"power": 2, "object": object()},
        "object": object(),
        "matrix": torch.ones(2, 2),
        "long": "x" * 100,
        "lines": "two\nlines",
        "objects": [1, object()],
        "many": [1] * 1000,
    }
    recorded = readable(values)
    assert recorded == {
        "rate": 0.1,
        "double": 0.1,
        "single": 0.5,
        "count": 3,
        "on": True,
        "none": None,
        "kind": "cosine",
        "betas": [0.9, 0.95],
        "modules": ["a", "b"],
        "tensor": 0.5,
        "milestones": [3, 3, 5],
        "limit": "inf",
        "nested": {"power": 2},
    }
    assert json.loads(json.dumps(recorded, allow_nan=False)) == recorded


def test_nothing_whose_name_speaks_of_a_secret_is_recorded_however_deep() -> None:
    values = {"api_key": "abc", "hub": {"token": "abc", "size": 1, "list": [{"password": "abc", "size": 2}]}}
    assert readable(values) == {"hub": {"size": 1, "list": [{"size": 2}]}}
    assert readable(dict.fromkeys(["apiKey", "passwd", "auth", "credentials", "webhook_url", "author"], "abc")) == {
        "author": "abc"
    }
    # What is no text is no secret, and training may depend on it.
    assert readable(
        {"max_new_tokens": 7, "tokens": 3, "credentials": {"user": "abc", "port": 1}, "keys": ["a", 1]}
    ) == {
        "max_new_tokens": 7,
        "tokens": 3,
        "credentials": {"port": 1},
    }


def test_what_refers_to_itself_ends() -> None:
    values: dict[str, Any] = {"rate": 1}
    values["self"] = values
    assert "rate" in readable(values)


def test_what_both_have_is_compared_and_inside_of_it_everything() -> None:
    before = {"rate": 0.1, "gone": 1, "kwargs": {"power": 1, "cycles": 2}, "parts": [{"size": 1}]}
    now = {"rate": 0.2, "new": 1, "kwargs": {"power": 1, "floor": 0.5}, "parts": [{"size": 2}]}
    assert [(change.name, change.before, change.now) for change in changes(before, now, "part")] == [
        ("part.rate", 0.1, 0.2),
        ("part.kwargs.cycles", 2, None),
        ("part.kwargs.floor", None, 0.5),
        ("part.parts.0.size", 1, 2),
    ]


@pytest.mark.parametrize("lie", [None, 3, "text", [], [{"rate": 1}]])
def test_a_record_that_is_none_has_nothing_to_compare(lie: object) -> None:
    assert list(changes(lie, {"rate": 1})) == []


@pytest.mark.parametrize(
    ("before", "now", "line"),
    [
        (0.01, 0.0005, "rate: 0.01 -> 0.0005, from your configuration"),
        (0.1 + 0.2, 0.4, "rate: 0.3 -> 0.4, from your configuration"),
        (0.1 + 0.2, 0.3, "rate: 0.30000000000000004 -> 0.3, from your configuration"),
        ("linear", "cosine", "rate: linear -> cosine, from your configuration"),
        (None, 5, "rate: none -> 5, from your configuration"),
        (True, False, "rate: true -> false, from your configuration"),
        ("\x1b[2J", "a b", 'rate: "\\u001b[2J" -> "a b", from your configuration'),
        ([1, 2.0], [1, "x"], "rate: [1, 2] -> [1, x], from your configuration"),
    ],
)
def test_a_change_is_one_line(before: object, now: object, line: str) -> None:
    assert str(Change(("_rate",), before, now)) == line


def test_a_change_that_does_not_hold_says_so() -> None:
    change = Change(("part", "rate"), 1, 2).staying("from the checkpoint")
    assert str(change) == "part.rate: stays 1, from the checkpoint; your configuration has 2"
