"""Copies of live bytes into resident memory."""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from holdfast.capture.chunks import Chunk, ChunkPart, Sources, bytes_of
from holdfast.capture.staging import Block, Pool


class Copier:
    """Copies live bytes; one a thread. On CUDA through a stream of its own, so that training's goes on beside it."""

    def __init__(self, pool: Pool, after: torch.cuda.Event | None) -> None:
        self._pool = pool
        self._after = after
        self._stream: torch.cuda.Stream | None = None

    def copy(self, sources: Sources, chunk: Chunk, block: Block) -> None:
        """Fills a block."""
        for part in chunk.parts:
            held, end = sources.held[part.piece], part.place + part.size
            if isinstance(held, memoryview):
                block.view[part.place : end] = held[part.begin : part.begin + part.size]
            elif held.device.type == "cuda":
                self._from_device(held, part, block)
            else:
                ctypes.memmove(block.address + part.place, held.data_ptr() + part.begin, part.size)
        if self._stream is not None:
            self._stream.synchronize()

    @contextmanager
    def now(self, sources: Sources, chunk: Chunk) -> Iterator[Sequence[memoryview]]:
        """What the bytes of the unit's parts are now; to be used inside the context."""
        if sources.on_device:
            with self._pool.scratch() as scratch:
                self.copy(sources, chunk, scratch)
                yield parts_of(chunk, scratch)
        else:
            yield [_bytes_now(sources.held[part.piece], part) for part in chunk.parts]

    def _from_device(self, tensor: torch.Tensor, part: ChunkPart, block: Block) -> None:
        if self._stream is None:
            self._stream = torch.cuda.Stream(tensor.device)  # type: ignore[no-untyped-call]
            if self._after is not None:
                self._stream.wait_event(self._after)
        flat = bytes_of(tensor)[part.begin : part.begin + part.size]
        with torch.cuda.stream(self._stream):
            block.tensor[part.place : part.place + part.size].copy_(flat, non_blocking=True)


def parts_of(chunk: Chunk, block: Block) -> Sequence[memoryview]:
    """A unit's parts in the block that they were copied into."""
    return [block.view[part.place : part.place + part.size] for part in chunk.parts]


def _bytes_now(held: memoryview | torch.Tensor, part: ChunkPart) -> memoryview:
    if isinstance(held, memoryview):
        return held[part.begin : part.begin + part.size]
    return memoryview((ctypes.c_char * part.size).from_address(held.data_ptr() + part.begin)).cast("B")
