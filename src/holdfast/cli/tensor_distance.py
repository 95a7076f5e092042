"""Measures how far apart two tensors of one type and shape are, read piece by piece from their files."""

import math
from collections.abc import Callable
from dataclasses import dataclass

Reader = Callable[[int, int], bytearray]
"""Returns bytes of a tensor: from an offset on, so many."""

_PIECE = 16 << 20  # bytes, a multiple of every element's


@dataclass(frozen=True)
class Distance:
    """The distance of two tensors, A and B. None of a type that torch does not count with."""

    greatest: float | None
    """The greatest absolute difference of two elements."""

    relative: float | None
    """The norm of A - B over that of A."""


def distance(a: Reader, b: Reader, dtype: str, size: int) -> Distance | None:
    """Compares two tensors of one type and size in bytes. None where their bytes are the same."""
    total = None
    for at in range(0, size, _PIECE):
        count = min(_PIECE, size - at)
        here, there = a(at, count), b(at, count)
        if total is None and here != there:
            total = _Sum(dtype)
            # What came before was the same in both, and counts for the norm.
            for before in range(0, at, _PIECE):
                known = a(before, _PIECE)
                total.add(known, known)
        if total is not None:
            total.add(here, there)
    return None if total is None else total.distance()


class _Sum:
    def __init__(self, dtype: str) -> None:
        import torch

        of_ours = {
            "F64": torch.float64,
            "F32": torch.float32,
            "F16": torch.float16,
            "BF16": torch.bfloat16,
            "F8_E4M3": torch.float8_e4m3fn,
            "F8_E5M2": torch.float8_e5m2,
            "I64": torch.int64,
            "I32": torch.int32,
            "I16": torch.int16,
            "I8": torch.int8,
            "U8": torch.uint8,
            "U16": torch.uint16,
            "U32": torch.uint32,
            "U64": torch.uint64,
            "BOOL": torch.bool,
            "C64": torch.complex64,
        }
        self._dtype = of_ours.get(dtype)
        self._greatest = 0.0
        self._squares = 0.0
        self._squares_of_a = 0.0

    def add(self, here: bytearray, there: bytearray) -> None:
        if self._dtype is None:
            return
        import torch

        wide = torch.complex128 if self._dtype.is_complex else torch.float64
        a, b = (torch.frombuffer(piece, dtype=self._dtype).to(wide) for piece in (here, there))
        alike = (a == b) | (a.isnan() & b.isnan())  # infinities too, whose difference is no number
        apart = torch.where(alike, 0.0, a - b).abs()
        greatest = float(apart.max())
        if greatest > self._greatest or math.isnan(greatest):
            self._greatest = greatest
        self._squares += float((apart * apart).sum())
        size = torch.where(alike & ~a.isfinite(), 0.0, a).abs()
        self._squares_of_a += float((size * size).sum())

    def distance(self) -> Distance:
        if self._dtype is None:
            return Distance(None, None)
        if not self._squares:
            return Distance(self._greatest, 0.0)  # a zero of the other sign, or another NaN
        relative = math.sqrt(self._squares / self._squares_of_a) if self._squares_of_a else math.inf
        return Distance(self._greatest, relative)
