"""The part of an epoch's samples that one process gets: every so many-th of them, in batches."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch.utils.data import BatchSampler, DistributedSampler, RandomSampler, SequentialSampler

from holdfast.state.data import loader


class Partition(NamedTuple):
    """The way in which a DataLoader partitions samples among processes, and makes batches of its own."""

    samples: int
    """Of the dataset."""
    rank: int
    processes: int
    batch: int
    """Samples in a batch."""
    drops_uneven: bool
    """True where samples that do not go round are left out; otherwise some come twice."""
    drops_last: bool
    """True where a last batch that is smaller is left out."""
    batched: bool
    """True where the loader makes batches at all."""

    @property
    def total(self) -> int:
        """The number of samples that all processes go through in an epoch, without those that come twice."""
        each = self.each(self.samples)
        return min(self.samples, (each - each % self.batch if self.drops_last else each) * self.processes)

    def each(self, samples: int) -> int:
        """Counts those of so many samples that every process gets."""
        return samples // self.processes if self.drops_uneven else -(-samples // self.processes)

    def batches(self, samples: int) -> int:
        """Counts the batches of these."""
        return self.each(samples) // self.batch if self.drops_last else -(-self.each(samples) // self.batch)

    def repeated(self, samples: int) -> int:
        """Counts those of so many samples that come twice, so that all processes have as many."""
        return max(0, self.each(samples) * self.processes - samples)

    def rest_of(self, places: Sequence[int], passed: int) -> Any:
        """Returns a sampler of what this process gets of an order, after so many of its places."""
        rest = itertools.islice(
            itertools.chain(places[passed:], itertools.cycle(places)), self.each(len(places) - passed) * self.processes
        )
        own = list(rest)[self.rank :: self.processes]
        return BatchSampler(own, self.batch, self.drops_last) if self.batched else own


def partition_of(data: Any) -> Partition | None:
    """Returns the partition that a DataLoader with torch's own samplers makes; None for anything else."""
    batches = data.batch_sampler if loader.can_skip(data) else None
    if not loader.can_skip(data) or (batches is not None and type(batches) is not BatchSampler):
        return None
    sampler: Any = loader.sampler(data)
    rank, processes, drops_uneven = 0, 1, False
    if type(sampler) is DistributedSampler:
        source: Any = sampler.dataset
        rank, processes, drops_uneven = sampler.rank, sampler.num_replicas, sampler.drop_last
    elif type(sampler) in (RandomSampler, SequentialSampler):
        source = sampler.data_source
    else:
        return None
    size, drops_last = (1, False) if batches is None else (batches.batch_size, batches.drop_last)
    return Partition(len(source), rank, processes, size, drops_uneven, drops_last, batches is not None)
