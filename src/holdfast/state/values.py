"""Python values as JSON and named tensors, and back. Exact, and without pickle. Format: `docs/format.md`, "Trees"."""

import re
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from holdfast.errors import CheckpointError, UnsupportedError
from holdfast.state.part import LoadedTensors

CPU = torch.device("cpu")
"""Where tensors are of whose device nothing is said."""

NUMPY = re.compile(r"[<>|]?(?:[biufc][0-9]{1,2}|[mM]8(?:\[[0-9]{0,9}[a-zA-Z]{1,2}\])?)")
"""The kinds of numpy's that are their bytes and nothing else."""

SEQUENCES: dict[type, str] = {tuple: "$tuple", set: "$set", frozenset: "$frozenset", torch.Size: "$size"}

MAPPINGS: dict[type, str] = {dict: "$dict", OrderedDict: "$ordered", Counter: "$counter"}
"""The containers that have a form of their own, and how it is marked."""

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


def decode(tree: Any, tensors: Mapping[str, torch.Tensor], home: torch.device = CPU) -> Any:
    """Turns JSON of `tree.encode` back into the value. Its tensors share memory with `LoadedTensors` ones alone.

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
    given = tensors.claim(name) if isinstance(tensors, LoadedTensors) else None
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
