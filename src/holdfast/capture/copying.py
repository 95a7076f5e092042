"""Copies of live bytes of the host into resident memory, and the tensors that can be read while training goes on."""

import ctypes
from collections.abc import Mapping, Sequence

import torch

from holdfast.capture.chunks import Chunk, ChunkPart, Sources
from holdfast.devices.arena import Block


def copy(sources: Sources, chunk: Chunk, block: Block) -> None:
    """Fills a block with the bytes of a chunk."""
    for part in chunk.parts:
        source = sources.memory[part.piece]
        if isinstance(source, memoryview):
            block.view[part.place : part.place + part.size] = source[part.begin : part.begin + part.size]
        else:
            ctypes.memmove(block.address + part.place, source.data_ptr() + part.begin, part.size)


def parts_now(sources: Sources, chunk: Chunk) -> Sequence[memoryview]:
    """Returns the bytes of a chunk's parts as they are now, where they are."""
    return [_bytes_now(sources.memory[part.piece], part) for part in chunk.parts]


def parts_of(chunk: Chunk, block: Block) -> Sequence[memoryview]:
    """Returns a chunk's parts in the block that they were copied into."""
    return [block.view[part.place : part.place + part.size] for part in chunk.parts]


def _bytes_now(source: memoryview | torch.Tensor, part: ChunkPart) -> memoryview:
    if isinstance(source, memoryview):
        return source[part.begin : part.begin + part.size]
    return memoryview((ctypes.c_char * part.size).from_address(source.data_ptr() + part.begin)).cast("B")


def why_not_live(live: Mapping[str, torch.Tensor]) -> str:
    """Returns why a state can be read only while training stands still; empty if it can be at any time."""
    for name, tensor in live.items():
        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
        if not plain or tensor.device.type not in ("cpu", "cuda"):
            return f"{name} is a {type(tensor).__name__} of layout {tensor.layout} on {tensor.device}"
    return ""
