"""Python values as JSON and named tensors, and back. Exact, and without pickle. Format: `docs/format.md`, "Trees"."""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from holdfast.capture.tree_forms import CPU, MAPPINGS, NUMPY, SEQUENCES
from holdfast.capture.tree_reading import decode
from holdfast.errors import UnsupportedError

__all__ = ["decode", "encode", "snapshot", "tensors_in"]

_BIGGEST = 1 << 63
# Most of what there is; a call for each would be most of what a snapshot costs.
_LEAVES = frozenset((type(None), bool, int, float, str))


def encode(value: Any, name: str, tensors: dict[str, torch.Tensor], home: torch.device = CPU) -> Any:
    """Turns a value into JSON.

    Args:
        value: The value.
        name: What it is called; its tensors' names begin so.
        tensors: Where its tensors go. They are not copied.
        home: The device of which nothing is said, as a tensor is expected there.

    Raises:
        UnsupportedError: It holds something that has no form; the error names where, and of which type.
    """
    try:
        return _encode(value, name, tensors, home)
    except RecursionError:
        raise UnsupportedError(f"{name} is too deep to be saved, or holds itself") from None


def snapshot(value: Any, clones: Callable[[torch.Tensor], bool]) -> Any:
    """A copy in which later changes do not show, cheap enough for every step.

    Args:
        value: The value. What `encode` has no form for is not copied.
        clones: Tells which tensors are cloned; the others are taken as they are.
    """
    kind = type(value)
    if kind is dict:
        return {key: item if type(item) in _LEAVES else snapshot(item, clones) for key, item in value.items()}
    if kind is list:
        return [item if type(item) in _LEAVES else snapshot(item, clones) for item in value]
    if kind is tuple:
        return tuple([item if type(item) in _LEAVES else snapshot(item, clones) for item in value])
    if isinstance(value, torch.Tensor):
        return value.detach().clone() if clones(value) else value.detach()
    if kind is OrderedDict:
        return OrderedDict((key, snapshot(item, clones)) for key, item in value.items())
    if kind is deque:
        return deque((snapshot(item, clones) for item in value), value.maxlen)
    if kind in (set, Counter, np.ndarray):
        return value.copy()
    return value


def tensors_in(value: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in a value, by the names that `encode` gives them. What has no form is passed over."""
    if isinstance(value, torch.Tensor):
        yield name, value
        return
    for part, item in _children(value):
        yield from tensors_in(item, f"{name}/{part}")


def _children(value: Any) -> Iterable[tuple[Any, Any]]:
    kind = type(value)
    if kind in MAPPINGS:
        return value.items()  # type: ignore[no-any-return]
    return enumerate(value) if kind in (list, tuple, deque) else ()


def _encode(value: Any, name: str, tensors: dict[str, torch.Tensor], home: torch.device) -> Any:
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is int:
        return value if -_BIGGEST <= value < _BIGGEST else {"$int": hex(value)}
    if kind is float:
        return {"$float": value.hex()}
    if isinstance(value, torch.Tensor):
        _put(value.detach(), name, tensors)
        return {"$tensor": name} if value.device == home else {"$tensor": name, "device": str(value.device)}
    if kind in MAPPINGS:
        return _encode_mapping(value, name, tensors, home)
    if kind is list or kind in SEQUENCES or kind is deque:
        items = sorted(value, key=repr) if kind in (set, frozenset) else value
        found = [_encode(item, f"{name}/{place}", tensors, home) for place, item in enumerate(items)]
        if kind is deque:
            return {"$deque": [*found, value.maxlen]}
        return found if kind is list else {SEQUENCES[kind]: found}
    if isinstance(value, np.ndarray | np.generic):
        return _encode_numpy(value, name, tensors)
    if kind is bytes:
        return {"$bytes": value.hex()}
    if kind is complex:
        return {"$complex": [value.real.hex(), value.imag.hex()]}
    if kind in (torch.dtype, torch.device):
        return {f"${kind.__name__}": str(value).removeprefix("torch.")}
    raise UnsupportedError(
        f"{name} is a {kind.__module__}.{kind.__qualname__}, which a checkpoint without pickle cannot hold",
        hint="have state_dict() return numbers, text, lists, dicts, arrays and tensors alone",
    )


def _encode_mapping(value: Any, name: str, tensors: dict[str, torch.Tensor], home: torch.device) -> Any:
    kind = type(value)
    if kind is dict and all(type(key) is str and not key.startswith("$") for key in value):
        return {key: _encode(item, f"{name}/{key}", tensors, home) for key, item in value.items()}
    pairs = [
        [_encode(key, f"{name}/(key)", tensors, home), _encode(item, f"{name}/{key}", tensors, home)]
        for key, item in value.items()
    ]
    return {MAPPINGS[kind]: pairs}


def _encode_numpy(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    code = value.dtype.str
    if not NUMPY.fullmatch(code) or type(value) not in (np.ndarray, value.dtype.type):
        raise UnsupportedError(f"{name} is a numpy {type(value).__name__} of {value.dtype}, which cannot be saved")
    if isinstance(value, np.generic):
        return {"$scalar": value.tobytes().hex(), "numpy": code}
    data = torch.from_numpy(np.frombuffer(bytearray(value.tobytes()), np.uint8))
    _put(data, name, tensors)
    return {"$array": name, "numpy": code, "shape": list(value.shape)}


def _put(tensor: torch.Tensor, name: str, tensors: dict[str, torch.Tensor]) -> None:
    if name in tensors:
        raise UnsupportedError(f"{name} would name two tensors: keys differ in their type alone, or hold a /")
    tensors[name] = tensor
