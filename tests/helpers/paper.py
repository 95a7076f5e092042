"""A device that exists on paper alone, with the rules of CUDA's streams, and an adversary for their order.

Nothing runs when it is enqueued. An operation may run when all before it in its stream, and the events that it waits
for, are done; among those that may run a policy chooses. Copies run in halves, so that what is not ordered tears. What
nobody has kept by then is somebody else's memory, unless it was taken in our stream, where it is used again in order.
"""

import random
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

POLICIES = ("eager", "lazy", "training first", "ours first", "random")


class CardLostError(Exception):
    """What a card says that is lost."""


class Operation:
    def __init__(self, lane: "Lane", run: Callable[[], None], after: list["Operation"]) -> None:
        self.lane, self.run, self.after = lane, run, after
        self.done = False
        self.error: Exception | None = None


class Lane:
    """A stream."""

    def __init__(self, name: str, card: int, *, ours: bool = False) -> None:
        self.name, self.card, self.ours = name, card, ours
        self.queue: deque[Operation] = deque()
        self.last: Operation | None = None
        self.waits: list[Operation] = []

    def __repr__(self) -> str:
        return self.name


class PaperEvent:
    def __init__(self, operation: Operation | None) -> None:
        self.operation = operation


class PaperGraph:
    """A graph: what is put into lanes while it is captured is put there at each replay, and not before."""

    def __init__(self, paper: "Paper") -> None:
        self.paper = paper
        self.works: list[tuple[int, Callable[[], None]]] = []

    def capture_begin(self) -> None:
        self.works.clear()

    def capture_end(self) -> None:
        pass

    def replay(self) -> None:
        for card, work in self.works:
            self.paper.put(card, work)


