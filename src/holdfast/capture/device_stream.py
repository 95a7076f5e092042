"""The stream from the memory of cards to files.

Copies of everything are enqueued on the cards, behind the update that led to the boundary; then the gate may open, and
the next update waits for them on its card. The host waits only where memory for them is missing. `docs/design.md`, "A
snapshot on a GPU", says why that is right; what is digested and written is in `capture/slab_writers.py`.
"""

import threading
from collections.abc import Callable, Mapping, Sequence

import torch

from holdfast.capture.card_notes import CardNotes, HostBytes, has_norm
from holdfast.capture.chunks import Image
from holdfast.capture.hold import Hold, naming_loss
from holdfast.capture.nonfinite import NonFiniteScan, TensorRanges
from holdfast.capture.slab_filling import SlabFilling
from holdfast.capture.slab_writers import SlabWriters
from holdfast.capture.slabs import FileSource, slabs_of
from holdfast.capture.staging import Pool
from holdfast.capture.throttle import Throttle
from holdfast.capture.tripwire import Fingerprint, WriteDetector
from holdfast.devices.arena import Block
from holdfast.devices.device import Device, Event
from holdfast.errors import TornError
from holdfast.store.blocks import Sink

# A card with less memory left is asked for none: training may be about to need it.
_ROOM_BYTES = 64 << 20


