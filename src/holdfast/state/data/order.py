"""The order in which an epoch goes through its samples, described so that any number of processes can make it again.

An order is a list of places in the dataset. Processes that partition it take turns: of so many, the one with rank `r`
has the places `r`, `r` + so many, and so on. So after some batches of each, a first stretch of the list was taken, and
what is left can be redistributed among another number of processes, or in batches of another size.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch.utils.data import DistributedSampler, RandomSampler, SequentialSampler

from holdfast.errors import CheckpointError
from holdfast.state.data import loader
from holdfast.state.data.partition import partition_of
from holdfast.state.rng.state import RngRecord

FORWARD = "forward"
"""One after the other."""
SEEDED = "seeded"
"""As a `DistributedSampler` shuffles: from a seed and the number of the epoch."""
DRAWN = "drawn"
"""As a `RandomSampler` shuffles: from a generator, as it was when the epoch began."""

# The path that `loader.generators` has for that of a loader itself.
_LOADER = "generator"
_SEEDS = range(-(1 << 63), 1 << 63)


class Order(NamedTuple):
    """The order of one epoch, and the way in which it is being gone through."""

    kind: str
    samples: int
    """Of the dataset."""
    total: int
    """The number of its places that are gone through, nothing counted twice."""
    processes: int
    """The number of processes that partition it."""
    batch: int
    """Samples in a batch."""
    seed: int = 0
    generator: str | None = None
    """The generator that draws it, by its path in the data; None for the process's own."""
    passed: int = 0
    """The number of places that were taken before these processes went on with it, or batches of this size."""

    def taken(self, consumed: int) -> int:
        """Counts the places that are taken when each process has had so many batches."""
        return min(self.passed + consumed * self.batch * self.processes, self.total)

    def check(self, states: Mapping[str, torch.Tensor]) -> None:
        """Checks that what draws it can be put where it was when the epoch began.

        Raises:
            CheckpointError: It cannot.
        """
        size = torch.default_generator.get_state().numel()
        if self.kind != DRAWN:
            return
        if self.generator is not None and self.generator not in states:
            raise _bad(f"the state of generator {self.generator!r}, which draws it, is missing")
        if any(states[name].numel() != size for name in states.keys() & {_LOADER, self.generator}):
            raise _bad("the state of what draws it is none of a CPU's generator")

    def known_places(self, epoch: int) -> list[int]:
        """Returns the whole order, which is not drawn from any generator."""
        if self.kind == FORWARD:
            return list(range(self.total))
        generator = torch.Generator().manual_seed(self.seed + epoch)
        return torch.randperm(self.samples, generator=generator).tolist()[: self.total]

    def places(
        self, epoch: int, begin: RngRecord, generators: Mapping[str, torch.Generator], *, workers_kept: bool
    ) -> list[int]:
        """Returns the whole order. What the beginning of the epoch drew is drawn once more.

        Args:
            epoch: The number of the epoch.
            begin: The random state when it began.
            generators: Those that the data has here, by their paths in it.
            workers_kept: True if it began with the workers of the epoch before.
        """
        begin.restore(generators)
        if self.kind != DRAWN:
            return self.known_places(epoch)
        wanted = begin.generators.keys() & {_LOADER, self.generator}
        drawing = {name: generators.get(name) or _at(begin.generators[name]) for name in wanted}
        if not workers_kept:
            torch.empty((), dtype=torch.int64).random_(generator=drawing.get(_LOADER))  # the workers' seed
        own = None if self.generator is None else drawing[self.generator]
        return list(RandomSampler(range(self.samples), generator=own))[: self.total]


def order_of(data: Any) -> Order | None:
    """Returns the order in which data goes through an epoch; None where it is not known how it is made."""
    partition = partition_of(data)
    if partition is None:
        return None
    sampler: Any = loader.sampler(data)
    known = Order(FORWARD, partition.samples, partition.total, partition.processes, partition.batch)
    if type(sampler) is SequentialSampler:
        return known
    if type(sampler) is DistributedSampler:
        return known._replace(kind=SEEDED, seed=sampler.seed) if sampler.shuffle else known
    if sampler.replacement or sampler.num_samples != partition.samples:
        return None
    if loader.is_seedable(sampler):
        is_cpu = sampler.generator is None or sampler.generator.device.type == "cpu"
        return known._replace(kind=SEEDED, seed=sampler.initial_seed) if is_cpu else None
    if sampler.generator is None:
        return known._replace(kind=DRAWN)
    generators = loader.generators(data).items()
    name = next((name for name, generator in generators if generator is sampler.generator), None)
    return known._replace(kind=DRAWN, generator=name) if sampler.generator.device.type == "cpu" else None


def decode(encoded: Any) -> Order | None:
    """Returns the order that `Order._asdict` gave.

    Raises:
        CheckpointError: It is no order.
    """
    if encoded is None:
        return None
    if not isinstance(encoded, Mapping) or not encoded.keys() >= set(Order._fields):
        raise _bad("something is missing")
    order = Order(**{name: encoded[name] for name in Order._fields})
    counts = (order.samples, order.total, order.processes, order.batch, order.passed)
    if any(type(count) is not int or count < 0 for count in counts) or order.kind not in (FORWARD, SEEDED, DRAWN):
        raise _bad("kind and counts are not what they should be")
    if not order.passed <= order.total <= order.samples or not order.processes or not order.batch:
        raise _bad("its counts do not fit together")
    if type(order.seed) is not int or order.seed not in _SEEDS or not isinstance(order.generator, str | None):
        raise _bad("seed and generator are not what they should be")
    return order


def _at(state: torch.Tensor) -> torch.Generator:
    generator = torch.Generator()
    generator.set_state(state)
    return generator


def _bad(why: str) -> CheckpointError:
    return CheckpointError(f"the checkpoint's order of the data: {why}", hint="resume from another checkpoint")
