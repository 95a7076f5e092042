"""Python values as JSON and named tensors, and back: exact, and without pickle. Format: `docs/format.md`, "Trees".

What JSON holds exactly stands for itself; any other value is an object whose first key begins with `$`. The tensors of
a value stay where they are, and go by names that tell their places in it: `state/shadow/0`.
"""

import re
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from holdfast.errors import CheckpointError, UnsupportedError
from holdfast.state.part import LoadedTensors
from holdfast.text import quoted

CPU = torch.device("cpu")
"""The device of tensors of whose device nothing is said."""

# The kinds of numpy's that are their bytes and nothing else.
_NUMPY_CODE = re.compile(r"[<>|]?(?:[biufc][0-9]{1,2}|[mM]8(?:\[[0-9]{0,9}[a-zA-Z]{1,2}\])?)")
# The containers that have a form of their own, and its key.
_SEQUENCES: dict[type, str] = {tuple: "$tuple", set: "$set", frozenset: "$frozenset", torch.Size: "$size"}
_MAPPINGS: dict[type, str] = {dict: "$dict", OrderedDict: "$ordered", Counter: "$counter"}
_BIGGEST = 1 << 63
_MOST_DIGITS = 4096
_INT = re.compile(f"-?0x[0-9a-f]{{1,{_MOST_DIGITS}}}")
# Most of what there is; a call for each would be most of what a snapshot costs.
_LEAVES = frozenset((type(None), bool, int, float, str))


def encode(value: Any, name: str, tensors: dict[str, torch.Tensor], home: torch.device = CPU) -> Any:
    """Turns a value into JSON.

    Args:
        value: The value.
        name: Its name; its tensors' names begin so.
        tensors: Takes its tensors. They are not copied.
        home: The device of which nothing is said, as a tensor is expected there.

    Raises:
        UnsupportedError: It holds something that has no form; the error names the place and the type.
    """
    try:
        return _encode(value, name, tensors, home)
    except RecursionError:
        raise UnsupportedError(f"{name} is too deep to be saved, or holds itself") from None


def decode(encoded: Any, tensors: Mapping[str, torch.Tensor], home: torch.device = CPU) -> Any:
    """Turns JSON of `encode` back into the value. Its tensors share memory with those alone that were claimed for it.

    Args:
        encoded: The JSON. Anybody may have written it.
        tensors: The tensors that it may speak of. Those of `LoadedTensors` that are free are claimed, others copied.
        home: The device of tensors of whose device nothing is said.

    Raises:
        CheckpointError: It is no such JSON, or a tensor is missing.
    """
    try:
        return _decode(encoded, tensors, home)
    except CheckpointError:
        raise
    except RecursionError:
        raise CheckpointError("a tree of values is too deep to be read") from None
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"a tree of values cannot be read: {error or type(error).__name__}") from error


