from concurrent.futures import ThreadPoolExecutor
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


@pytest.mark.cuda
def test_our_stream_is_none_of_those_that_training_is_given_and_one_for_all_threads() -> None:
    """Those go round: in one of them training may capture a graph, which a copy of ours would become a part of."""
    cuda = Cuda()
    with ThreadPoolExecutor(8) as pool:
        ours = {stream.cuda_stream for stream in pool.map(cuda._stream, [0] * 64)}
    assert len(ours) == 1
    theirs = [torch.cuda.Stream(priority=level) for _ in range(64) for level in (0, -1)]  # type: ignore[no-untyped-call]
    assert not ours & {stream.cuda_stream for stream in theirs}
    source, target = torch.arange(1000, device="cuda"), torch.zeros(1000, dtype=torch.int64)
    cuda.follow(0, cuda.mark(cuda.lane(0)))
    cuda.copy(0, source, target)
    cuda.wait(cuda.event(0))
    assert torch.equal(target, source.cpu())


@pytest.mark.cuda
def test_a_refusal_to_lock_says_why_and_is_no_error_of_what_comes_next() -> None:
    refusal = Cuda().register(4096, 4096)  # nothing is mapped there
    assert refusal.startswith("cudaHostRegister of 4,096 bytes: ") and "???" not in refusal
    assert torch.ones(3, device="cuda").sum().item() == 3
