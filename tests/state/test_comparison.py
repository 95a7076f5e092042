import copy
from collections import OrderedDict, deque
from typing import Any

import numpy as np
import pytest
import torch

from holdfast.state.comparison import line_of_differences

STATE: dict[str, Any] = {
    "count": 3,
    "rate": 0.1,
    "nan": float("nan"),
    "name": "cosine",
    "none": None,
    "seen": {1, 2},
    "pair": (1, [2, 3]),
    "small": torch.arange(6.0).reshape(2, 3),
    "large": torch.arange(1_000_000.0),
    "whole": torch.tensor([1, 2]),
    "turned": torch.arange(12.0).reshape(3, 4).T,
    "array": np.array([1.0, np.nan]),
    "deep": OrderedDict(inner={"scale": 2.0}),
}


def test_the_same_is_no_difference() -> None:
    assert line_of_differences("ema", STATE, copy.deepcopy(STATE)) == []


def test_other_dtypes_kinds_of_numbers_and_things_that_cannot_be_compared_are_no_alarm() -> None:
    loaded = {"a": torch.tensor([1.0, torch.nan]), "b": 3, "c": torch.tensor(2.0), "d": [1, 2], "e": deque([1])}
    now = {"a": torch.tensor([1.0, torch.nan]).bfloat16(), "b": 3.0, "c": 2.0, "d": (1, 2), "e": deque([2])}
    assert line_of_differences("ema", loaded, now) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("count", 4),
        ("rate", 0.2),
        ("nan", 0.0),
        ("name", "linear"),
        ("none", 0),
        ("seen", {1}),
        ("small", torch.zeros(2, 3)),
        ("small", torch.arange(6.0)),
        ("large", torch.zeros(1_000_000)),
        ("whole", torch.tensor([1, 3])),
        ("turned", torch.arange(12.0).reshape(4, 3)),
        ("array", np.array([1.0, 2.0])),
        ("small", None),
    ],
)
def test_what_differs_is_named(key: str, value: Any) -> None:
    assert line_of_differences("ema", STATE, {**STATE, key: value}) == [
        f"ema: its state_dict after the resume differs from what was loaded: {key}"
    ]


def test_names_tell_the_place_and_of_many_the_first_are_named() -> None:
    beginning = "ema: its state_dict after the resume differs from what was loaded: "
    now = {**STATE, "deep": {"inner": {"scale": 3.0}}, "pair": (1, [2, 4])}
    assert line_of_differences("ema", STATE, now) == [f"{beginning}pair/1/1, deep/inner/scale"]
    assert line_of_differences("ema", {"a": 1}, {"b": 1}) == [f"{beginning}a (is missing), b (was not there)"]
    assert line_of_differences("ema", list(range(9)), [0] * 9) == [f"{beginning}1, 2, 3 and 5 more"]
    assert line_of_differences("ema", 1, 2) == [f"{beginning}all of it"]
