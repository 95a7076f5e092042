"""Trees of values, read back. What is read here may have been written by anybody. Format: `docs/format.md`, "Trees"."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from holdfast.capture.state import Given
from holdfast.capture.tree_forms import CPU, MAPPINGS, NUMPY, SEQUENCES
from holdfast.errors import CheckpointError


def decode(tree: Any, tensors: Mapping[str, torch.Tensor], home: torch.device = CPU) -> Any:
    """Turns JSON of `tree.encode` back into the value. Its tensors share memory with `Given` ones alone.

    Args:
        tree: The JSON. It may have been written by anybody.
        tensors: The tensors that it may speak of.
        home: Where those tensors go of whose device nothing is said.

    Raises:
        CheckpointError: It is no such JSON, or a tensor is missing.
    """
    try:
        return _decode(tree, tensors, home)
    except CheckpointError:
        raise
    except RecursionError:
        raise CheckpointError("a tree of values is too deep to be read") from None
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"a tree of values cannot be read: {error or type(error).__name__}") from error


def tensors_named(tree: Any) -> Iterator[str]:
    """The names of the tensors that JSON speaks of, which anybody may have written."""
    waiting = [tree]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield from (name for mark in ("$tensor", "$array") if isinstance(name := one.get(mark), str))
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _decode(tree: Any, tensors: Mapping[str, torch.Tensor], home: torch.device) -> Any:
    if tree is None or isinstance(tree, bool | int | str):
        return tree
    if isinstance(tree, list):
        return [_decode(item, tensors, home) for item in tree]
    if not isinstance(tree, dict):
        raise CheckpointError(f"a tree of values holds {tree!r}, which is none of its forms")
    mark = next(iter(tree), "")
    if not mark.startswith("$"):
        return {key: _decode(item, tensors, home) for key, item in tree.items()}
    form = _FORMS.get(mark)
    if form is None:
        raise CheckpointError(f"a tree of values holds the form {mark!r}, which this Holdfast does not know")
    return form(tree, tree[mark], tensors, home)


def _decode_tensor(tree: Any, name: Any, tensors: Mapping[str, torch.Tensor], home: torch.device) -> Any:
    found = _named(name, tensors)
    given = tensors.take(name) if isinstance(tensors, Given) else None
    return (found.clone() if given is None else given).to(_device(tree.get("device"), home))


def _decode_array(tree: Any, name: Any, tensors: Mapping[str, torch.Tensor], home: torch.device) -> Any:
    data = _named(name, tensors).cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return np.frombuffer(bytearray(data), _numpy_dtype(tree["numpy"])).reshape(tree["shape"])


def _named(name: Any, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    if name not in tensors:
        raise CheckpointError(f"the tensor {name!r} is missing")
    return tensors[name]


def _device(named: Any, home: torch.device) -> torch.device:
    """The device that a tensor goes to: the one that it was on, or one of that kind, where there is one."""
    if named is None:
        return home
    device = torch.device(named)
    if device.type == home.type:
        return home
    there = device.type == "cpu" or (device.type == "cuda" and (device.index or 0) < torch.cuda.device_count())
    return device if there else home


def _numpy_dtype(code: Any) -> "np.dtype[Any]":
    if not NUMPY.fullmatch(code):
        raise CheckpointError(f"{code!r} is no kind of numpy's that a checkpoint may hold")
    found: np.dtype[Any] = np.dtype(code)
    return found


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name)
    if not isinstance(found, torch.dtype):
        raise CheckpointError(f"{name!r} is no torch.dtype")
    return found


def _sequence(make: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda _, items, tensors, home: make([_decode(item, tensors, home) for item in items])


def _mapping(make: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda _, pairs, tensors, home: make(
        {_decode(key, tensors, home): _decode(item, tensors, home) for key, item in pairs}
    )


_FORMS: dict[str, Callable[..., Any]] = {
    "$tensor": _decode_tensor,
    "$array": _decode_array,
    "$scalar": lambda tree, text, *_: np.frombuffer(bytes.fromhex(text), _numpy_dtype(tree["numpy"]))[0],
    "$float": lambda _, text, *__: float.fromhex(text),
    "$int": lambda _, text, *__: int(text, 16),
    "$complex": lambda _, parts, *__: complex(*map(float.fromhex, parts)),
    "$bytes": lambda _, text, *__: bytes.fromhex(text),
    "$dtype": lambda _, text, *__: _dtype(text),
    "$device": lambda _, text, *__: torch.device(text),
    "$deque": lambda _, items, tensors, home: deque(
        (_decode(item, tensors, home) for item in items[:-1]), _decode(items[-1], tensors, home)
    ),
    **{mark: _sequence(kind) for kind, mark in SEQUENCES.items()},
    **{mark: _mapping(kind) for kind, mark in MAPPINGS.items()},
}
