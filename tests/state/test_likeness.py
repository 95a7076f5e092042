from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from holdfast.state.likeness import alike


@dataclass
class Pair:
    first: Any
    second: Any


def record(**changes: Any) -> dict[str, Any]:
    return {
        "lr": 0.1,
        "flags": [True, None, "text"],
        "pair": Pair(torch.arange(3), np.arange(3)),
        "nan": float("nan"),
        "last": deque([torch.zeros(2), torch.ones(2)], 2),
        **changes,
    }


def test_two_records_of_one_state_are_alike() -> None:
    assert alike(record(), record())


@pytest.mark.parametrize(
    "changes",
    [
        {"lr": 0.2},
        {"lr": "0.1"},
        {"flags": [1, None, "text"]},
        {"flags": [True, None]},
        {"pair": Pair(torch.arange(3), np.arange(4))},
        {"pair": Pair(torch.arange(3).float(), np.arange(3))},
        {"pair": Pair(torch.tensor([0, 1, 3]), np.arange(3))},
        {"nan": 0.0},
        {"last": deque([torch.zeros(2), torch.zeros(2)], 2)},
        {"more": 1},
    ],
    ids=str,
)
def test_any_difference_is_one(changes: dict[str, Any]) -> None:
    assert not alike(record(), record(**changes)) and not alike(record(**changes), record())


def test_zero_and_minus_zero_differ_in_a_bit() -> None:
    assert not alike(0.0, -0.0)
