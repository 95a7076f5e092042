"""The way of a checkpoint's bytes into the memory of cards: through a small ring of the host's, gone afterwards.

A block of a file is read into a block of the ring, proved there, and copied on by the card itself while others are
read. It is read into again when the copies from it are over. So the state is in the host's memory at no time.
"""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from holdfast.errors import HoldfastError
from holdfast.store.digest import BLOCK_BYTES
from holdfast.store.reading import Elsewhere

if TYPE_CHECKING:
    import torch

    from holdfast.devices.arena import Block
    from holdfast.devices.device import Device, Event

# A card takes a block in a fraction of the time that a disk needs for one: more would only wait.
RING_BLOCKS = 16

# Of cards that were lost: nobody knows what is still copied from there.
_left: list["Uploads"] = []


class Uploads:
    """The uploads of one checkpoint. Made by the thread that is to read it, which may have work on the cards.

    A round is: `bytes_of` for each tensor, `begin`, blocks by any threads, `finish`. Another round may follow.

    Args:
        device: The cards.
        what: The checkpoint, for messages.
    """

    def __init__(self, device: "Device", what: str) -> None:
        from holdfast.devices.arena import Arena

        self._device = device
        self._what = what
        self._arena = Arena(RING_BLOCKS * BLOCK_BYTES, device)
        self._lock = threading.Lock()
        self._blocks: list[Block] = []
        self._locked: list[Block] = []
        self._free: list[memoryview] = []
        self._under_way: deque[tuple[memoryview, Sequence[Event]]] = deque()
        self._cards: set[int] = set()
        self._thread = threading.local()
        self._thread.is_prepared = True  # it is training's own
        self._loss: HoldfastError | None = None

    @property
    def refusal(self) -> str:
        """The driver's reason not to lock the ring's memory, without which copies are slow; empty where it has."""
        return self._arena.refusal

    @property
    def are_wanted(self) -> bool:
        """True once a tensor on a card takes part."""
        return bool(self._cards)

    def is_on_card(self, tensor: "torch.Tensor") -> bool:
        """Tells whether a tensor is one of a card's."""
        return self._device.card_of(tensor) is not None

    def bytes_of(self, tensor: "torch.Tensor") -> Elsewhere | None:
        """Returns the memory of a contiguous tensor on a card; None for one of the host's."""
        import torch

        card = self._device.card_of(tensor)
        if card is None:
            return None
        self._cards.add(card)
        data: Any = tensor.detach().reshape(-1).view(torch.uint8)
        return data  # type: ignore[no-any-return]

    def begin(self) -> None:
        """Has all copies come behind what the calling thread has put into its own streams, of cards that take part."""
        for card in self._cards:
            self._device.follow(card, self._device.mark(self._device.lane(card)))

    def take(self) -> memoryview:
        """Returns a block that nothing is copied from any more."""
        with self._explained():
            self._prepare_thread()
            with self._lock:
                if self._free:
                    return self._free.pop()
                if len(self._blocks) < RING_BLOCKS:
                    return self._new_block()
                block, events = self._under_way.popleft()
            for event in events:
                self._device.wait(event)
            return block

    def send(self, block: memoryview, parts: Sequence[tuple[int, Elsewhere]]) -> None:
        """Takes a block back, and begins to copy from it.

        Args:
            block: The block.
            parts: The first byte in the block of each part, and where the part goes.
        """
        import torch

        with self._explained():
            source = torch.frombuffer(block, dtype=torch.uint8)
            cards = set()
            for begin, part in parts:
                target: Any = part
                card = self._device.card_of(target)
                assert card is not None
                self._device.copy(card, source[begin : begin + len(target)], target)
                cards.add(card)
            events = [self._device.event(card) for card in cards]
            with self._lock:
                if events:
                    self._under_way.append((block, events))
                else:
                    self._free.append(block)

    def finish(self) -> None:
        """Returns once all copies are over.

        Raises:
            HoldfastError: A card is lost, on which nothing is waited for.
        """
        with self._explained():
            while self._under_way:
                block, events = self._under_way.popleft()
                for event in events:
                    self._device.wait(event)
                self._free.append(block)

    def close(self) -> None:
        """Gives the memory back. All copies are over."""
        if self._loss is not None:
            _left.append(self)
            return
        for block in self._locked:
            self._arena.unlock(block)
        self._locked, self._blocks, self._free = [], [], []

    def _new_block(self) -> memoryview:
        block = self._arena.make(BLOCK_BYTES)
        self._blocks.append(block)
        if self._arena.lock(block):
            self._locked.append(block)
        return block.view

    def _prepare_thread(self) -> None:
        if not hasattr(self._thread, "is_prepared"):
            self._device.enter_thread()
            self._thread.is_prepared = True

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Says of a card that is lost what it means for the checkpoint.

        Raises:
            HoldfastError: The card is lost.
        """
        if self._loss is not None:
            raise self._loss
        try:
            yield
        except Exception as error:
            if not self._device.is_loss(error):
                raise
            self._loss = HoldfastError(
                f"a card was lost while {self._what} was read into its memory: {error}",
                hint="the checkpoint is as it was: start the training again, which resumes from it",
            )
            raise self._loss from error
