"""Copies of live bytes into resident memory: what one block of it holds, and how it is filled."""

import ctypes
from dataclasses import dataclass, field

import torch
import xxhash

from holdfast.capture.staging import Block, Pool


@dataclass(frozen=True)
class Part:
    """Bytes of one tensor, or bytes themselves, that go to a place in a block."""

    source: "bytes | torch.Tensor"
    begin: int
    place: int
    size: int
    name: str


@dataclass
class Unit:
    """What one block of memory holds of one file."""

    file: int
    offset: int
    size: int
    parts: list[Part]
    digests: list[int] = field(default_factory=list)
    """Of each part, as it was copied."""


class Copier:
    """Copies live bytes; one a thread. On CUDA through a stream of its own, so that training's goes on beside it."""

    def __init__(self, pool: Pool, after: torch.cuda.Event | None) -> None:
        self._pool = pool
        self._after = after
        self._stream: torch.cuda.Stream | None = None

    def copy(self, unit: Unit, block: Block) -> None:
        """Fills a block."""
        for part in unit.parts:
            if isinstance(part.source, bytes):
                end = part.place + part.size
                block.view[part.place : end] = part.source[part.begin : part.begin + part.size]
            elif part.source.device.type == "cuda":
                self._from_device(part, block)
            else:
                ctypes.memmove(block.address + part.place, part.source.data_ptr() + part.begin, part.size)
        if self._stream is not None:
            self._stream.synchronize()

    def digests(self, unit: Unit) -> list[int]:
        """The digests of what the bytes of the unit's parts are now."""
        if any(isinstance(part.source, torch.Tensor) and part.source.device.type == "cuda" for part in unit.parts):
            with self._pool.scratch() as scratch:
                self.copy(unit, scratch)
                return digests_of(unit, scratch)
        return [xxhash.xxh3_64_intdigest(_bytes_now(part)) for part in unit.parts]

    def _from_device(self, part: Part, block: Block) -> None:
        assert isinstance(part.source, torch.Tensor)
        device = part.source.device
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            if self._after is not None:
                self._stream.wait_event(self._after)
        flat = bytes_of(part.source)[part.begin : part.begin + part.size]
        with torch.cuda.stream(self._stream):
            block.tensor[part.place : part.place + part.size].copy_(flat, non_blocking=True)


def digests_of(unit: Unit, block: Block) -> list[int]:
    """The digests of a unit's parts in the block that they were copied into."""
    return [xxhash.xxh3_64_intdigest(block.view[part.place : part.place + part.size]) for part in unit.parts]


def _bytes_now(part: Part) -> "bytes | ctypes.Array[ctypes.c_char]":
    if isinstance(part.source, bytes):
        return part.source[part.begin : part.begin + part.size]
    return (ctypes.c_char * part.size).from_address(part.source.data_ptr() + part.begin)


def in_order(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself where its bytes lie in order; a copy where they do not (channels_last, a conjugate view)."""
    return tensor.detach().resolve_conj().resolve_neg().contiguous()


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor that lies in order, as a flat view."""
    return tensor.reshape(-1).view(torch.uint8)
