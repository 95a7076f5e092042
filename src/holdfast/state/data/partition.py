"""The part of an epoch's samples that one process gets: every so many-th of them, in batches."""

import copy
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

    shard: Any = None
    """The sampler of accelerate that gives each process whole batches in turn; None where samples go round."""

    @property
    def total(self) -> int:
        """The number of samples that all processes go through in an epoch, without those that come twice."""
        return self.covered(self.samples)

    def each(self, samples: int) -> int:
        """Counts those of so many samples that every process gets, in batches or not."""
        return samples // self.processes if self.drops_uneven else -(-samples // self.processes)

    def batches(self, samples: int) -> int:
        """Counts the batches of these."""
        if self.shard is not None:
            return len(self._sharded(range(samples)))
        return self.each(samples) // self.batch if self.drops_last else -(-self.each(samples) // self.batch)

    def covered(self, samples: int) -> int:
        """Counts those of so many samples that some process gets: the rest is cut off."""
        if self.shard is not None:
            at_once = self.batch * self.processes
            return samples // at_once * at_once if self.drops_last else samples
        each = self.each(samples)
        return min(samples, (each - each % self.batch if self.drops_last else each) * self.processes)

    def repeated(self, samples: int) -> int:
        """Counts those of so many samples that come twice, so that all processes have as many."""
        if self.shard is not None:
            return (self._filled(samples) - samples) if samples else 0
        return max(0, self.each(samples) * self.processes - samples)

    def rest_of(self, places: Sequence[int], passed: int) -> Any:
        """Returns a sampler of what this process gets of an order, after so many of its places."""
        left = len(places) - passed
        wanted = self.each(left) * self.processes if self.shard is None else self._filled(left)
        rest = list(itertools.islice(itertools.chain(places[passed:], itertools.cycle(places)), wanted))
        if self.shard is not None:
            return self._sharded(rest)
        own = rest[self.rank :: self.processes]
        return BatchSampler(own, self.batch, self.drops_last) if self.batched else own

    def _filled(self, samples: int) -> int:
        at_once = self.batch * self.processes
        return samples if self.drops_last or not self.shard.even_batches else -(-samples // at_once) * at_once

    def _sharded(self, places: Sequence[int]) -> Any:
        own = copy.copy(self.shard)
        own.batch_sampler = BatchSampler(places, own.batch_size, own.drop_last)
        return own


def partition_of(data: Any) -> Partition | None:
    """Returns the partition that a DataLoader with torch's own samplers makes; None for anything else."""
    if not loader.can_skip(data):
        return None
    batches, shard = loader.batch_sampler(data), loader.shard(data)
    if batches is not None and type(batches) is not BatchSampler:
        return None
    sampler: Any = loader.sampler(data)
    rank, processes, drops_uneven = 0, 1, False
    if type(sampler) is DistributedSampler and shard is None:
        source: Any = sampler.dataset
        rank, processes, drops_uneven = sampler.rank, sampler.num_replicas, sampler.drop_last
    elif type(sampler) in (RandomSampler, SequentialSampler) or loader.is_seedable(sampler):
        source = sampler.data_source
    else:
        return None
    size, drops_last = (1, False) if batches is None else (batches.batch_size, batches.drop_last)
    if shard is not None:
        rank, processes = shard.process_index, shard.num_processes
        size = size // processes if shard.split_batches else size
    return Partition(len(source), rank, processes, size, drops_uneven, drops_last, batches is not None, shard)