def live(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor in its own memory, for `snapshot`: what is written to it later shows."""
    return tensor.detach()


def cloned(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a copy of a tensor, for `snapshot`."""
    return tensor.detach().clone()


def snapshot(value: Any, copy: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Returns a copy in which later changes do not show, cheap enough for every step.

    Args:
        value: The value. What `encode` has no form for is not copied.
        copy: Gives what stands for a tensor: `live`, `cloned`, or one or the other.
    """
    kind = type(value)
    if kind is dict:
        return {key: item if type(item) in _LEAVES else snapshot(item, copy) for key, item in value.items()}
    if kind is list:
        return [item if type(item) in _LEAVES else snapshot(item, copy) for item in value]
    if kind is tuple:
        return tuple([item if type(item) in _LEAVES else snapshot(item, copy) for item in value])
    if isinstance(value, torch.Tensor):
        return copy(value)
    if kind is OrderedDict:
        return OrderedDict((key, snapshot(item, copy)) for key, item in value.items())
    if kind is deque:
        return deque((snapshot(item, copy) for item in value), value.maxlen)
    if kind in (set, Counter, np.ndarray):
        return value.copy()
    return value


def tensors_in(value: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the tensors in a value, by the names that `encode` gives them. What has no form is passed over."""
    if isinstance(value, torch.Tensor):
        yield name, value
        return
    for part, item in _children(value):
        yield from tensors_in(item, f"{name}/{_written(part, str)}")


def tensor_names(encoded: Any) -> Iterator[str]:
    """Yields the names of the tensors that JSON speaks of, which anybody may have written."""
    waiting = [encoded]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield from (name for form in ("$tensor", "$array") if isinstance(name := item.get(form), str))
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item


def tensor_devices(encoded: Any) -> Iterator[tuple[str, Any]]:
    """Yields the names of tensors that JSON speaks of, and their devices there: none for those that were at home."""
    waiting = [encoded]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if isinstance(name := item.get("$tensor"), str):
                yield name, item.get("device")
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item


def renamed(encoded: Any, rename: Callable[[str], str]) -> Any:
    """Returns JSON of `encode` with other names of its tensors."""
    if isinstance(encoded, list):
        return [renamed(item, rename) for item in encoded]
    if not isinstance(encoded, dict):
        return encoded
    names = {form: rename(name) for form in ("$tensor", "$array") if isinstance(name := encoded.get(form), str)}
    return {key: names[key] if key in names else renamed(item, rename) for key, item in encoded.items()}


def _encode(value: Any, name: str, tensors: dict[str, torch.Tensor], home: torch.device) -> Any:
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is int:
        return value if -_BIGGEST <= value < _BIGGEST else _encode_int(value, name)
    if kind is float:
        return {"$float": value.hex()}
    if isinstance(value, torch.Tensor):
        if name in tensors:
            raise _names_two(name)
        tensors[name] = value.detach()
        form = {"$tensor": name} if value.device == home else {"$tensor": name, "device": str(value.device)}
        if type(value) is torch.Tensor and value.layout == torch.strided and not value.is_contiguous():
            # A product of matrices is rounded otherwise when they lie otherwise.
            strides = list(value.stride())
            return {**form, "strides": strides} if is_gapless(value.shape, strides) else form
        return form
    if kind in _MAPPINGS:
        return _encode_mapping(value, name, tensors, home)
    if kind is list or kind in _SEQUENCES or kind is deque:
        items = sorted(value, key=_written) if kind in (set, frozenset) else value
        encoded = []
        for index, item in enumerate(items):
            encoded.append(_encode(item, f"{name}/{index}", tensors, home))
        if kind is deque:
            return {"$deque": [*encoded, value.maxlen]}
        return encoded if kind is list else {_SEQUENCES[kind]: encoded}
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


def _encode_int(value: int, name: str) -> dict[str, str]:
    if not _INT.fullmatch(text := hex(value)):
        digits = len(text) - 2 - (value < 0)
        raise UnsupportedError(
            f"{name} is a whole number of {digits:,} hexadecimal digits, and a checkpoint takes {_MOST_DIGITS:,}",
            hint="have state_dict() give it as bytes",
        )
    return {"$int": text}


def _decode_int(text: Any) -> int:
    if not isinstance(text, str) or not _INT.fullmatch(text):
        raise CheckpointError("a tree of values holds a whole number that is none, or is too long")
    return int(text, 16)


def _written(key: Any, write: Callable[[Any], str] = repr) -> str:
    """Returns a key as text. Python writes out no whole number of more than 4,300 digits."""
    try:
        return write(key)
    except ValueError:
        return "(number)"


def _encode_mapping(value: Any, name: str, tensors: dict[str, torch.Tensor], home: torch.device) -> Any:
    kind = type(value)
    if kind is dict and all(type(key) is str and not key.startswith("$") for key in value):
        encoded = {}
        for key, item in value.items():
            encoded[key] = _encode(item, f"{name}/{key}", tensors, home)
        return encoded
    pairs = []
    for key, item in value.items():
        pairs.append(
            [_encode(key, f"{name}/(key)", tensors, home), _encode(item, f"{name}/{_written(key, str)}", tensors, home)]
        )
    return {_MAPPINGS[kind]: pairs}


def _encode_numpy(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    code = value.dtype.str
    if not _NUMPY_CODE.fullmatch(code) or type(value) not in (np.ndarray, value.dtype.type):
        raise UnsupportedError(f"{name} is a numpy {type(value).__name__} of {value.dtype}, which cannot be saved")
    if isinstance(value, np.generic):
        return {"$scalar": value.tobytes().hex(), "numpy": code}
    data = torch.from_numpy(np.frombuffer(bytearray(value.tobytes()), np.uint8))
    if name in tensors:
        raise _names_two(name)
    tensors[name] = data
    return {"$array": name, "numpy": code, "shape": list(value.shape)}


def _names_two(name: str) -> UnsupportedError:
    return UnsupportedError(f"{name} would name two tensors: keys differ in their type alone, or hold a /")


def _children(value: Any) -> Iterable[tuple[Any, Any]]:
    kind = type(value)
    if kind in _MAPPINGS:
        return value.items()  # type: ignore[no-any-return]
    return enumerate(value) if kind in (list, tuple, deque) else ()


def _decode(encoded: Any, tensors: Mapping[str, torch.Tensor], home: torch.device) -> Any:
    if encoded is None or isinstance(encoded, bool | int | str):
        return encoded
    if isinstance(encoded, list):
        return [_decode(item, tensors, home) for item in encoded]
    if not isinstance(encoded, dict):
        raise CheckpointError(f"a tree of values holds {quoted(encoded)}, which is none of its forms")
    key = next(iter(encoded), "")
    if not key.startswith("$"):
        return {key: _decode(item, tensors, home) for key, item in encoded.items()}
    form = _FORMS.get(key)
    if form is None:
        raise CheckpointError(f"a tree of values holds the form {quoted(key)}, which this Holdfast does not know")
    return form(encoded, encoded[key], tensors, home)


def _decode_tensor(encoded: Any, name: Any, tensors: Mapping[str, torch.Tensor], home: torch.device) -> Any:
    tensor = _tensor_named(name, tensors)
    claimed = tensors.claim(name) if isinstance(tensors, LoadedTensors) else None
    own = (tensor.clone() if claimed is None else claimed).to(_device(encoded.get("device"), home))
    strides = encoded.get("strides")
    if strides is None:
        return own
    if own.layout != torch.strided or not is_gapless(own.shape, strides):
        raise CheckpointError(f"the tensor {quoted(name)} cannot have the strides {quoted(strides)}")
    return torch.empty_strided(own.shape, strides, dtype=own.dtype, device=own.device).copy_(own)


def is_gapless(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Tells if elements lie side by side, in whichever order."""
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _decode_array(encoded: Any, name: Any, tensors: Mapping[str, torch.Tensor], home: torch.device) -> Any:
    data = _tensor_named(name, tensors).cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return np.frombuffer(bytearray(data), _numpy_dtype(encoded["numpy"])).reshape(encoded["shape"])


def _tensor_named(name: Any, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    if name not in tensors:
        raise CheckpointError(f"the tensor {quoted(name)} is missing")
    return tensors[name]


def _device(named: Any, home: torch.device) -> torch.device:
    """Returns the device that a tensor goes to: the one that it was on, or one of that kind, where there is one."""
    if named is None:
        return home
    device = torch.device(named)
    if device.type == home.type:
        return home
    exists = device.type == "cpu" or (device.type == "cuda" and (device.index or 0) < torch.cuda.device_count())
    return device if exists else home


def _numpy_dtype(code: Any) -> "np.dtype[Any]":
    if not _NUMPY_CODE.fullmatch(code):
        raise CheckpointError(f"{code!r} is no kind of numpy's that a checkpoint may hold")
    dtype: np.dtype[Any] = np.dtype(code)
    return dtype


def _torch_dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"{quoted(name)} is no torch.dtype")
    return dtype


def _sequence(make: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda _, items, tensors, home: make([_decode(item, tensors, home) for item in items])


def _mapping(make: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda _, pairs, tensors, home: make(
        {_decode(key, tensors, home): _decode(item, tensors, home) for key, item in pairs}
    )


# By the key of a form: makes the value of the object, what is under the key, the tensors, and their home.
_FORMS: dict[str, Callable[..., Any]] = {
    "$tensor": _decode_tensor,
    "$array": _decode_array,
    "$scalar": lambda encoded, text, *_: np.frombuffer(bytes.fromhex(text), _numpy_dtype(encoded["numpy"]))[0],
    "$float": lambda _, text, *__: float.fromhex(text),
    "$int": lambda _, text, *__: _decode_int(text),
    "$complex": lambda _, parts, *__: complex(*map(float.fromhex, parts)),
    "$bytes": lambda _, text, *__: bytes.fromhex(text),
    "$dtype": lambda _, text, *__: _torch_dtype(text),
    "$device": lambda _, text, *__: torch.device(text),
    "$deque": lambda _, items, tensors, home: deque(
        (_decode(item, tensors, home) for item in items[:-1]), _decode(items[-1], tensors, home)
    ),
    **{key: _sequence(kind) for kind, key in _SEQUENCES.items()},
    **{key: _mapping(kind) for kind, key in _MAPPINGS.items()},
}
