"""The comparison of an object's own state with the one that it was just given: whatever it did not take is named."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

# A tensor of more elements is compared by so many of them, evenly spread.
_SAMPLES = 4096
_MOST_NAMES = 3
_SEQUENCES = (list, tuple)


def line_of_differences(part: str, loaded: Any, now: Any) -> list[str]:
    """Returns one line that names what differs, or none where nothing does.

    A tensor may have come to another dtype or device. Values of kinds that cannot be compared count as alike.

    Args:
        part: The part's name.
        loaded: The state that the object was given.
        now: The state that it gives.
    """
    differing: list[str] = []
    _compare(loaded, now, "", differing)
    if not differing:
        return []
    shown = ", ".join(differing[:_MOST_NAMES])
    more = f" and {len(differing) - _MOST_NAMES} more" if len(differing) > _MOST_NAMES else ""
    return [f"{part}: its state_dict after the resume differs from what was loaded: {shown}{more}"]


def _compare(then: Any, now: Any, name: str, differing: list[str]) -> None:
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in [*then, *(key for key in now if key not in then)]:
            inner = f"{name}/{key}" if name else str(key)
            if key in then and key in now:
                _compare(then[key], now[key], inner, differing)
            else:
                differing.append(f"{inner} ({'is missing' if key in then else 'was not there'})")
    elif isinstance(then, _SEQUENCES) and isinstance(now, _SEQUENCES) and len(then) == len(now):
        for number, (first, second) in enumerate(zip(then, now, strict=True)):
            _compare(first, second, f"{name}/{number}" if name else str(number), differing)
    elif not _is_alike(then, now):
        differing.append(name or "all of it")


def _is_alike(then: Any, now: Any) -> bool:
    if isinstance(then, torch.Tensor) and isinstance(now, torch.Tensor):
        return _are_tensors_alike(then, now)
    if isinstance(then, torch.Tensor | np.ndarray) or isinstance(now, torch.Tensor | np.ndarray):
        first, second = _plain(then), _plain(now)
        have_nan = first.dtype.kind in "fc" and second.dtype.kind in "fc"
        return first.shape == second.shape and np.array_equal(first, second, equal_nan=have_nan)
    if isinstance(then, float) and isinstance(now, float) and math.isnan(then):
        return math.isnan(now)
    if then is None or isinstance(then, bool | int | float | complex | str | bytes | set | frozenset | list | tuple):
        return bool(then == now)
    return True


def _are_tensors_alike(then: torch.Tensor, now: torch.Tensor) -> bool:
    if then.shape != now.shape or then.layout != now.layout:
        return False
    if then.layout != torch.strided or then.is_quantized or then.is_meta or now.is_meta:
        return True
    first, second = _sample(then).to(now.dtype), _sample(now)
    return (
        bool(torch.equal(first.nan_to_num(0.5), second.nan_to_num(0.5)))
        if first.is_floating_point()
        else bool(torch.equal(first, second))
    )


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.detach().flatten() if tensor.is_contiguous() else tensor.detach()
    if flat.dim() == 1 and flat.numel() > _SAMPLES:
        flat = flat[:: flat.numel() // _SAMPLES]
    return flat.cpu()


def _plain(value: Any) -> Any:
    return np.asarray(value.detach().cpu().float() if isinstance(value, torch.Tensor) else value)
