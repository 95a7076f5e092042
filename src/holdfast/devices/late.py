"""Numbers of a card that are read when they are there: a loss, an answer to yes or no. Nobody waits for them.

The thread that trains is far ahead of its card. To look at a number there it would have to wait until the card has come
as far. So the number is copied behind the work that makes it, beside training, and whoever comes by later reads it.
"""

import ctypes
import mmap
import threading

import torch

from holdfast.devices.device import Device, Event

_BYTES = 8  # of a float64, which holds a number of any dtype that losses have
_PLACES = mmap.PAGESIZE // _BYTES
# What a driver has locked stays where it is until the process ends.
_pages: list[mmap.mmap] = []


class LateNumber:
    """A number that a card has yet to come to.

    Args:
        numbers: Who has it copied.
        event: The end of the copy.
        place: The place of the host that it is copied to.
        source: The tensor that it is copied from, which has to stay until then.
    """

    def __init__(self, numbers: "LateNumbers", event: Event, place: torch.Tensor, source: torch.Tensor) -> None:
        self._numbers = numbers
        self._coming: tuple[Event, torch.Tensor, torch.Tensor] | None = (event, place, source)
        self._lock = threading.Lock()
        self._value: float | None = None

    @property
    def is_there(self) -> bool:
        """True once it is known, or never will be as the card is lost. Asked by any thread: nothing waits."""
        with self._lock:
            if self._coming is None:
                return True
            event, place, _ = self._coming
            device = self._numbers.device
            try:
                if not self._numbers.may_ask() or not device.is_over(event):
                    return False
                self._value = float(place)
                self._numbers.free(place)
            except Exception as error:  # noqa: BLE001 - who asks watches a run, and goes on
                if not device.is_loss(error):
                    return False
            self._coming = None
            return True

    @property
    def value(self) -> float | None:
        """The number; None while the card has not come to it, and where it was lost before."""
        return self._value if self.is_there else None


class LateNumbers:
    """Has numbers of cards copied to a page of the host.

    Args:
        device: The device. The calling thread is the one that trains.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # With a child that had it too, this process might see another page than the card.
        page.madvise(mmap.MADV_DONTFORK)
        _pages.append(page)
        self._is_locked = not device.register(ctypes.addressof(ctypes.c_char.from_buffer(page)), mmap.PAGESIZE)
        numbers = torch.frombuffer(page, dtype=torch.float64)
        self._free = [numbers[place : place + 1] for place in range(_PLACES)]
        self._coming: list[LateNumber] = []
        self._training_thread = threading.current_thread()
        self._entered = threading.local()

    def take(self, number: torch.Tensor) -> LateNumber | float | None:
        """Has a number copied, as it is when the calling thread's stream has come as far.

        Args:
            number: A tensor of one element, on a card. What is written to it afterwards does not show.

        Returns:
            The number to come. The number itself where the driver locks no memory: then it is waited for. None where a
            graph is being captured, in which nothing has a value, and where too many are on their way.
        """
        card = self.device.card_of(number)
        assert card is not None, "a number of the host is there already"
        # Whoever has lost interest in one that is on its way must not give its memory to somebody else.
        self._coming = [late for late in self._coming if not late.is_there]
        if self.device.is_capturing() or not self._free:
            return None
        try:
            own = number.detach().reshape(1).to(torch.float64, copy=True)
        except torch.OutOfMemoryError:
            return None
        if not self._is_locked:
            return float(own)
        place = self._free.pop()
        self.device.follow(card, self.device.mark(self.device.lane(card)))
        self.device.copy(card, own, place)
        late = LateNumber(self, self.device.event(card), place, own)
        self._coming.append(late)
        return late

    def may_ask(self) -> bool:
        """Tells whether the calling thread may ask for an event now, and prepares it where it is one of ours."""
        if threading.current_thread() is not self._training_thread and not hasattr(self._entered, "is_prepared"):
            self.device.enter_thread()
            self._entered.is_prepared = True
        return not self.device.is_capturing()

    def free(self, place: torch.Tensor) -> None:
        """Takes a place back."""
        self._free.append(place)


def number_of(value: float | torch.Tensor, late: LateNumbers | None) -> LateNumber | float | None:
    """Returns a number that training gives: now where it is on the host, to come where it is on a card.

    Args:
        value: The number, or a tensor of one element.
        late: For numbers of cards; None where there are none.

    Returns:
        None where nobody can tell it: in a graph that is being captured.
    """
    if not isinstance(value, torch.Tensor):
        return float(value)
    if late is None or value.numel() != 1 or late.device.card_of(value) is None:
        return float(value.detach())
    return late.take(value)
