"""The threads that take filled slabs to the disk: each sleeps until a slab's copies are over, digests, and writes.

A slab is sixteen blocks, so that the interpreter, which training needs as well, is asked for once in 64 MiB and not for
each block (measured on an H200: 0.39 instead of 1.41 s lost for a save of 12 GB).
"""

import threading
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch

from holdfast.capture.hold import naming_loss
from holdfast.capture.nonfinite import NonFiniteScan
from holdfast.capture.slabs import FileSource, Slab, stretches_of
from holdfast.capture.staging import Pool
from holdfast.capture.throttle import Throttle
from holdfast.devices.arena import Block
from holdfast.devices.device import Device, Event
from holdfast.store.blocks import Sink

WRITERS = 4


class Scattered(NamedTuple):
    """Bytes that were gathered with others, and go to a place in a slab."""

    place: int
    gathered: torch.Tensor


class FilledSlab(NamedTuple):
    """A slab on its way.

    Args:
        slab: What is in it.
        block: Its memory.
        events: What must be over before it is filled.
        scattered: What goes into it yet, from elsewhere on the host.
    """

    slab: Slab
    block: Block
    events: Sequence[Event]
    scattered: Sequence[Scattered]


class SlabWriters:
    """The writers of one snapshot.

    Args:
        device: The device.
        pool: The memory that slabs go back to.
        sources: The pieces of each file.
        scan: The search for what is not finite, among those that are not looked at on a card.
        throttle: The limits to the writers.
        training_waits: Set while training waits at the gate.
        stopped: Set when the save has been given up, by whoever has seen an error.
    """

    def __init__(
        self,
        device: Device,
        pool: Pool,
        sources: Sequence[FileSource],
        scan: NonFiniteScan,
        throttle: Throttle,
        training_waits: threading.Event,
        stopped: threading.Event,
    ) -> None:
        self._device = device
        self._pool = pool
        self._sources = sources
        self._scan = scan
        self._throttle = throttle
        self._training_waits = training_waits
        self._stopped = stopped
        self._sinks: Sequence[Sink] = ()
        self._changed = threading.Condition()
        self._filled: deque[FilledSlab] = deque()
        self._unwritten = [len(source.chunks) for source in sources]
        self._ended = False
        self._error: BaseException | None = None
        self._threads: list[threading.Thread] = []
        self.all_copied = False
        """True when no card copies any more: none is asked."""

    def start(self, sinks: Sequence[Sink]) -> None:
        """Begins to write, to open files in the order of the sources."""
        self._sinks = sinks
        self._threads = [
            threading.Thread(target=self._write_all, name=f"holdfast-write-{number}", daemon=True)
            for number in range(WRITERS)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, filled: FilledSlab) -> None:
        """Takes in the next slab; its memory is given back when it is written, or will not be."""
        with self._changed:
            self._filled.append(filled)
            self._changed.notify()

    def finish(self) -> None:
        """Returns when all that was put in is written.

        Raises:
            DeviceLostError: A card is lost, and had not filled all.
            OSError: The disk does not take it.
        """
        self._end()
        self.raise_error()

    def raise_error(self) -> None:
        """Raises the first error of a writer, if there is one."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Ends the writers, and gives back the memory of what they have not written."""
        self._end()
        while self._filled:
            self._let_go(self._filled.popleft())

    def _end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _next(self) -> FilledSlab | None:
        with self._changed:
            self._changed.wait_for(lambda: self._filled or self._ended)
            return self._filled.popleft() if self._filled else None

    def _write_all(self) -> None:
        try:
            self._throttle.begin()
            with naming_loss(self._device):
                self._device.enter_thread()
        except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that saves
            self._fail(error)
            return
        while (filled := self._next()) is not None:
            try:
                if not self._stopped.is_set():
                    self._write(filled)
            except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that saves
                self._fail(error)
            finally:
                self._let_go(filled)

    def _fail(self, error: BaseException) -> None:
        self._error = self._error or error
        self._stopped.set()

    def _write(self, filled: FilledSlab) -> None:
        slab, block, events, scattered = filled
        with naming_loss(self._device):
            self._wait(events)
        for place, gathered in scattered:
            block.tensor[place : place + gathered.numel()].copy_(gathered)
        for file, chunk, place in slab:
            view = block.view[place : place + chunk.size]
            self._sinks[file].digest([view], chunk.offset)
            self._scan.examine(self._sources[file], chunk, view)
        for file, offset, place, size in stretches_of(slab):
            self._throttle.wait(size, self._training_waits, self._stopped)
            self._sinks[file].write(block.view[place : place + size], offset)
        self._count(slab)

    def _wait(self, events: Sequence[Event]) -> None:
        """Waits until a slab is filled."""
        try:
            for event in events if not self.all_copied else ():
                self._device.wait(event)
        except Exception as error:
            if not (self.all_copied and self._device.is_loss(error)):
                raise

    def _count(self, slab: Slab) -> None:
        """Syncs each file of which all is written now: beside the writing of the others, and not after it."""
        done = []
        with self._changed:
            for file, _, _ in slab:
                self._unwritten[file] -= 1
                if not self._unwritten[file]:
                    done.append(file)
        for file in done:
            self._sinks[file].sync()

    def _let_go(self, filled: FilledSlab) -> None:
        """Gives a slab's memory back, once no card copies into it any more; that of a lost card is lost as well."""
        try:
            self._wait(filled.events)
        except Exception as error:
            if not self._device.is_loss(error):
                raise
            return
        self._pool.give(filled.block)
