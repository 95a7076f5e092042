"""The stream from live tensors to files, block by block, while training goes on.

A reader copies blocks of the files-to-be out of the live tensors into resident memory, and examines each while it is
still in the processor's cache; writers take them to the disk. When training comes to the gate, what is left is copied
into the reserve as fast as memory allows, the gate may open, and the writers do the examining.
"""

import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch

from holdfast.capture.chunks import Image, Sources, bytes_of, in_order
from holdfast.capture.copying import copy, parts_now, parts_of
from holdfast.capture.nonfinite import NonFiniteScan, TensorRanges
from holdfast.capture.staging import Pool
from holdfast.capture.throttle import Throttle
from holdfast.devices.arena import Block
from holdfast.errors import TornError
from holdfast.store.blocks import Sink

WRITERS = 2
# While nobody waits there is one reader, which brings about 2 GB/s: training needs the processors. More than a few
# threads do not make memory faster.
_MOST_READERS = 4
_LOOK_SECONDS = 0.001

_Work = Callable[[], None]


class _Copied(NamedTuple):
    """A chunk in memory: the block that it is in, and if it has been examined there."""

    block: Block
    is_examined: bool


class Stream:
    """One snapshot on its way to the disk.

    Args:
        images: The files to be.
        sinks: The open files that they are written to, in the same order.
        pool: The memory that may be used.
        training_waits: Set while training waits at the gate.
        name: Gives the name of a tensor, for whoever is told of a torn one.
        throttle: The limits to the writers.
        ranges: The places of the tensors that are to hold finite numbers alone.
    """

    def __init__(
        self,
        images: Sequence[Image],
        sinks: Sequence[Sink],
        pool: Pool,
        training_waits: threading.Event,
        name: Callable[[torch.Tensor], str],
        throttle: Throttle | None = None,
        ranges: TensorRanges | None = None,
    ) -> None:
        self._sources = [Sources(image) for image in images]
        self._chunks = [(file, chunk) for file, sources in enumerate(self._sources) for chunk in sources.chunks]
        self._rearranged = [pair for sources in self._sources for pair in sources.rearranged]
        self._sinks = sinks
        self._pool = pool
        self._training_waits = training_waits
        self._name = name
        self._throttle = throttle or Throttle()
        self._scan = NonFiniteScan(ranges or TensorRanges({}))
        self._processors = len(os.sched_getaffinity(0))
        self._error: BaseException | None = None
        self._stopped = threading.Event()
        self._taking = threading.Lock()
        self._next_read = 0
        self._digests: dict[int, list[int]] = {}
        self._to_check: list[int] = []
        self._torn: list[str] = []
        self._arrived = threading.Condition()
        self._read: dict[int, _Copied] = {}
        self._next_written = 0
        self._unwritten = [len(sources.chunks) for sources in self._sources]
        self._ended = False
        self._reader = 0
        self._helpers: list[threading.Thread] = []
        self._writers = [self._start(self._write, f"write-{n}") for n in range(WRITERS)]
        self.streamed = False
        """True if training had to wait for the disk: memory did not hold what was left of the snapshot."""

    def read(self) -> None:
        """Returns when all is in host memory or on its way to the disk, and what was read live was read twice alike.

        Raises:
            TornError: Somebody wrote to it meanwhile.
            OSError: The disk does not take it.
        """
        self._share(self._copy)
        self._to_check = sorted(self._digests, reverse=True)
        self._share(self._check)
        self._check_rearranged()
        if self._torn:
            raise TornError(list(dict.fromkeys(self._torn)))

    def finish(self) -> None:
        """Returns when all is written.

        Raises:
            OSError: The disk does not take it.
        """
        self.close()
        self._raise()

    @property
    def not_finite(self) -> list[str]:
        """The names of tensors that hold NaN or infinity and should not; known when all is written."""
        return sorted(self._scan.failing)

    def close(self) -> None:
        """Waits for the writers, and gives the memory back, also after an error."""
        with self._arrived:
            self._ended = True
            self._arrived.notify_all()
        for writer in self._writers:
            writer.join()
        self._writers = []
        for copied in self._read.values():
            self._pool.give(copied.block)
        self._read = {}

    def _share(self, work: _Work) -> None:
        """Does work that any number of threads may share: in this one, and in more as soon as training waits."""
        self._reader = threading.get_ident()
        self._guarded(work)
        for helper in self._helpers:
            helper.join()
        self._helpers = []
        self._raise()

    def _call_for_help(self, work: _Work) -> None:
        """Starts helpers when there is reason to hurry; only the thread that shares the work does, and once."""
        # The check is short, and what was saved is of use to nobody before it.
        wanted = self._training_waits.is_set() or len(self._to_check) > 1
        if wanted and not self._helpers and threading.get_ident() == self._reader:
            more = min(_MOST_READERS, self._processors) - 1
            self._helpers = [self._start(work, f"read-{n}") for n in range(1, more + 1)]

    def _start(self, work: _Work, name: str) -> threading.Thread:
        thread = threading.Thread(target=self._guarded, args=(work,), name=f"holdfast-{name}", daemon=True)
        thread.start()
        return thread

    def _guarded(self, work: _Work) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that asked for the work
            self._stop(error)

    def _stop(self, error: BaseException) -> None:
        self._error = self._error or error
        self._stopped.set()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _copy(self) -> None:
        while not self._stopped.is_set():
            self._call_for_help(self._copy)
            with self._taking:  # the block comes with the chunk, so that the earliest chunk always has one
                if self._next_read == len(self._chunks):
                    return
                self.streamed |= self._training_waits.is_set() and self._pool.is_empty
                block = self._pool.take(self._training_waits, self._stopped)
                if block is None:
                    return
                number = self._next_read
                self._next_read += 1
                waited = self._training_waits.is_set()
            file, chunk = self._chunks[number]
            try:
                copy(self._sources[file], chunk, block)
                # Training that waited all the while has written nothing.
                is_live = not (waited and self._training_waits.is_set())
                if is_live:
                    self._digests[number] = self._examine(number, block)
            except BaseException:
                self._pool.give(block)
                raise
            with self._arrived:
                self._read[number] = _Copied(block, is_examined=is_live)
                self._arrived.notify_all()

    def _examine(self, number: int, block: Block) -> list[int]:
        """Digests a chunk in the block that it is in, and looks through it for what is not finite."""
        file, chunk = self._chunks[number]
        digests = self._sinks[file].digest(parts_of(chunk, block), chunk.offset)
        self._scan.examine(self._sources[file], chunk, block.view)
        return digests

    def _write(self) -> None:
        self._throttle.begin()
        while True:
            copied = self._next_block()
            if copied is None:
                return
            number, (block, is_examined) = copied
            file, chunk = self._chunks[number]
            try:
                if not self._stopped.is_set():
                    if not is_examined:
                        self._examine(number, block)
                    self._throttle.wait(chunk.size, self._training_waits, self._stopped)
                    self._sinks[file].write(block.view[: chunk.size], chunk.offset)
            except BaseException as error:  # noqa: BLE001 - as in _guarded; the other blocks still come back
                self._stop(error)
            finally:
                self._pool.give(block)
            self._guarded(partial(self._count_written, file))

    def _count_written(self, file: int) -> None:
        """Syncs a file when all of it is written: beside the writing of the others, and not after it."""
        with self._arrived:
            self._unwritten[file] -= 1
        if not self._unwritten[file] and not self._stopped.is_set():
            self._sinks[file].sync()

    def _next_block(self) -> tuple[int, _Copied] | None:
        """Returns the earliest block that is still to be written, once it is there; None if it will not come."""
        with self._arrived:
            while self._yields():
                self._arrived.wait(_LOOK_SECONDS)
            while (copied := self._read.pop(self._next_written, None)) is None:
                if self._ended or self._next_written == len(self._chunks):
                    return None
                self._arrived.wait()
            self._next_written += 1
            return self._next_written - 1, copied

    def _yields(self) -> bool:
        """Tells if the writers leave the few processors to the readers, for whom training waits, as memory lasts."""
        waits = self._training_waits.is_set() and not self._throttle.pressing and self._processors <= _MOST_READERS
        return waits and self._next_read < len(self._chunks) and not (self._pool.is_empty or self._stopped.is_set())

    def _check(self) -> None:
        """Reads again what was read while training went on.

        A write between the two reads shows; one before the first is the write detector's to see.
        """
        while not self._stopped.is_set():
            self._call_for_help(self._check)
            try:
                number = self._to_check.pop()
            except IndexError:
                return
            file, chunk = self._chunks[number]
            now = self._sinks[file].digest(parts_now(self._sources[file], chunk), chunk.offset)
            for part, before, after in zip(chunk.parts, self._digests[number], now, strict=True):
                tensor = self._sources[file].tensor(part)
                if before != after and tensor is not None:
                    self._torn.append(self._name(tensor))
                    break  # the digests are of all until a part's end; what follows may be as it was

    def _check_rearranged(self) -> None:
        """Compares tensors with their copies that are in order: what was read again was the copies alone."""
        for tensor, copied in self._rearranged:
            if not torch.equal(bytes_of(in_order(tensor).cpu()), bytes_of(copied)):
                self._torn.append(self._name(tensor))
