"""What one process gets of the samples of an epoch: every so many-th of them, in batches."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch.utils.data import BatchSampler, DistributedSampler, RandomSampler, SequentialSampler

from holdfast.state.data import loader as data_source


class Share(NamedTuple):
    """How a DataLoader shares samples out among processes, and makes batches of its own."""

    samples: int
    """Of the dataset."""
    rank: int
    processes: int
    batch: int
    """Samples in a batch."""
    cuts: bool
    """Whether samples that do not go round are left out; otherwise some come twice."""
    whole: bool
    """Whether a last batch that is smaller is left out."""
    batched: bool
    """Whether the loader makes batches at all."""

    @property
    def total(self) -> int:
        """How many samples all processes go through in an epoch, without those that come twice."""
        each = self.each(self.samples)
        return min(self.samples, (each - each % self.batch if self.whole else each) * self.processes)

    def each(self, samples: int) -> int:
        """How many of so many samples every process gets."""
        return samples // self.processes if self.cuts else -(-samples // self.processes)

    def batches(self, samples: int) -> int:
        """How many batches these are."""
        return self.each(samples) // self.batch if self.whole else -(-self.each(samples) // self.batch)

    def repeated(self, samples: int) -> int:
        """How many of so many samples come twice, so that all processes have as many."""
        return max(0, self.each(samples) * self.processes - samples)

    def rest_of(self, places: Sequence[int], passed: int) -> Any:
        """A sampler of what this process gets of an order, after so many of its places."""
        rest = itertools.islice(
            itertools.chain(places[passed:], itertools.cycle(places)), self.each(len(places) - passed) * self.processes
        )
        own = list(rest)[self.rank :: self.processes]
        return BatchSampler(own, self.batch, self.whole) if self.batched else own


def share_of(data: Any) -> Share | None:
    """How a DataLoader with torch's own samplers shares its data out; None for anything else."""
    batches = data.batch_sampler if data_source.can_skip(data) else None
    if not data_source.can_skip(data) or (batches is not None and type(batches) is not BatchSampler):
        return None
    sampler: Any = data_source.sampler(data)
    rank, processes, cuts = 0, 1, False
    if type(sampler) is DistributedSampler:
        source: Any = sampler.dataset
        rank, processes, cuts = sampler.rank, sampler.num_replicas, sampler.drop_last
    elif type(sampler) in (RandomSampler, SequentialSampler):
        source = sampler.data_source
    else:
        return None
    size, whole = (1, False) if batches is None else (batches.batch_size, batches.drop_last)
    return Share(len(source), rank, processes, size, cuts, whole, batches is not None)
