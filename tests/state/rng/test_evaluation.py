"""An evaluation leaves no trace in the training."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from holdfast.state.rng import state as rng_state
from holdfast.state.rng.evaluation import evaluation


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = rng_state.record()
    yield
    before.restore()


def evaluate() -> list[Any]:
    loader: DataLoader[Any] = DataLoader(range(9), shuffle=True)  # type: ignore[arg-type]
    return [
        [batch.item() for batch in loader],
        random.gauss(0, 1),
        np.random.standard_normal(),
        torch.nn.functional.dropout(torch.ones(20)).tolist(),
    ]


def test_what_it_draws_is_undone() -> None:
    evaluate()
    expected = rng_state.record().encode()
    with evaluation():
        first = evaluate()
        assert rng_state.record().encode() != expected
    assert rng_state.record().encode() == expected
    with evaluation():
        assert evaluate() == first


def test_an_exception_goes_through_and_is_undone_as_well() -> None:
    expected = rng_state.record().encode()
    with pytest.raises(ZeroDivisionError), evaluation():
        evaluate()
        raise ZeroDivisionError
    assert rng_state.record().encode() == expected


def test_one_inside_another() -> None:
    expected = rng_state.record().encode()
    with evaluation():
        evaluate()
        between = rng_state.record().encode()
        with evaluation():
            evaluate()
        assert rng_state.record().encode() == between
    assert rng_state.record().encode() == expected


@pytest.mark.cuda
def test_cuda_is_isolated_too() -> None:
    torch.rand(1, device="cuda")
    with evaluation():
        drawn = torch.rand(5, device="cuda").tolist()
    assert torch.rand(5, device="cuda").tolist() == drawn
