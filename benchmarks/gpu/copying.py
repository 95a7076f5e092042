"""A saver that only copies and writes: nobody who copies to the host before the next update can be much better.

One locked arena, made before training; copies in a stream of its own from the boundary on; the gate waits for their
event; four threads write past the page cache. It neither digests nor commits, and cannot be resumed from.
"""

import os
import threading
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.card import Card
from benchmarks.gpu.locked import HostMemory
from benchmarks.peers.saver import Saver
from benchmarks.states import State

_ALIGNED = 4096
_HUGE = 2 << 20
_PIECE = 64 << 20
_BLOCK = 16 << 20
_WRITERS = 4


class CopyAndWrite(Saver):
    """The saver."""

    title = "only copies and writes"
    package = "torch"

    def __init__(self, state: State, folder: Path) -> None:
        super().__init__(state, folder)
        self._card = Card(state.device.type)
        self._stream = self._card.stream()
        self._copied: object | None = None
        self._enqueued = threading.Event()
        self._tensors = [tensor.detach() for _, tensor in state.tensors() if tensor.device == state.device]
        size = sum(-(-tensor.nbytes // _ALIGNED) * _ALIGNED for tensor in self._tensors)
        self._memory = HostMemory(-(-size // _HUGE) * _HUGE, state.device.type)
        # One registration: a copy must not span two.
        self._memory.make(self._memory.size)
        self._path = folder
        self._end = 0

    def save(self, number: int) -> Path:
        """Enqueues all copies behind what training has enqueued."""
        self._path = self.folder / str(number)
        boundary = self._card.event()
        self._stream.wait_event(boundary)
        offset = 0
        with self._card.on(self._stream):
            for tensor in self._tensors:
                data = tensor.contiguous().reshape(-1).view(torch.uint8)
                self._memory.tensor[offset : offset + data.numel()].copy_(data, non_blocking=True)
                offset += -(-data.numel() // _ALIGNED) * _ALIGNED
            self._copied = self._card.event()
        self._end = offset
        return self._path

    def gate(self) -> None:
        """Waits for the copies."""
        copied = self._copied
        if copied is not None:
            self._copied = None
            copied.synchronize()  # type: ignore[attr-defined]
            self._enqueued.set()

    def wait(self) -> None:
        """Writes when the gate is open, and syncs."""
        self._enqueued.wait()
        self._enqueued.clear()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            descriptor = os.open(self._path, flags | os.O_DIRECT, 0o600)
        except OSError:  # a file system without
            descriptor = os.open(self._path, flags, 0o600)
        threads = [threading.Thread(target=self._write, args=(descriptor, which)) for which in range(_WRITERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os.fsync(descriptor)
        os.close(descriptor)

    def _write(self, descriptor: int, which: int) -> None:
        data: Any = self._memory.tensor.numpy()
        view = memoryview(data)
        for offset in range(which * _BLOCK, self._end, _WRITERS * _BLOCK):
            done, end = offset, min(offset + _BLOCK, self._end)
            while done < end:
                done += os.pwrite(descriptor, view[done:end], done)
