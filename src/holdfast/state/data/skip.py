"""An epoch of a DataLoader that begins some batches in, without loading the batches before.

The loader's own iterator is made, from a copy of the loader whose sampler leaves out the first indices. So it draws
from the same generators in the same order as ever, and no skipped sample is touched, with workers or without. Likewise
for an epoch that goes through other indices than the loader's sampler would give.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch.utils.data import DataLoader

from holdfast.errors import CheckpointError

_END = object()


class SkippingLoader:
    """A DataLoader whose next epoch begins somewhere.

    Args:
        loader: The loader. Workers that it may have kept from before are given up.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader
        self._indices = _Indices(loader._index_sampler)
        self._copy = copy.copy(loader)
        self._copy._iterator = None
        # The attributes of a loader cannot be assigned to, and this one is ours.
        self._copy.__dict__["sampler" if loader.batch_sampler is None else "batch_sampler"] = self._indices

    def start_workers(self) -> None:
        """Starts the workers that a loader keeps over its epochs, as if an epoch had ended."""
        if self._loader.persistent_workers:
            self._indices.closed = True
            iter(self._copy)
            self._indices.closed = False
            self._loader._iterator = self._copy._iterator

    def after(self, batches: int, before_first: Callable[[], object] | None = None) -> Iterator[Any]:
        """Returns the loader's iterator after so many batches. Without workers, nothing is loaded before it is asked.

        Args:
            batches: The number of batches.
            before_first: Called between the making of the iterator and its first index.

        Raises:
            CheckpointError: An epoch has fewer batches.
        """
        self._indices.skip = batches
        return self._begun(before_first)

    def through(self, indices: Iterable[Any]) -> Iterator[Any]:
        """Returns the loader's iterator for one epoch of these, instead of what its own sampler gives."""
        self._indices.instead = indices
        return self._begun()

    def _begun(self, before_first: Callable[[], object] | None = None) -> Iterator[Any]:
        iterator = iter(self._copy)
        if before_first is not None:
            before_first()
        self._indices.finish()
        # Workers that are kept belong to the loader itself from here on.
        self._loader._iterator = self._copy._iterator
        return iterator


class _Indices:
    """The loader's index sampler, whose next pass leaves out the first indices, or goes through others."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self._latest: _Pass | None = None
        self.skip = 0
        self.instead: Iterable[Any] | None = None
        self.closed = False

    def __iter__(self) -> Iterator[Any]:
        if self.closed:
            return iter(())
        # Some samplers draw as soon as they are asked for an iterator, others at its first index: nothing here may
        # change which. A loader with workers asks twice, and uses the second.
        self._latest = _Pass(iter(self._sampler if self.instead is None else self.instead), self.skip)
        return self._latest

    def __len__(self) -> int:
        return len(self._sampler)

    def finish(self) -> None:
        """Skips now, if the loader has not asked for an index yet. Later passes are whole, and the sampler's own."""
        if self._latest is not None:
            self._latest.skip()
        self.skip = 0
        self.instead = None


class _Pass:
    """One pass through indices, which leaves out the first ones."""

    def __init__(self, indices: Iterator[Any], skip: int) -> None:
        self._indices = indices
        self._wanted = self._left = skip

    def __iter__(self) -> "_Pass":
        return self

    def __next__(self) -> Any:
        self.skip()
        return next(self._indices)

    def skip(self) -> None:
        while self._left:
            if next(self._indices, _END) is _END:
                raise too_short(self._wanted, self._wanted - self._left)
            self._left -= 1


def too_short(wanted: int, available: int) -> CheckpointError:
    """Returns the error of data that ends before the position of the checkpoint."""
    return CheckpointError(
        f"the checkpoint was saved after {wanted} batches of an epoch, and the data has {available}",
        hint="resume with the data and the batch size that it was trained on",
    )
