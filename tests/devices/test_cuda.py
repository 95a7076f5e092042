from typing import Any

import pytest
import torch

from holdfast.devices.cuda import Cuda


@pytest.mark.parametrize(
    ("code", "loses"),
    [
        (700, True),
        (719, True),
        (710, True),
        (46, True),
        (None, True),
        (1, False),
        (2, False),
        (900, False),
        (908, False),
    ],
)
def test_errors_of_one_call_and_of_a_capture_lose_no_card(code: int | None, loses: bool) -> None:
    error: Any = torch.AcceleratorError("CUDA error")
    if code is not None:
        error.error_code = code
    assert Cuda().is_loss(error) is loses


def test_an_error_that_is_not_the_card_s_loses_none() -> None:
    assert not any(map(Cuda().is_loss, (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error"))))
