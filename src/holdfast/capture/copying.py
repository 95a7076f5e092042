"""Copies of live bytes into resident memory, and the tensors of which they can be made while training goes on."""

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from holdfast.capture.chunks import Chunk, ChunkPart, Sources, bytes_of
from holdfast.capture.staging import Pool
from holdfast.devices.arena import Block


class Copier:
    """Copies live bytes; one for each thread. On CUDA through a stream of its own, beside that of training.

    Args:
        pool: The memory to read a second time into, on CUDA.
        after: On CUDA, the event that comes before anything may be read.
    """

    def __init__(self, pool: Pool, after: torch.cuda.Event | None) -> None:
        self._pool = pool
        self._after = after
        self._stream: torch.cuda.Stream | None = None

    def copy(self, sources: Sources, chunk: Chunk, block: Block) -> None:
        """Fills a block."""
        for part in chunk.parts:
            source, end = sources.memory[part.piece], part.place + part.size
            if isinstance(source, memoryview):
                block.view[part.place : end] = source[part.begin : part.begin + part.size]
            elif source.device.type == "cuda":
                self._from_device(source, part, block)
            else:
                ctypes.memmove(block.address + part.place, source.data_ptr() + part.begin, part.size)
        if self._stream is not None:
            self._stream.synchronize()

    @contextmanager
    def read_again(self, sources: Sources, chunk: Chunk) -> Iterator[Sequence[memoryview]]:
        """Gives the bytes of a chunk's parts as they are now; to be used inside the context."""
        if sources.on_device:
            with self._pool.scratch() as scratch:
                self.copy(sources, chunk, scratch)
                yield parts_of(chunk, scratch)
        else:
            yield [_bytes_now(sources.memory[part.piece], part) for part in chunk.parts]

    def _from_device(self, tensor: torch.Tensor, part: ChunkPart, block: Block) -> None:
        if self._stream is None:
            self._stream = torch.cuda.Stream(tensor.device)  # type: ignore[no-untyped-call]
            if self._after is not None:
                self._stream.wait_event(self._after)
        flat = bytes_of(tensor)[part.begin : part.begin + part.size]
        with torch.cuda.stream(self._stream):
            block.tensor[part.place : part.place + part.size].copy_(flat, non_blocking=True)


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
