"""Python's and numpy's global Mersenne twisters, read by copying their memory.

Their own getters build 624 Python numbers or a dictionary of arrays: 14 and 63 µs, where the copies take one. Where the
state lies is found once, in a generator whose state is known, and then compared with what the getter says of the global
one. Where anything about that is not as expected, the getters are used.
"""

import ctypes
import random
import struct
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.random.mtrand import get_bit_generator

WORDS = 624
_KEY_BYTES = 4 * WORDS
_PYTHON = struct.Struct(f"=i{WORDS}I")
_GAUSS = struct.Struct("@id")


class Mt19937State(NamedTuple):
    """The state of one Mersenne twister."""

    key: bytes
    """Its words, in the byte order of the machine."""
    position: int
    """The word that comes next; 624 when new ones must be made first."""
    gauss: float | None
    """The second of a pair of normal numbers, when the first was drawn alone."""


class PythonReader:
    """Reads the state of `random`."""

    def __init__(self) -> None:
        self._generator = random._inst
        self._window: ctypes.Array[ctypes.c_char] | None = None
        offset = _offset_in_python()
        if offset is not None:
            self._window = (ctypes.c_char * _PYTHON.size).from_address(id(self._generator) + offset)
            if self.read() != self.read_slowly():
                self._window = None

    def read(self) -> Mt19937State:
        """Reads the state as of now."""
        if self._window is None:
            return self.read_slowly()
        raw = self._window.raw
        return Mt19937State(raw[4:], int.from_bytes(raw[:4], sys.byteorder), self._generator.gauss_next)  # type: ignore[attr-defined]

    def read_slowly(self) -> Mt19937State:
        """Reads the same by the getter."""
        _, state, gauss = self._generator.getstate()
        return Mt19937State(struct.pack(f"={WORDS}I", *state[:-1]), state[-1], gauss)


class NumpyReader:
    """Reads the state of `numpy.random`."""

    def __init__(self) -> None:
        self._attach()

    def read(self) -> Mt19937State | Mapping[str, Any]:
        """Reads the state as of now; numpy's own dictionary where the bit generator is no Mersenne twister."""
        if get_bit_generator() is not self._bit_generator:
            self._attach()
        return self.read_slowly() if self._key is None else self._copy_of(self._key)

    def read_slowly(self) -> Mt19937State | Mapping[str, Any]:
        """Reads the same by the getter."""
        state: Any = np.random.mtrand._rand.get_state(legacy=False)
        if state["bit_generator"] != "MT19937":
            return dict(state)
        gauss = state["gauss"] if state["has_gauss"] else None
        return Mt19937State(state["state"]["key"].astype(np.uint32).tobytes(), state["state"]["pos"], gauss)

    def _attach(self) -> None:
        """Finds the memory of the bit generator that `numpy.random` has now."""
        self._bit_generator = get_bit_generator()
        self._key: ctypes.Array[ctypes.c_char] | None = None
        offset = _offset_of_numpy_gauss()
        if offset is None or not isinstance(self._bit_generator, np.random.MT19937):
            return
        address = self._bit_generator.ctypes.state_address
        self._key = (ctypes.c_char * (_KEY_BYTES + 4)).from_address(address)
        self._gauss = (ctypes.c_char * _GAUSS.size).from_address(id(np.random.mtrand._rand) + offset)
        if self._copy_of(self._key) != self.read_slowly():
            self._key = None

    def _copy_of(self, window: "ctypes.Array[ctypes.c_char]") -> Mt19937State:
        raw = window.raw
        has_gauss, gauss = _GAUSS.unpack(self._gauss.raw)
        position = int.from_bytes(raw[_KEY_BYTES:], sys.byteorder)
        return Mt19937State(raw[:_KEY_BYTES], position, gauss if has_gauss else None)


def _offset_in_python() -> int | None:
    """Finds the place in a `random.Random` of its position, which its words follow."""
    if sys.implementation.name != "cpython":
        return None
    import _random

    probe = random.Random(1)
    probe.random()
    state = probe.getstate()[1]
    memory = ctypes.string_at(id(probe), _random.Random.__basicsize__)
    offset = memory.find(_PYTHON.pack(state[-1], *state[:-1]))
    return offset if offset >= 0 else None


def _offset_of_numpy_gauss() -> int | None:
    """Finds the place in a `RandomState` of the flag that it has the second of a pair, which follows."""
    if sys.implementation.name != "cpython":
        return None
    probe = np.random.RandomState(1)
    probe.standard_normal()
    state: Any = probe.get_state(legacy=False)
    size = np.random.RandomState.__basicsize__
    number = struct.pack("d", state["gauss"])
    memory = ctypes.string_at(id(probe), size)
    offset = memory.find(number) - (_GAUSS.size - 8)
    if offset < 0 or memory.count(number) != 1 or _GAUSS.unpack_from(memory, offset) != (1, state["gauss"]):
        return None
    probe.standard_normal()
    return offset if _GAUSS.unpack_from(ctypes.string_at(id(probe), size), offset)[0] == 0 else None
