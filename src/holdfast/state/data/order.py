"""In which order an epoch goes through its samples, told so that it can be made again by processes of any number.

An order is a list of places in the dataset. Processes that share it out take turns: of so many, the one with rank `r`
has the places `r`, `r` + so many, and so on. So after some batches of each, a first stretch of the list was taken, and
what is left can be shared out among another number of processes, or in batches of another size.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch.utils.data import DistributedSampler, RandomSampler, SequentialSampler

from holdfast.errors import CheckpointError
from holdfast.state.data import loader as data_source
from holdfast.state.data.partition import share_of
from holdfast.state.rng.state import RngRecord

FORWARD = "forward"
"""One after the other."""
SEEDED = "seeded"
"""As a `DistributedSampler` shuffles: from a seed and the number of the epoch."""
DRAWN = "drawn"
"""As a `RandomSampler` shuffles: from a generator, as it was when the epoch began."""

# Where `data_source.generators` finds that of a loader itself.
_LOADER = "generator"
_SEEDS = range(-(1 << 63), 1 << 63)


class Order(NamedTuple):
    """The order of one epoch, and how it is being gone through."""

    kind: str
    samples: int
    """Of the dataset."""
    total: int
    """How many places it has that are gone through, nothing counted twice."""
    processes: int
    """How many share it out."""
    batch: int
    """Samples in a batch."""
    seed: int = 0
    generator: str | None = None
    """What draws it, by where `data_source.generators` finds it; None for the process's own."""
    passed: int = 0
    """How many places were taken before these processes went on with it, or batches of this size."""

    def taken(self, consumed: int) -> int:
        """How many places were taken when each process has had so many batches."""
        return min(self.passed + consumed * self.batch * self.processes, self.total)

    def check(self, states: Mapping[str, torch.Tensor]) -> None:
        """Looks whether what draws it can be put where it was when the epoch began.

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

    def places(
        self, epoch: int, begin: RngRecord, generators: Mapping[str, torch.Generator], *, workers_kept: bool
    ) -> list[int]:
        """The whole order. What the beginning of the epoch drew is drawn once more.

        Args:
            epoch: The number of the epoch.
            begin: The random state when it began.
            generators: Those that the data has here, by where they are found.
            workers_kept: Whether it began with the workers of the epoch before.
        """
        begin.restore(generators)
        if self.kind == FORWARD:
            return list(range(self.total))
        if self.kind == SEEDED:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            return torch.randperm(self.samples, generator=generator).tolist()[: self.total]
        wanted = begin.generators.keys() & {_LOADER, self.generator}
        drawing = {name: generators.get(name) or _at(begin.generators[name]) for name in wanted}
        if not workers_kept:
            torch.empty((), dtype=torch.int64).random_(generator=drawing.get(_LOADER))  # the workers' seed
        own = None if self.generator is None else drawing[self.generator]
        return list(RandomSampler(range(self.samples), generator=own))[: self.total]


def order_of(data: Any) -> Order | None:
    """The order in which data goes through an epoch; None where it is not known how it is made."""
    share = share_of(data)
    if share is None:
        return None
    sampler: Any = data_source.sampler(data)
    known = Order(FORWARD, share.samples, share.total, share.processes, share.batch)
    if type(sampler) is SequentialSampler:
        return known
    if type(sampler) is DistributedSampler:
        return known._replace(kind=SEEDED, seed=sampler.seed) if sampler.shuffle else known
    if type(sampler) is not RandomSampler or sampler.replacement or sampler.num_samples != share.samples:
        return None
    if sampler.generator is None:
        return known._replace(kind=DRAWN)
    found = data_source.generators(data).items()
    name = next((name for name, one in found if one is sampler.generator), None)
    return known._replace(kind=DRAWN, generator=name) if sampler.generator.device.type == "cpu" else None


def decode(given: Any) -> Order | None:
    """What `Order._asdict` gave.

    Raises:
        CheckpointError: It is no order.
    """
    if given is None:
        return None
    if not isinstance(given, Mapping) or not given.keys() >= set(Order._fields):
        raise _bad("something is missing")
    order = Order(**{name: given[name] for name in Order._fields})
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
