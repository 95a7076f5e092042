"""The contract of an accelerator: what a snapshot and a resume ask of it.

Work on a card is put into streams. In one stream it is done in order; between streams only events order it. Training's
streams are its own; each card has one of ours beside them, for copies. Nothing behind this contract decides anything:
what waits for what is decided by `capture/`, and proved there on a device of paper.
"""

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch


class Event(Protocol):
    """A point in a stream: it is over when everything that was put into the stream before it is done."""


class Device(Protocol):
    """The accelerators of one kind in this process, each a `card` with a number."""

    def card_of(self, tensor: torch.Tensor) -> int | None:
        """Returns the number of the card that a tensor is on; None for one that is elsewhere."""

    def why_not_live(self) -> str:
        """Returns why nothing on it can be read while training goes on; empty if it can be."""

    def enter_thread(self, card: int | None = None) -> None:
        """Prepares the calling thread, which is ours: what it does spoils no graph that training captures meanwhile.

        Args:
            card: The card that it works for; None for any of which there is a stream of ours.
        """

    def is_capturing(self) -> bool:
        """Tells whether the calling thread captures a graph: what it enqueues is recorded, and not done."""

    def graph_class(self) -> type:
        """Returns the class of captured graphs: with `capture_begin`, `capture_end` and `replay`."""

    def lane(self, card: int) -> Hashable:
        """Returns the stream that the calling thread uses on a card now."""

    def mark(self, lane: Any) -> Event:
        """Puts an event into one of training's streams, behind all that is in it. Nothing waits."""

    def hold(self, card: int, event: Event) -> None:
        """Has what the calling thread enqueues on a card from now on wait for an event. The thread itself goes on."""

    def join(self, lane: Any, event: Event) -> None:
        """Has what is put into one of training's streams from now on wait for an event. Nothing else waits."""

    def ours(self) -> AbstractContextManager[None]:
        """Encloses work of the calling thread that goes to our streams, whatever it calls of torch."""

    def follow(self, card: int, event: Event) -> None:
        """Has our stream of a card wait for an event."""

    def copy(self, card: int, source: torch.Tensor, target: torch.Tensor) -> None:
        """Enqueues a copy in our stream of a card, to or from the memory of the host.

        Args:
            card: The card.
            source: Bytes (flat, uint8), or a tensor like `target`.
            target: As many of them. Both must be kept until the copy is over.
        """

    def enqueue(self, card: int, work: Callable[[], None]) -> None:
        """Enqueues other work in our stream of a card. Its results are in tensors that were there before."""

    def event(self, card: int) -> Event:
        """Puts an event into our stream of a card, behind all that is in it."""

    def wait(self, event: Event) -> None:
        """Waits until an event is over: the thread sleeps, and the interpreter is free.

        Raises:
            Exception: The card is lost, or something that was enqueued has failed; `is_loss` tells.
        """

    def is_over(self, event: Event) -> bool:
        """Tells whether an event is over. Nothing waits."""

    def is_loss(self, error: BaseException) -> bool:
        """Tells whether an error says that nothing on a card can be read any more."""

    def register(self, address: int, size: int) -> str:
        """Has the driver lock pages of the host, so that copies pass the processor by.

        Returns:
            The reason why it would not; empty where it did.
        """

    def bus_address(self, card: int) -> str:
        """Returns a card's address on the PCI bus, as in `0000:3b:00.0`; empty where nobody tells."""

    def unregister(self, address: int) -> None:
        """Has the driver unlock what was locked from an address on. No copy to or from there is under way."""

    def free_bytes(self, card: int) -> int:
        """Returns the bytes of a card's memory that nobody uses."""
