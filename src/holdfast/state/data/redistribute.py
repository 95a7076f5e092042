"""The way on through an epoch that another number of processes has begun, or batches of another size.

If the order of the epoch is known, its rest is redistributed. Otherwise each process goes about as far into an epoch of
its own as those had come.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from holdfast.state.data import loader
from holdfast.state.data.order import DRAWN, Order, order_of
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
    if partition is None or order is None or not _is_shared(order, saved_by) or order.samples != partition.samples:
        as_before = saved_by == processes and (order is None or not order.passed)
        return Redistribution(at) if as_before else _about_as_far(at, settings, data, saved_by, processes)
    same = (order.processes, order.batch) == (partition.processes, partition.batch)
    if same and not order.passed and (at.set_epoch is not None or _is_made_alike(order, data)):
        return Redistribution(at, _not_partitioned(partition, processes) if saved_by < processes else "")
    notice = "" if same else _not_partitioned(partition, processes) or "the rest of the epoch is shared out anew"
    return _partition_the_rest(at, order, partition, notice)


def other_order(at: Position, settings: Any, data: Any, saved_by: int, processes: int) -> str:
    """Says if the rest of an epoch would have to be gone through in an order that cannot be made again.

    Args:
        at: The position that was saved.
        settings: The loader's settings that were saved with it.
        data: The data that it goes on with.
        saved_by: The number of processes that trained then.
        processes: The number of processes now.

    Returns:
        A line; empty where it can, where the data has its own state or is of another size, and for a stream.
    """
    then, now = settings if isinstance(settings, Mapping) else {}, loader.settings(data)
    if at.begin is None or at.state is not None or not loader.can_skip(data):
        return ""
    if then.get("samples") != now.get("samples") or (at.order is not None and _is_shared(at.order, saved_by)):
        return ""
    changes = [f"{saved_by} processes saved it and {processes} go on"] if saved_by != processes else []
    changes += [
        f"{name} is {now[name]} and was {then[name]}"
        for name in ("batch_size", "batches")
        if not changes and name in then and name in now and then[name] != now[name]
    ][:1]
    if not changes:
        return ""
    kind = type(loader.sampler(data) if hasattr(loader.batch_sampler(data), "sampler") else data.batch_sampler)
    return f"data: {changes[0]}, and the order of a {kind.__name__} cannot be computed again in the middle of an epoch"


def _is_shared(order: Order, saved_by: int) -> bool:
    """Tells if an order is that of all processes: what each has drawn for itself is the order of that one alone."""
    return saved_by == 1 or bool(order.passed) or order.processes > 1 or order.kind != DRAWN


def _is_made_alike(order: Order, data: Any) -> bool:
    here = order_of(data)
    return here is None or (here.kind, here.seed) == (order.kind, order.seed)


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
    iterator = SkippingLoader(loader.base(data)).through(partition.rest_of(places, at.order.passed))
    begun.restore(generators)
    return iterator


def _partition_the_rest(at: Position, order: Order, partition: Partition, notice: str) -> Redistribution:
    passed = order.taken(at.consumed)
    if (order.processes, order.batch) != (partition.processes, partition.batch):
        order = order._replace(total=order.samples)  # what those batches would have cut off may fit into these
    left = order.total - passed
    if not partition.batches(left):
        return Redistribution(_next_epoch(at), notice and "no batch was left of the epoch")
    if notice and (repeated := partition.repeated(left)):
        notice += f" ({repeated} of its samples twice, so that all processes have as many)"
    if notice and (cut_off := left - partition.covered(left)):
        notice += f" ({cut_off} of its samples are cut off, too few for a batch)"
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


def in_other_data(at: Position, settings: Any) -> tuple[Position, str]:
    """Finds the position in data of another size: the beginning of the epoch, or of the next if that one was over.

    Args:
        at: The position that was saved.
        settings: The loader's settings that were saved with it.

    Returns:
        The position, and the end of a line for the user, which is empty where nothing is gone through again.
    """
    if at.begin is None:
        return at, ""
    whole = settings.get("batches") if isinstance(settings, Mapping) else None
    is_over = type(whole) is int and at.consumed >= whole
    if at.order is not None:
        is_over = at.order.taken(at.consumed) >= at.order.total
    if is_over:
        return _next_epoch(at), ""
    return Position(at.epoch, 0, None, False, None, None), f": epoch {at.epoch} begins anew"


def _next_epoch(at: Position) -> Position:
    return Position(at.epoch + 1, 0, None, False, None, None)
