"""One pass through a loader as accelerate prepares it, which fetches one batch ahead of those that it hands out.

What is drawn for the batch ahead is drawn before the boundary after which it is trained on. So the random state before
it is recorded as well; a resume fetches that batch from there, and sets the boundary's state when it has come.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from holdfast.state.data import loader
from holdfast.state.data.inner import InnerState
from holdfast.state.rng import state as rng_state
from holdfast.state.rng.state import RngRecord

_END = object()


class Ahead(NamedTuple):
    """The random state from which a batch was fetched ahead."""

    random: RngRecord
    inner: Mapping[str, Any]
    """The states of the generators inside the loader, by their paths in it."""


class Fetching:
    """The iterator that a prepared loader fetches from: it knows the random state before the batch ahead.

    Args:
        iterator: That of the loader that it was prepared from.
        at: The number of batches that it has left out.
        in_one: The number of its batches that make one of the prepared loader.
        inner: The generators and states inside the loader.
    """

    def __init__(self, iterator: Iterator[Any], at: int, in_one: int, inner: InnerState) -> None:
        self._iterator = iterator
        self._inner = inner
        self._fetched = at
        self._in_one = in_one
        self._resumed_at = -1
        self._ahead: Ahead | None = None
        self._go_on: Callable[[], object] | None = None
        self.before: Ahead | None = None
        """The random state before the batch ahead was fetched."""

    def resume(self, at: int, ahead: "Ahead", go_on: Callable[[], object]) -> None:
        """Has the batch after so many fetched from a random state; then `go_on` sets that of the boundary."""
        self._resumed_at, self._ahead, self._go_on = at, ahead, go_on

    def arrive(self) -> None:
        """Sets the random state of the boundary, if that is still to be done."""
        if self._go_on is not None:
            go_on, self._go_on = self._go_on, None
            go_on()

    def __iter__(self) -> "Fetching":
        return self

    def __next__(self) -> Any:
        if self._fetched == self._resumed_at and self._ahead is not None:
            self._ahead.random.restore()
            self._inner.arrive(self._ahead.inner, made_again=False)
        elif self._fetched == self._resumed_at + self._in_one:
            self.arrive()
        if self._fetched % self._in_one == 0:
            self.before = Ahead(rng_state.record(), self._inner.record() if self._inner else {})
        try:
            batch = next(self._iterator)
        except StopIteration:
            if self._fetched >= self._resumed_at:
                self.arrive()
            raise
        self._fetched += 1
        return batch


class _Standing:
    """A loader whose iterator is there already."""

    def __init__(self, base: Any, iterator: Iterator[Any]) -> None:
        self._base = base
        self._iterator = iterator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)

    def __len__(self) -> int:
        return len(self._base)

    def __iter__(self) -> Iterator[Any]:
        return self._iterator


def in_one(data: Any) -> int:
    """Counts the batches of the loader beneath that make one of a prepared loader."""
    return data.state.num_processes if loader.is_dispatched(data) and not data.split_batches else 1


def synchronize(data: Any) -> None:
    """Has all processes begin an epoch with the random state of the first, as the loader itself does a moment later."""
    if getattr(data, "rng_types", None) is not None:
        utils = sys.modules["accelerate.utils"]
        utils.synchronize_rng_states(data.rng_types, data.synchronized_generator)


def through(data: Any, fetching: Fetching, skipped: int = 0) -> Iterator[Any]:
    """Yields the batches of a prepared loader.

    Args:
        data: The loader.
        fetching: The iterator that it fetches from.
        skipped: The number of its batches that it fetches, and hands out to nobody.
    """
    base, skips = data.base_dataloader, data.skip_batches
    data.base_dataloader, data.skip_batches = _Standing(base, fetching), skipped
    iterator = iter(data)
    try:
        batch = next(iterator, _END)
    finally:
        data.base_dataloader, data.skip_batches = base, skips
    fetching.arrive()
    while batch is not _END:
        yield batch
        batch = next(iterator, _END)
