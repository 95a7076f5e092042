"""The filling of slabs: copies that are enqueued on cards, and those of what the host has itself."""

import ctypes
import threading
from collections import deque
from collections.abc import Sequence

import torch

from holdfast.capture.card_notes import CardNotes
from holdfast.capture.chunks import ChunkPart, bytes_of, in_order
from holdfast.capture.slab_writers import FilledSlab, Scattered
from holdfast.capture.slabs import FileSource, Slab, is_in_order, runs_of
from holdfast.devices.arena import Block
from holdfast.devices.device import Device, Event
from holdfast.store import digest

# A card copies in the order in which it was asked, so a loss that training reads waits for what is under way.
TRUNK_BYTES = 16 << 20
IN_FLIGHT = 2
# A copy of less is gathered with the others of its card, and is one copy with them.
SMALL_BYTES = 4 << 10
# For what is noted after the copies.
_RESERVED_BYTES = 64 << 10
# A tensor whose bytes lie otherwise is put in order on its card where so much stays free there.
_SPARED_BYTES = 1 << 30


class SlabFilling:
    """Fills the slabs of one snapshot, in order. The calling thread enqueues in our streams (`Device.ours`).

    Args:
        device: The device.
        sources: The pieces of each file.
        notes: Takes what is too small for a copy of its own.
        training_waits: Set while training waits at the gate: no card has anything else to do.
    """

    def __init__(
        self, device: Device, sources: Sequence[FileSource], notes: CardNotes, training_waits: threading.Event
    ) -> None:
        self._device = device
        self._sources = sources
        self._training_waits = training_waits
        self._under_way: deque[Event] = deque()
        self._ordered: dict[tuple[int, int], torch.Tensor] = {}
        self._read_on_host: list[tuple[torch.Tensor, ChunkPart, str]] = []
        self.cards = {card for source in sources for card in source.cards if card is not None}
        """The cards that pieces are on."""
        self._gathered = self._gather(notes)

    def fill(self, slab: Slab, block: Block) -> FilledSlab:
        """Enqueues the copies of a slab, and returns it as it goes to the writers."""
        scattered: list[Scattered] = []
        for run in runs_of(slab, TRUNK_BYTES):
            source, part = self._sources[run.file], run.part
            card, key = source.cards[part.piece], (run.file, part.piece)
            if card is None:
                self._copy_on_host(source.memory[part.piece], part, block)
            elif key in self._gathered:
                gathered = self._gathered[key][part.begin : part.begin + part.size]
                scattered.append(Scattered(part.place, gathered))
            else:
                self._copy(card, self._flat(card, key), part, block)
                if part.begin + part.size == self._flat(card, key).numel():
                    self._ordered.pop(key, None)
        events = [self._device.event(card) for card in self.cards]
        return FilledSlab(slab, block, events, scattered)

    def changed_on_host(self) -> list[torch.Tensor]:
        """Reads again what was read of the host, and returns the tensors that are not as they were."""
        changed = [tensor for tensor, part, then in self._read_on_host if digest.of([_window(tensor, part)]) != then]
        rearranged = [pair for source in self._sources for pair in source.rearranged]
        changed += [
            tensor for tensor, copy in rearranged if not torch.equal(bytes_of(in_order(tensor)), bytes_of(copy))
        ]
        return changed

    def _gather(self, notes: CardNotes) -> dict[tuple[int, int], torch.Tensor]:
        """Enqueues the copies of all that is small, as far as there is room for it among the notes."""
        small: dict[int, dict[tuple[int, int], torch.Tensor]] = {}
        room = notes.left - _RESERVED_BYTES
        for file, source in enumerate(self._sources):
            for piece, (card, memory) in enumerate(zip(source.cards, source.memory, strict=True)):
                is_small = isinstance(memory, torch.Tensor) and 0 < memory.nbytes <= SMALL_BYTES
                if card is not None and card not in notes.full and is_small and memory.nbytes <= room:
                    assert isinstance(memory, torch.Tensor)
                    room -= memory.nbytes
                    small.setdefault(card, {})[file, piece] = memory
        gathered: dict[tuple[int, int], torch.Tensor] = {}
        for card, tensors in small.items():
            whole, begin = notes.gather(card, list(tensors.values())), 0
            for key, tensor in tensors.items():
                gathered[key] = whole[begin : begin + tensor.nbytes]
                begin += tensor.nbytes
        return gathered

    def _copy(self, card: int, flat: torch.Tensor, part: ChunkPart, block: Block) -> None:
        target = block.tensor[part.place : part.place + part.size]
        if self._training_waits.is_set():
            self._under_way.clear()
        while len(self._under_way) >= IN_FLIGHT:
            self._device.wait(self._under_way.popleft())
        self._device.copy(card, flat[part.begin : part.begin + part.size], target)
        self._under_way.append(self._device.event(card))

    def _flat(self, card: int, key: tuple[int, int]) -> torch.Tensor:
        """Returns the bytes of a piece of a card, in order; on the card, or on the host where the card has no room."""
        memory = self._sources[key[0]].memory[key[1]]
        assert isinstance(memory, torch.Tensor)
        if is_in_order(memory) and memory.dtype == torch.uint8 and memory.dim() == 1:
            return memory
        if key not in self._ordered:
            self._ordered[key] = bytes_of(self._put_in_order(card, memory))
        return self._ordered[key]

    def _put_in_order(self, card: int, tensor: torch.Tensor) -> torch.Tensor:
        if self._device.free_bytes(card) >= tensor.nbytes + _SPARED_BYTES:
            ordered = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
            self._device.copy(card, tensor, ordered)
            return ordered
        # What is conjugated or negated by a mark alone is copied as it lies, and marked again on the host.
        tensor = tensor.conj() if (is_conj := tensor.is_conj()) else tensor
        tensor = torch._neg_view(tensor) if (is_neg := tensor.is_neg()) else tensor
        span = 1 + sum((length - 1) * step for length, step in zip(tensor.shape, tensor.stride(), strict=True))
        raw = torch.empty(span, dtype=tensor.dtype)
        self._device.copy(card, torch.as_strided(tensor, (span,), (1,), tensor.storage_offset()), raw)
        self._device.wait(self._device.event(card))
        there = torch.as_strided(raw, tensor.shape, tensor.stride())
        there = torch._neg_view(there) if is_neg else there
        return in_order(there.conj() if is_conj else there)

    def _copy_on_host(self, memory: memoryview | torch.Tensor, part: ChunkPart, block: Block) -> None:
        if isinstance(memory, memoryview):
            block.view[part.place : part.place + part.size] = memory[part.begin : part.begin + part.size]
            return
        ctypes.memmove(block.address + part.place, memory.data_ptr() + part.begin, part.size)
        copied = block.view[part.place : part.place + part.size]
        self._read_on_host.append((memory, part, digest.of([copied])))


def _window(tensor: torch.Tensor, part: ChunkPart) -> memoryview:
    return memoryview((ctypes.c_char * part.size).from_address(tensor.data_ptr() + part.begin)).cast("B")
