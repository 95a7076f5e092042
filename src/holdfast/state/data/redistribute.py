"""The way on through an epoch that another number of processes has begun, or batches of another size.

If the order of the epoch is known, its rest is redistributed. Otherwise each process goes about as far into an epoch of
its own as those had come.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from holdfast.state.data import loader
from holdfast.state.data.order import DRAWN, Order
from holdfast.state.data.partition import Partition, partition_of
from holdfast.state.data.position import Position
from holdfast.state.data.skip import SkippingLoader
from holdfast.state.rng import state as rng_state


class Redistribution(NamedTuple):
    """The position that this process goes to, and what the user is told of it."""

    position: Position
    notice: str = ""
    """Empty where the position is the one that was saved."""
    by_guess: bool = False
    """True where the data may end before the position."""


def redistribute(at: Position, settings: Any, data: Any, saved_by: int, processes: int) -> Redistribution:
    """Finds the position that a process goes to.

    Args:
        at: The position that was saved.
        settings: The loader's settings that were saved with it.
        data: The data that it goes on with.
        saved_by: The number of processes that trained then.
        processes: The number of processes now.
    """
    if at.begin is None:
        return Redistribution(at)  # between two epochs there is nothing to redistribute
    partition, order = partition_of(data), at.order
    # What each of several processes has drawn for itself is the order of that one alone.
    shared = order is not None and (saved_by == 1 or order.passed or order.processes > 1 or order.kind != DRAWN)
    if partition is None or order is None or not shared or order.samples != partition.samples:
        as_before = saved_by == processes and (order is None or not order.passed)
        return Redistribution(at) if as_before else _about_as_far(at, settings, data, saved_by, processes)
    same = (order.processes, order.batch) == (partition.processes, partition.batch)
    if same and not order.passed:
        return Redistribution(at, _not_partitioned(partition, processes) if saved_by < processes else "")
    notice = "" if same else _not_partitioned(partition, processes) or "the rest of the epoch is shared out anew"
    return _partition_the_rest(at, order, partition, notice)


def rest_of_epoch(at: Position, data: Any, generators: Mapping[str, torch.Generator]) -> Iterator[Any]:
    """Returns the iterator of a DataLoader over what this process gets of an epoch that is redistributed.

    Args:
        at: A position whose order was passed in part before.
        data: The loader.
        generators: Those that it has, by their paths in it. They end as its own beginning of the epoch leaves them.
    """
    partition = partition_of(data)
    assert at.begin is not None and at.order is not None and partition is not None
    places = at.order.places(at.epoch, at.begin, generators, workers_kept=at.workers_kept)
    begun = rng_state.record(generators)
    iterator = SkippingLoader(data).through(partition.rest_of(places, at.order.passed))
    begun.restore(generators)
    return iterator


def _partition_the_rest(at: Position, order: Order, partition: Partition, notice: str) -> Redistribution:
    passed = order.taken(at.consumed)
    left = order.total - passed
    if not partition.batches(left):
        return Redistribution(_next_epoch(at), notice and "no batch was left of the epoch")
    if notice and (repeated := partition.repeated(left)):
        notice += f" ({repeated} of its samples twice, so that all processes have as many)"
    order = order._replace(passed=passed, processes=partition.processes, batch=partition.batch)
    return Redistribution(at._replace(consumed=0, order=order), notice)


def _not_partitioned(partition: Partition, processes: int) -> str:
    return "every process goes through the whole rest of the epoch" if partition.processes == 1 < processes else ""


def _about_as_far(at: Position, settings: Any, data: Any, saved_by: int, processes: int) -> Redistribution:
    notice = "the order of the data cannot be carried over"
    if at.state is not None:
        return Redistribution(
            at._replace(order=None), f"{notice}: the data goes on from the state that it had in one process"
        )
    done, total = at.consumed, settings.get("batches") if isinstance(settings, Mapping) else None
    if at.order is not None:
        done, total = at.order.taken(at.consumed), at.order.total
    batches = loader.batches(data)
    if batches is not None and type(total) is int and total > 0:
        consumed, by_guess = done * batches // total, False
        if consumed >= batches:
            return Redistribution(_next_epoch(at), f"{notice}; no batch was left of the epoch")
    else:  # it is taken for one that is partitioned too
        consumed, by_guess = at.consumed * saved_by // processes, True
    dropped = "" if loader.can_skip(data) and not by_guess else ", which are loaded and dropped"
    notice = f"{notice}: every process goes on after {consumed} batches of its own{dropped}"
    if not consumed:
        return Redistribution(Position(at.epoch, 0, None, False, None, None), notice)
    return Redistribution(at._replace(consumed=consumed, order=None), notice, by_guess)


def _next_epoch(at: Position) -> Position:
    return Position(at.epoch + 1, 0, None, False, None, None)
