"""Data sets whose samples tell what was loaded, and what was drawn at random for them."""

import random
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset


class Plain(Dataset[Any]):
    """Samples that draw nothing, and tell which were loaded in this process."""

    def __init__(self, count: int) -> None:
        self.loaded: list[int] = []
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        self.loaded.append(index)
        return index


class Augmented(Plain):
    """Samples with random numbers of every kind."""

    def __getitem__(self, index: int) -> Any:
        noise = random.random() + np.random.standard_normal() + torch.rand(()).item()
        return torch.tensor([index, noise], dtype=torch.float64)
