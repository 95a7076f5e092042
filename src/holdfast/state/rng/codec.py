"""The states of random generators as values for JSON, and back.

Anybody may have written what is decoded. A state that its generator could not go on from is refused here, because not
every generator looks at what it is given.
"""

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from holdfast.errors import CheckpointError
from holdfast.state.rng.mt19937 import WORDS, Mt19937State

_BIT_GENERATORS = ("PCG64", "PCG64DXSM", "Philox", "SFC64")
_PHILOX_BUFFER = 4
_TWISTER = struct.Struct("=QiiQ")
_TWISTER_BYTES = torch.default_generator.get_state().numel()
_PHILOX_BYTES = 16


def encode_mt19937(state: Mt19937State) -> dict[str, Any]:
    """Encodes a Mersenne twister of Python or numpy, its words in little-endian order."""
    return {
        "key": np.frombuffer(state.key, np.uint32).astype("<u4").tobytes().hex(),
        "position": state.position,
        "gauss": None if state.gauss is None else float(state.gauss).hex(),
    }


def encode_numpy(state: Any) -> Any:
    """Encodes what `numpy.random` has: a Mersenne twister, or numpy's own dictionary for another bit generator."""
    if isinstance(state, Mt19937State):
        return encode_mt19937(state)
    if isinstance(state, Mapping):
        return {key: encode_numpy(value) for key, value in state.items()}
    if isinstance(state, np.ndarray):
        return [int(number) for number in state]
    return float(state).hex() if isinstance(state, float) else state


def encode_torch(state: torch.Tensor) -> str:
    """Encodes a generator of torch, on any device."""
    return state.numpy().tobytes().hex()


def member(encoded: Any, key: str, kind: type) -> Any:
    """Returns a member of an object of JSON, which must be of a kind.

    Raises:
        CheckpointError: It is missing, or of another kind.
    """
    value = encoded.get(key) if isinstance(encoded, Mapping) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _bad(key, f"is not what it should be, a {kind.__name__}")
    return value


def decode_mt19937(encoded: Mapping[str, Any], what: str) -> Mt19937State:
    """Decodes what `encode_mt19937` gave."""
    raw = _bytes(encoded.get("key"), f"{what}.key")
    if len(raw) != 4 * WORDS:
        raise _bad(f"{what}.key", f"has {len(raw)} bytes, not {4 * WORDS}")
    position = member(encoded, "position", int)
    # numpy takes any position, and then reads past the end of its words.
    if not 0 <= position <= WORDS:
        raise _bad(f"{what}.position", f"is {position}, not between 0 and {WORDS}")
    gauss = encoded.get("gauss")
    key = np.frombuffer(raw, "<u4").astype(np.uint32).tobytes()
    return Mt19937State(key, position, None if gauss is None else _float(gauss, f"{what}.gauss"))


def decode_numpy(encoded: Mapping[str, Any]) -> Mt19937State | dict[str, Any]:
    """Decodes what `encode_numpy` gave."""
    if "bit_generator" not in encoded:
        return decode_mt19937(encoded, "numpy")
    name = encoded["bit_generator"]
    if name not in _BIT_GENERATORS:
        raise _bad("numpy.bit_generator", "is none that numpy has")
    # numpy takes any position here too.
    if name == "Philox" and not 0 <= member(encoded, "buffer_pos", int) <= _PHILOX_BUFFER:
        raise _bad("numpy.buffer_pos", f"is not between 0 and {_PHILOX_BUFFER}")
    try:
        state = {key: _arrays(value) for key, value in encoded.items()}
        state["gauss"] = _float(encoded.get("gauss"), "numpy.gauss")
        np.random.RandomState(getattr(np.random, name)()).set_state(state)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _bad("numpy", f"is no state of a {name}") from error
    return state


def decode_torch(text: Any, what: str) -> torch.Tensor:
    """Decodes what `encode_torch` gave of a CPU's generator or of a CUDA device's."""
    is_philox = isinstance(text, str) and len(text) == 2 * _PHILOX_BYTES
    return decode_torch_cuda(text, what) if is_philox else decode_torch_cpu(text, what)


def decode_torch_cpu(text: Any, what: str) -> torch.Tensor:
    """Decodes what `encode_torch` gave of a CPU's generator."""
    raw = _bytes(text, what)
    if len(raw) != _TWISTER_BYTES:
        raise _bad(what, f"has {len(raw)} bytes, not {_TWISTER_BYTES}")
    state = _tensor(raw)
    try:
        torch.Generator().set_state(state)
    except RuntimeError as error:
        raise _bad(what, "is no state of a torch generator") from error
    _, left, _, position = _TWISTER.unpack_from(raw)
    # torch looks at each of the two alone, and would read past the end of its words.
    if left + position > WORDS + 1:
        raise _bad(what, "points past the end of its words")
    return state


def decode_torch_cuda(text: Any, what: str) -> torch.Tensor:
    """Decodes what `encode_torch` gave of a CUDA device's generator: seed and offset."""
    raw = _bytes(text, what)
    if len(raw) != _PHILOX_BYTES or int.from_bytes(raw[8:], "little") % 4:
        raise _bad(what, "is no state of a CUDA generator")
    return _tensor(raw)


def _tensor(raw: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8)


def _arrays(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _arrays(item) for key, item in value.items()}
    return np.array(value, np.uint64) if isinstance(value, list) else value


def _bytes(text: Any, what: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except (TypeError, ValueError):
        raise _bad(what, "is not hexadecimal text") from None


def _float(text: Any, what: str) -> float:
    try:
        return float.fromhex(text)
    except (TypeError, ValueError, OverflowError):
        raise _bad(what, "is no float") from None


def _bad(what: str, why: str) -> CheckpointError:
    return CheckpointError(f"the checkpoint's random state: {what} {why}", hint="resume from another checkpoint")
