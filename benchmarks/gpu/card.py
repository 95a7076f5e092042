"""The card as the measurements use it: streams, events, memory. On the CPU the same calls do nothing, for a dry run."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch


class Card:
    """One device.

    Args:
        device: `cuda` or `cpu`.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.is_real = device == "cuda"
        self._module: Any = torch.get_device_module(device)

    def stream(self) -> Any:
        """Returns a new stream."""
        return self._module.Stream()

    def on(self, stream: Any) -> contextlib.AbstractContextManager[Any]:
        """Encloses work that goes to a stream."""
        entered: contextlib.AbstractContextManager[Any] = self._module.stream(stream)
        return entered

    def event(self) -> Any:
        """Returns an event in the current stream, whose waiter sleeps."""
        if not self.is_real:
            return self._module.Event()
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def current(self) -> Any:
        """Returns the current stream."""
        return self._module.current_stream()

    def settle(self) -> None:
        """Waits until the card has done what it was told."""
        self._module.synchronize()

    def release(self) -> None:
        """Gives back what the allocator keeps for later."""
        if self.is_real:
            torch.cuda.empty_cache()

    def free_bytes(self) -> int:
        """Returns what nobody uses of the card's memory."""
        return int(torch.cuda.mem_get_info()[0]) if self.is_real else 1 << 30

    def trouble(self) -> tuple[int, int]:
        """Returns how often the allocator has tried again, and how often it was out of memory."""
        if not self.is_real:
            return 0, 0
        stats = torch.cuda.memory_stats()
        return int(stats.get("num_alloc_retries", 0)), int(stats.get("num_ooms", 0))

    def reserved_peak(self, *, reset: bool = False) -> int:
        """Returns the most that the allocator held since the last reset."""
        if not self.is_real:
            return 0
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.max_memory_reserved())

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """Captures work as a graph, and returns what replays it. On the CPU it is the work itself."""
        if not self.is_real:
            return work
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        replay: Callable[[], None] = graph.replay
        return replay

    def describe(self) -> dict[str, Any]:
        """Returns what the card is."""
        if not self.is_real:
            return {"name": "cpu", "memory": 0, "driver": ""}
        properties = torch.cuda.get_device_properties(0)
        return {"name": properties.name, "memory": properties.total_memory, "cuda": torch.version.cuda}


@contextlib.contextmanager
def training_stream(card: Card, *, default: bool) -> Iterator[None]:
    """Has the calling thread train in the default stream, or in another."""
    if default:
        yield
        return
    stream = card.stream()
    stream.wait_stream(card.current())
    with card.on(stream):
        yield
    card.current().wait_stream(stream)
