"""The comparison of two records of the small state: has anything changed between them?"""

import dataclasses
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

_SEQUENCES = (list, tuple, deque)


def alike(first: Any, second: Any) -> bool:
    """Returns whether two recorded values are the same, bit for bit. What cannot be compared counts as different."""
    if first is second:
        return True
    if type(first) is not type(second):
        return False
    if isinstance(first, torch.Tensor):
        return _same_tensor(first, second)
    if isinstance(first, np.ndarray):
        return (first.dtype, first.shape, first.tobytes()) == (second.dtype, second.shape, second.tobytes())
    if isinstance(first, Mapping):
        return list(first) == list(second) and all(alike(first[key], second[key]) for key in first)
    if isinstance(first, _SEQUENCES):
        return len(first) == len(second) and all(map(alike, first, second))
    if dataclasses.is_dataclass(first):
        return all(alike(getattr(first, f.name), getattr(second, f.name)) for f in dataclasses.fields(first))
    if isinstance(first, float):
        return repr(first) == repr(second)
    return bool(first == second)


def _same_tensor(first: torch.Tensor, second: torch.Tensor) -> bool:
    if first.dtype != second.dtype or first.shape != second.shape or first.layout != second.layout:
        return False
    # Training would have to wait for a card, which costs more than one save too many.
    if first.layout != torch.strided or first.device.type != "cpu":
        return False
    return torch.equal(first, second)
