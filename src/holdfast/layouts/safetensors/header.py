"""The header of a safetensors file, read without any library: the verbs start in a tenth of its time.

The format: eight bytes, the length of the header, little-endian; the header, a JSON object; the tensors' bytes.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from holdfast.store.manifest import strict_json
from holdfast.text import quoted

_MOST_HEADER_BYTES = 100_000_000  # the library's own limit
_MOST_DIMENSIONS = 64  # torch's own limit
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


class HeaderError(ValueError):
    """A file that is no safetensors file, whatever its name says."""


@dataclass(frozen=True)
class Tensor:
    """One tensor, as the header describes it. `offset` is where its bytes begin in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    offset: int


@dataclass(frozen=True)
class Header:
    """The beginning of a file.

    Args:
        text: Its bytes, up to those of the tensors.
        tensors: The tensors that it describes, by name.
        metadata: All else that it says.
    """

    text: bytes
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def read(fd: int) -> list[Tensor]:
    """Returns the tensors of an open file, ordered by name. Raises as `header_of` does."""
    return [tensor for _, tensor in sorted(header_of(fd).tensors.items())]


def header_of(fd: int) -> Header:
    """Reads the header of an open file, which may have been written by anybody.

    Raises:
        HeaderError: The file is cut short, or its header breaks a rule of the format.
        OSError: It cannot be read.
    """
    size = os.fstat(fd).st_size
    length = int.from_bytes(exactly(fd, 8, 0), "little")
    if length > min(_MOST_HEADER_BYTES, size - 8):
        raise HeaderError(f"its header is said to have {length:,} bytes, and the file has {size:,}")
    text = bytes(exactly(fd, 8 + length, 0))
    try:
        header = strict_json(text[8:])
    except ValueError as error:
        raise HeaderError(f"its header is not valid JSON: {error}") from error
    if not isinstance(header, dict):
        raise HeaderError("its header is no object")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise HeaderError("its header has metadata that is not text")
    tensors = {}
    for name, entry in header.items():
        tensors[name] = _tensor(name, entry, 8 + length, size)
    end = 8 + length
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.bytes)):
        if tensor.offset != end:
            raise HeaderError(f"the bytes of {quoted(tensor.name)} do not begin where those before it end")
        end += tensor.bytes
    if end != size:
        raise HeaderError(f"it has {size - end:,} bytes that belong to no tensor")
    return Header(text, tensors, metadata)


def exactly(fd: int, count: int, offset: int) -> bytearray:
    """Reads `count` bytes at a place.

    Raises:
        HeaderError: The file ends before.
    """
    data = bytearray()
    while len(data) < count:
        part = os.pread(fd, min(count - len(data), 1 << 24), offset + len(data))
        if not part:
            raise HeaderError("it is cut short")
        data += part
    return data


def _tensor(name: str, entry: Any, start: int, size: int) -> Tensor:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise HeaderError(f"its header describes {quoted(name)} in another way than the format has it")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not _counts(shape) or not _counts(offsets):
        raise HeaderError(f"its header describes {quoted(name)} in another way than the format has it")
    if len(shape) > _MOST_DIMENSIONS or len(offsets) != 2:
        raise HeaderError(f"its header gives {quoted(name)} {len(shape)} dimensions and {len(offsets)} ends")
    begin, end = offsets
    if not begin <= end <= size - start:
        raise HeaderError(f"the bytes of {quoted(name)} lie outside the file")
    if dtype in _BITS and math.prod(shape) * _BITS[dtype] != (end - begin) * 8:
        raise HeaderError(f"{quoted(name)} has {end - begin:,} bytes, which do not fit its shape and type")
    return Tensor(name, dtype, tuple(shape), end - begin, start + begin)


def _counts(value: Any) -> bool:
    if not isinstance(value, list) or not set(map(type, value)) <= {int}:
        return False
    return min(value, default=0) >= 0 and max(value, default=0) < 2**63