class DeviceStream:
    """One snapshot of state on cards, and beside it on the host, on its way to the disk.

    Args:
        images: The files to be.
        device: The device. Our streams wait for the boundary already: `follow`.
        pool: The memory of the host, in slabs.
        training_waits: Set while training waits at the gate.
        boundary: The fingerprint of the boundary.
        detector: Tells of writes past the gate.
        finite: The tensors that are to hold finite numbers alone, by name.
        name: Gives the name of a tensor, for whoever is told of a torn one.
        throttle: The limits to the writers.
    """

    def __init__(
        self,
        images: Sequence[Image],
        device: Device,
        pool: Pool,
        training_waits: threading.Event,
        boundary: Fingerprint,
        detector: WriteDetector,
        finite: Mapping[str, torch.Tensor],
        name: Callable[[torch.Tensor], str],
        throttle: Throttle | None = None,
    ) -> None:
        self._device = device
        self._pool = pool
        self._training_waits = training_waits
        self._boundary = boundary
        self._detector = detector
        self._finite = finite
        self._stopped = threading.Event()
        _wait_for_host_tensors(images, device, boundary)
        self._glance = detector.glance()
        self._sources = [FileSource(image, device) for image in images]
        self._slabs = slabs_of(self._sources, pool.block_bytes)
        with naming_loss(device):
            self._full = {card for card in self._cards() if device.free_bytes(card) < _ROOM_BYTES}
        by_bits = {n: t for n, t in finite.items() if device.card_of(t) in {None, *self._full} or not has_norm(t)}
        self._scan = NonFiniteScan(TensorRanges(by_bits))
        self._writers = SlabWriters(
            device, pool, self._sources, self._scan, throttle or Throttle(), training_waits, self._stopped
        )
        self._next = 0
        # Blocks that are no writer's: that of the notes, and the one that is being filled.
        self._own_blocks: list[Block] = []
        self._notes: CardNotes | None = None
        self._filling: SlabFilling | None = None
        self._name = name
        self._first: dict[int, torch.Tensor] = {}
        self._to_compare: list[tuple[int, torch.Tensor, torch.Tensor, Callable[[str], bool]]] = []
        self._last: Mapping[int, Event] = {}
        self.is_enqueued = False
        """True when all copies are."""
        self.streamed = False
        """True if training had to wait for the disk: memory did not hold what was left of the snapshot."""

    def enqueue(self, *, waits: bool) -> bool:
        """Enqueues copies of what is still to be copied.

        Args:
            waits: True where it waits for memory, which the writers give back. Else it takes what is free.

        Returns:
            True when all is enqueued: the gate may open, with `hold`.

        Raises:
            TornError: Somebody has written to the state meanwhile.
            DeviceLostError: A card is lost.
            OSError: The disk does not take it.
        """
        with naming_loss(self._device), self._device.ours():
            if self._filling is None and not self._begin(waits=waits):
                return False
            assert self._filling is not None
            if self.is_enqueued:
                return True
            while self._next < len(self._slabs):
                if (block := self._block(waits=waits)) is None:
                    return False
                self._own_blocks.append(block)
                self._writers.put(self._filling.fill(self._slabs[self._next], block))
                self._own_blocks.remove(block)
                self._next += 1
            self._end_reading()
            return True

    def hold(self) -> Hold:
        """Returns what the next update has to wait for on the cards."""
        return Hold(self._device, self._last)

    def start(self, sinks: Sequence[Sink]) -> None:
        """Begins to write, to open files in the order of the images."""
        self._writers.start(sinks)

    def finish(self) -> None:
        """Returns when all is written.

        Raises:
            TornError: Somebody wrote to the state past the gate.
            DeviceLostError: A card is lost, and had not given all.
            OSError: The disk does not take it.
        """
        with naming_loss(self._device):
            self.hold().wait()
        self._writers.all_copied = True  # a card that is lost from now on costs nothing
        self._compare_samples()
        self._writers.finish()

    @property
    def not_finite(self) -> list[str]:
        """The names of tensors that hold NaN or infinity and should not; known when all is written."""
        on_cards = self._notes.not_finite() if self._notes is not None else set()
        return sorted(self._scan.failing | on_cards)

    def close(self) -> None:
        """Ends the writers, and gives the memory back when no card copies into it any more; also after an error."""
        self._stopped.set()  # what is still to be written is of no use: all is, or there was an error
        self._writers.close()
        if not self._own_blocks:
            return
        try:
            for card in self._cards():
                self._device.wait(self._device.event(card))
        except Exception as error:
            if not self._device.is_loss(error):
                raise
        else:
            for block in self._own_blocks:
                self._pool.give(block)
        self._own_blocks = []

    def _cards(self) -> set[int]:
        on_pieces = {card for source in self._sources for card in source.cards if card is not None}
        return on_pieces | set(self._detector.cards)

    def _block(self, *, waits: bool) -> Block | None:
        """Returns the next free slab; None where there is none, and it is not waited for."""
        block = self._pool.try_take()
        if block is None and waits:
            self.streamed |= self._training_waits.is_set()
            block = self._pool.take(self._training_waits, self._stopped)
            if block is None:
                self._writers.raise_error()
        return block

    def _begin(self, *, waits: bool) -> bool:
        """Enqueues what is noted before the first copy; False where there is no memory for it yet."""
        if (block := self._block(waits=waits)) is None:
            return False
        self._own_blocks.append(block)
        self._notes = notes = CardNotes(self._device, HostBytes(block.tensor), self._full)
        self._first = {card: notes.gather(card, views) for card, views in self._detector.views.items()}
        notes.look_for_nan(self._finite)
        self._filling = SlabFilling(self._device, self._sources, notes, self._training_waits)
        return True

    def _end_reading(self) -> None:
        """Enqueues what is noted after the last copy, and compares what the host can."""
        assert self._notes is not None and self._filling is not None
        for card, views in self._detector.views.items():
            self._to_compare.append((card, self._first[card], self._notes.gather(card, views), lambda name: True))
        earlier = self._boundary.earlier_card_samples
        for card, samples in self._boundary.card_samples.items():
            counts = (lambda name: name not in self._finite) if earlier else (lambda name: True)
            self._to_compare.append((card, self._notes.gather(card, [samples]), self._first[card], counts))
        for card, samples in earlier.items():
            of_then = self._notes.gather(card, [samples])
            self._to_compare.append((card, of_then, self._first[card], lambda name: name in self._finite))
        self._last = {card: self._device.event(card) for card in self._cards()}
        self.is_enqueued = True
        torn = self._detector.changed_since(self._glance) + [self._name(t) for t in self._filling.changed_on_host()]
        if torn:
            raise TornError(list(dict.fromkeys(torn)))

    def _compare_samples(self) -> None:
        torn = [
            name
            for card, then, now, counts in self._to_compare
            for name in filter(counts, self._detector.changed_on_card(card, _bytes(then), _bytes(now)))
        ]
        if torn:
            raise TornError(list(dict.fromkeys(torn)))


def follow(device: Device, boundary: Fingerprint) -> None:
    """Has our streams wait for a boundary: whatever is enqueued there from now on reads its state."""
    for card, marks in boundary.marks.items():
        for mark in marks:
            device.follow(card, mark)


def _wait_for_host_tensors(images: Sequence[Image], device: Device, boundary: Fingerprint) -> None:
    """Waits for the boundary where the host has a share of the state: cards may have written there as well."""
    tensors = [piece for image in images for piece in image.pieces if isinstance(piece, torch.Tensor)]
    cards = {device.card_of(tensor) for tensor in tensors}
    with naming_loss(device):
        if None in cards:
            for event in (mark for marks in boundary.marks.values() for mark in marks):
                device.wait(event)
        for card in cards - {None} - boundary.marks.keys():  # what is there is no tensor that is trained
            assert card is not None
            here = device.mark(device.lane(card))
            device.follow(card, here)  # from here on there is a stream of ours, in which memory for copies is taken
            device.wait(here)


def _bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.tolist())
