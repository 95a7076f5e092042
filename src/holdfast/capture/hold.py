"""The wait of updates on their cards, when the gate is open already: until the last read of the old state is over."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from holdfast.devices.device import Device, Event
from holdfast.errors import DeviceLostError


class Hold:
    """The reads of one snapshot that are still to be done on the cards.

    Args:
        device: The device.
        events: The event behind the last read, for each card.
    """

    def __init__(self, device: Device, events: Mapping[int, Event]) -> None:
        self._device = device
        self._events = events

    def wait_on_cards(self) -> None:
        """Has all that the calling thread enqueues from now on wait for the reads. The thread itself goes on."""
        for card, event in self._events.items():
            self._device.hold(card, event)

    def wait(self) -> None:
        """Waits until the reads are done."""
        for event in self._events.values():
            self._device.wait(event)

    @property
    def is_over(self) -> bool:
        """True when they are done, or never will be."""
        try:
            return all(map(self._device.is_over, self._events.values()))
        except Exception as error:  # noqa: BLE001 - one that is none of theirs, as of a capture elsewhere, ends no step
            return self._device.is_loss(error)


class Holds:
    """Those that updates still wait for. Each stays until it is over: a lane whose next update comes late waits too."""

    def __init__(self) -> None:
        self._holds: list[Hold] = []

    def add(self, hold: Hold) -> None:
        """Adds one: the next update waits for it."""
        self._holds.append(hold)

    def wait_on_cards(self) -> None:
        """Has what the calling thread enqueues from now on wait for all of them."""
        for hold in self._holds:
            hold.wait_on_cards()

    def look(self) -> None:
        """Drops those that are over."""
        if self._holds:
            self._holds = [hold for hold in self._holds if not hold.is_over]


@contextmanager
def naming_loss(device: Device) -> Iterator[None]:
    """Turns an error that says that a card is lost into one of ours.

    Raises:
        DeviceLostError: A card is lost.
    """
    try:
        yield
    except Exception as error:
        if not device.is_loss(error):
            raise
        raise DeviceLostError(f"the device is lost, and with it what was not copied yet: {error}") from error
