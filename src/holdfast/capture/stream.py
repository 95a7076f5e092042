"""From live tensors to files, block by block, while training goes on.

Readers copy blocks of the files-to-be out of the live tensors into resident memory; writers take them to the disk. When
training comes to the gate, what is left is copied into the reserve as fast as memory allows, and the gate may open.
"""

import queue
import threading
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
import xxhash

from holdfast.capture.copying import Copier, Part, Unit, bytes_of, digests_of, in_order
from holdfast.capture.staging import BLOCK_BYTES, Block, Pool
from holdfast.errors import TornError

READERS = 2
WRITERS = 2


class Image(Protocol):
    """A file to be: its content in order, each piece bytes or a tensor whose bytes go there."""

    @property
    def path(self) -> str:
        """Where it goes inside the checkpoint."""

    @property
    def pieces(self) -> Sequence["bytes | torch.Tensor"]:
        """Its content."""


class Sink(Protocol):
    """An open file."""

    def write(self, data: memoryview, offset: int) -> None:
        """Writes all of `data` at `offset`."""


class Stream:
    """One snapshot on its way to the disk.

    Args:
        images: The files to be.
        sinks: Where each is written, in the same order.
        pool: The memory that may be used.
        hurry: Set while training waits at the gate.
        names: What the tensors are called, by their data pointers, for whoever is told of a torn one.
        after: On CUDA, what must be done before anything is read: the update that led to the boundary.
    """

    def __init__(
        self,
        images: Sequence[Image],
        sinks: Sequence[Sink],
        pool: Pool,
        hurry: threading.Event,
        names: Mapping[int, str],
        after: torch.cuda.Event | None = None,
    ) -> None:
        self._units: list[Unit] = []
        self._rearranged: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._names = names
        self._after = after
        self._plan(images)
        self._sinks = sinks
        self._pool = pool
        self._hurry = hurry
        self._hashes = [xxhash.xxh3_128() for _ in images]
        self._lock = threading.Lock()
        self._taking = threading.Lock()
        self._next_read = 0
        self._next_hashed = 0
        self._hashing = False
        self._read: dict[int, Block] = {}
        self._to_write: queue.SimpleQueue[tuple[int, Block] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._torn: list[str] = []
        self._next_checked = 0
        self._writers = [self._start(self._write, f"write-{n}") for n in range(WRITERS)]
        self.streamed = False
        """Whether memory went to the disk and was used again while training waited: it did not hold the snapshot."""

    def read(self) -> None:
        """Returns when the whole snapshot is in host memory or on its way to the disk, and was read twice alike.

        Raises:
            TornError: Somebody wrote to it meanwhile.
            OSError: The disk does not take it.
        """
        self._together(self._copy)
        self._raise()
        self._together(self._check)
        self._raise()
        if self._torn:
            raise TornError(list(dict.fromkeys(self._torn)))

    def finish(self) -> list[str]:
        """Returns when all is written: the xxh3_128 of each file, as 32 hexadecimal digits.

        Raises:
            OSError: The disk does not take it.
        """
        self.close()
        self._raise()
        return [found.hexdigest() for found in self._hashes]

    def close(self) -> None:
        """Waits for the writers, and gives the memory back, also after an error."""
        for _ in self._writers:
            self._to_write.put(None)
        for writer in self._writers:
            writer.join()
        self._writers = []
        with self._lock:
            left, self._read = self._read, {}
        for block in left.values():
            self._pool.give(block)

    def _together(self, work: "_Work") -> None:
        helpers = [self._start(work, f"read-{n}") for n in range(1, READERS)]
        self._guarded(work)
        for helper in helpers:
            helper.join()

    def _start(self, work: "_Work", name: str) -> threading.Thread:
        thread = threading.Thread(target=self._guarded, args=(work,), name=f"holdfast-{name}", daemon=True)
        thread.start()
        return thread

    def _guarded(self, work: "_Work") -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that asked for the work
            self._error = self._error or error

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _stopped(self) -> bool:
        return self._error is not None

    def _copy(self) -> None:
        copier = Copier(self._pool, self._after)
        while not self._stopped():
            with self._taking:  # the block comes with the unit, so that the earliest unit always has one
                if self._next_read == len(self._units):
                    return
                block = self._pool.take(self._hurry, self._stopped)
                if block is None:
                    return
                number = self._next_read
                self._next_read += 1
                self.streamed |= self._hurry.is_set() and number >= self._pool.blocks
            unit = self._units[number]
            try:
                copier.copy(unit, block)
                unit.digests = digests_of(unit, block)
            except BaseException:
                self._pool.give(block)
                raise
            self._hashin_order(number, block)

    def _hashin_order(self, number: int, block: Block) -> None:
        """Digests the blocks that are there, each file from its beginning to its end, and hands them to the writers."""
        with self._lock:
            self._read[number] = block
            if self._hashing:
                return
            self._hashing = True
        while True:
            with self._lock:
                found = self._read.pop(self._next_hashed, None)
                if found is None:
                    self._hashing = False
                    return
                current = self._next_hashed
                self._next_hashed += 1
            unit = self._units[current]
            self._hashes[unit.file].update(found.view[: unit.size])
            self._to_write.put((current, found))

    def _write(self) -> None:
        while (item := self._to_write.get()) is not None:
            number, block = item
            unit = self._units[number]
            try:
                if not self._stopped():
                    self._sinks[unit.file].write(block.view[: unit.size], unit.offset)
            except BaseException as error:  # noqa: BLE001 - as in _guarded; the other blocks still come back
                self._error = self._error or error
            finally:
                self._pool.give(block)

    def _check(self) -> None:
        """Reads every unit again. A write between the two reads shows; one before the first is the net's to see."""
        copier = Copier(self._pool, self._after)
        while True:
            with self._lock:
                if self._next_checked == len(self._units):
                    break
                unit = self._units[self._next_checked]
                self._next_checked += 1
            then_and_now = zip(unit.parts, unit.digests, copier.digests(unit), strict=True)
            if torn := [part.name for part, then, now in then_and_now if then != now]:
                with self._lock:
                    self._torn.extend(torn)
        with self._lock:
            rearranged, self._rearranged = self._rearranged, []
        for tensor, copy in rearranged:
            if not torch.equal(bytes_of(in_order(tensor)), bytes_of(copy)):
                with self._lock:
                    self._torn.append(self._names.get(tensor.data_ptr(), "a tensor"))

    def _plan(self, images: Sequence[Image]) -> None:
        """Cuts the files-to-be into units, none larger than a block of memory."""
        for file, image in enumerate(images):
            unit = Unit(file, 0, 0, [])
            for piece in image.pieces:
                source, name = self._source(piece)
                size = len(source) if isinstance(source, bytes) else source.nbytes
                begin = 0
                while begin < size:
                    fits = min(size - begin, BLOCK_BYTES - unit.size)
                    unit.parts.append(Part(source, begin, unit.size, fits, name))
                    unit.size += fits
                    begin += fits
                    if unit.size == BLOCK_BYTES:
                        self._units.append(unit)
                        unit = Unit(file, unit.offset + BLOCK_BYTES, 0, [])
            if unit.size:
                self._units.append(unit)

    def _source(self, piece: bytes | torch.Tensor) -> tuple[bytes | torch.Tensor, str]:
        if isinstance(piece, bytes):
            return piece, ""
        name = self._names.get(piece.data_ptr(), "a tensor")
        source = in_order(piece)
        if source.data_ptr() != piece.data_ptr():
            self._rearranged.append((piece, source))
        return source, name


class _Work(Protocol):
    def __call__(self) -> None: ...