class Paper:
    """The device.

    Args:
        policy: One of `POLICIES`: `lazy` runs nothing but what somebody waits for.
        seed: The seed of what is left to chance.
        cards: The number of cards.
        in_step: True where what training does runs at once, as with tensors of the CPU that are taken for a card's: an
            event that it is to wait for is over before it goes on. False where training enqueues its work with `put`.

    """

    def __init__(self, policy: str = "lazy", seed: int = 0, cards: int = 1, *, in_step: bool = False) -> None:
        assert policy in POLICIES, policy
        self.policy, self.cards, self.in_step = policy, cards, in_step
        self._random = random.Random(seed)
        self._lock = threading.RLock()
        self._thread = threading.local()
        self._pending: list[Operation] = []
        self._current = [Lane(f"training {card}", card) for card in range(cards)]
        self._ours = [Lane(f"ours {card}", card, ours=True) for card in range(cards)]
        self._places: dict[int, int | None] = {}
        self._left: int | None = None
        self._made_in_ours: set[int] = set()
        self.lost = False
        self.refuses_to_register_after: int | None = None
        self.registered: list[tuple[int, int]] = []
        self.free = 1 << 34
        self.waits = 0
        """The number of times that a thread has waited for an event."""
        self.older_than_live = ""

    def place(self, tensor: torch.Tensor, card: int | None) -> torch.Tensor:
        """Puts a tensor on a card; None leaves it with the host."""
        self._places[tensor.untyped_storage().data_ptr()] = card
        return tensor

    def put(self, card: int, *works: Callable[[], None]) -> None:
        """Enqueues work of training in its current lane, in order; each may be cut from the next."""
        if self._graph is not None:
            self._graph.works += ((card, work) for work in works)
            return
        with self._lock:
            for work in works:
                self._add(self._lane(card), work)

    def write(self, tensor: torch.Tensor, value: float) -> None:
        """Enqueues an update of a tensor, in halves."""
        card = self.card_of(tensor)
        assert card is not None
        flat = tensor.detach().reshape(-1)
        half = flat.numel() // 2
        self.put(card, lambda: _fill(flat[:half], value), lambda: _fill(flat[half:], value))

    @contextmanager
    def in_lane(self, lane: Lane) -> Iterator[None]:
        """Has the calling thread train in another stream."""
        lanes = self._thread.__dict__.setdefault("lanes", {})
        before = lanes.get(lane.card)
        lanes[lane.card] = lane
        try:
            yield
        finally:
            lanes[lane.card] = before

    @contextmanager
    def capture(self) -> Iterator["PaperGraph"]:
        """Encloses the capture of a graph by the calling thread."""
        graph = PaperGraph(self)
        graph.capture_begin()
        try:
            with self.capturing(graph):
                yield graph
        finally:
            graph.capture_end()

    @contextmanager
    def capturing(self, graph: "PaperGraph") -> Iterator[None]:
        """Has what the calling thread puts into its lanes go into a graph: as autograd's threads do in a backward."""
        before = self._graph
        self._thread.graph = graph
        try:
            yield
        finally:
            self._thread.graph = before

    def lose_after(self, operations: int) -> None:
        """Loses the card after so many more operations of ours."""
        self._left = operations

    # The contract

    def card_of(self, tensor: torch.Tensor) -> int | None:
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            return None
        pointer = (
            getattr(tensor, "_local_tensor", tensor).untyped_storage().data_ptr()
        )  # of a distributed one, its share
        return self._places.get(pointer, pointer // 64 % self.cards)

    def why_not_live(self) -> str:
        return self.older_than_live

    def enter_thread(self, card: int | None = None) -> None:
        self._thread.entered = True

    def is_capturing(self) -> bool:
        return self._graph is not None

    def graph_class(self) -> type:
        return PaperGraph

    def lane(self, card: int) -> Hashable:
        return self._lane(card)

    def mark(self, lane: Any) -> PaperEvent:
        with self._lock:
            return PaperEvent(lane.last)

    def hold(self, card: int, event: Any) -> None:
        self.join(self._lane(card), event)

    def join(self, lane: Any, event: Any) -> None:
        with self._lock:
            if self.in_step:
                self._run_until(event)
            elif event.operation is not None and not event.operation.done:
                lane.waits.append(event.operation)

    @contextmanager
    def ours(self) -> Iterator[None]:
        with _Made(self._made_in_ours):
            yield

    def follow(self, card: int, event: Any) -> None:
        with self._lock:
            if event.operation is not None and not event.operation.done:
                self._ours[card].waits.append(event.operation)

    def copy(self, card: int, source: torch.Tensor, target: torch.Tensor) -> None:
        assert source.numel() == target.numel() and source.dtype == target.dtype
        first, second = (
            (slice(0, source.shape[0] // 2), slice(source.shape[0] // 2, None)) if source.dim() else (..., ...)
        )
        alias = source.detach()  # has the memory, and not whoever has the tensor
        del source
        with self._lock:
            self._add(self._ours[card], lambda: _copy(target[first], self._kept(alias)[first]))
            self._add(self._ours[card], lambda: _copy(target[second], self._kept(alias)[second]))

    def enqueue(self, card: int, work: Callable[[], None]) -> None:
        with self._lock:
            self._add(self._ours[card], work)

    def event(self, card: int) -> PaperEvent:
        with self._lock:
            return PaperEvent(self._ours[card].last)

    def wait(self, event: Any) -> None:
        self.waits += 1
        with self._lock:
            self._run_until(event)

    def is_over(self, event: Any) -> bool:
        with self._lock:
            if self.lost:
                raise CardLostError("the paper has burnt")
            return event.operation is None or event.operation.done

    def is_loss(self, error: BaseException) -> bool:
        return isinstance(error, CardLostError)

    def register(self, address: int, size: int) -> str:
        if self.refuses_to_register_after is not None and len(self.registered) >= self.refuses_to_register_after:
            return f"the paper takes no {size:,} bytes more"
        self.registered.append((address, size))
        return ""

    def bus_address(self, card: int) -> str:
        return ""

    def unregister(self, address: int) -> None:
        self.registered = [(begin, size) for begin, size in self.registered if begin != address]

    def free_bytes(self, card: int) -> int:
        return self.free

    # What runs when

    def finish(self) -> None:
        """Runs all that is enqueued."""
        with self._lock:
            while self._pending:
                self._step(None)

    def _kept(self, alias: torch.Tensor) -> torch.Tensor:
        storage = alias.untyped_storage()
        # What has the memory of a buffer has not taken any.
        if _owners(alias) <= _ALONE and storage.resizable() and storage.data_ptr() not in self._made_in_ours:
            torch.empty(0, dtype=torch.uint8).set_(storage).fill_(0xAB)
        return alias

    @property
    def _graph(self) -> "PaperGraph | None":
        graph: PaperGraph | None = getattr(self._thread, "graph", None)
        return graph

    def _lane(self, card: int) -> Lane:
        lanes: dict[int, Lane] = self._thread.__dict__.setdefault("lanes", {})
        return lanes.get(card) or self._current[card]

    def _add(self, lane: Lane, work: Callable[[], None]) -> None:
        if self.lost:
            raise CardLostError("the paper has burnt")
        if self.in_step and not lane.ours:
            work()
            return
        operation = Operation(lane, work, lane.waits)
        lane.waits, lane.last = [], operation
        lane.queue.append(operation)
        self._pending.append(operation)
        if self.policy == "eager":
            while self._ready():
                self._step(None)
        elif self.policy == "random":
            while self._ready() and self._random.random() < 0.5:
                self._step(None)

    def _run_until(self, event: PaperEvent) -> None:
        operation = event.operation
        while operation is not None and not operation.done:
            if self.lost:
                raise CardLostError("the paper has burnt")
            self._step(operation)

    def _ready(self) -> list[Operation]:
        return [
            operation
            for operation in self._pending
            if operation.lane.queue[0] is operation and all(before.done for before in operation.after)
        ]

    def _needed(self, goal: Operation) -> set[Operation]:
        needed: set[Operation] = set()
        todo = [goal]
        while todo:
            operation = todo.pop()
            if operation.done or operation in needed:
                continue
            needed.add(operation)
            todo += operation.after
            at = operation.lane.queue.index(operation)
            if at:
                todo.append(operation.lane.queue[at - 1])
        return needed

    def _step(self, goal: Operation | None) -> None:
        ready = self._ready()
        assert ready, "nothing can run, and somebody waits: a circle of events"
        if self.policy == "lazy" and goal is not None:
            needed = self._needed(goal)
            ready = [operation for operation in ready if operation in needed]
        if self.policy in ("training first", "ours first"):
            ready = [operation for operation in ready if operation.lane.ours == (self.policy == "ours first")] or ready
        operation = self._random.choice(ready) if self.policy in ("random", "lazy") else ready[0]
        if operation.lane.ours and self._left is not None:
            self._left -= 1
            if self._left < 0:
                self.lost = True
                raise CardLostError("the paper has burnt")
        operation.run()
        operation.done = True
        operation.lane.queue.popleft()
        self._pending.remove(operation)


def taken_for_cards(monkeypatch: pytest.MonkeyPatch, paper: Paper) -> Paper:
    """Has trainings that begin from now on take the memory of the host for that of a device's cards."""
    for where in ("holdfast.engine.capturing", "holdfast.loop.restore"):
        monkeypatch.setattr(f"{where}.device_in_use", lambda: paper)
    return paper


class _Made(TorchFunctionMode):
    """Notes what is taken of memory."""

    def __init__(self, pointers: set[int]) -> None:
        super().__init__()
        self._pointers = pointers

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if function in (torch.empty, torch.cat, torch.Tensor.contiguous, torch.Tensor.clone):
            self._pointers.add(made.untyped_storage().data_ptr())
        return made


def _owners(tensor: torch.Tensor) -> int:
    count: int = torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)
    return count


_ALONE = _owners(torch.empty(1))


def _fill(tensor: torch.Tensor, value: float) -> None:
    with torch.no_grad():
        tensor.data.fill_(value)


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    with torch.no_grad():
        target.data.copy_(source.data)
