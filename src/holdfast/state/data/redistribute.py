"""How processes go on with the data of an epoch that processes of another number have begun.

Where the order of the epoch is known its rest is shared out anew. Otherwise each process goes about as far into an
epoch of its own as those had come.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from holdfast.state.data import loader as data_source
from holdfast.state.data.order import DRAWN, Order
from holdfast.state.data.partition import Share, share_of
from holdfast.state.data.position import Position
from holdfast.state.data.skip import Skipping
from holdfast.state.rng import state as random_state


class Handover(NamedTuple):
    """Where this process goes on, and what is to be said of it: nothing where it is the position that it was."""

    at: Position
    said: str = ""
    by_guess: bool = False
    """Whether the data may end before the position."""


def go_on(at: Position, then: Any, data: Any, saved_by: int, processes: int) -> Handover:
    """Finds the position that a process goes to.

    Args:
        at: The position that was saved.
        then: What was saved of the loader.
        data: The data that it goes on with.
        saved_by: How many processes trained then.
        processes: How many do now.
    """
    if at.begin is None:
        return Handover(at)  # between two epochs there is nothing to share out
    share, order = share_of(data), at.order
    # What each of several processes has drawn for itself is the order of that one alone.
    common = order is not None and (saved_by == 1 or order.passed or order.processes > 1 or order.kind != DRAWN)
    if share is None or order is None or not common or order.samples != share.samples:
        as_ever = saved_by == processes and (order is None or not order.passed)
        return Handover(at) if as_ever else _about_as_far(at, then, data, saved_by, processes)
    same = (order.processes, order.batch) == (share.processes, share.batch)
    if same and not order.passed:
        return Handover(at, _not_shared(share, processes) if saved_by < processes else "")
    said = "" if same else _not_shared(share, processes) or "the rest of the epoch is shared out anew"
    return _share_out(at, order, share, said)


def rest_of_epoch(at: Position, data: Any, generators: Mapping[str, torch.Generator]) -> Iterator[Any]:
    """The iterator of a DataLoader over what this process gets of an epoch that is shared out anew.

    Args:
        at: A position whose order was passed in part before.
        data: The loader.
        generators: Those that it has, by where they are found. They end as its own beginning of the epoch leaves them.
    """
    share = share_of(data)
    assert at.begin is not None and at.order is not None and share is not None
    places = at.order.places(at.epoch, at.begin, generators, workers_kept=at.workers_kept)
    begun = random_state.record(generators)
    iterator = Skipping(data).through(share.rest_of(places, at.order.passed))
    begun.restore(generators)
    return iterator


def _share_out(at: Position, order: Order, share: Share, said: str) -> Handover:
    passed = order.taken(at.consumed)
    left = order.total - passed
    if not share.batches(left):
        return Handover(_next_epoch(at), said and "no batch was left of the epoch")
    if said and (twice := share.repeated(left)):
        said += f" ({twice} of its samples twice, so that all processes have as many)"
    order = order._replace(passed=passed, processes=share.processes, batch=share.batch)
    return Handover(at._replace(consumed=0, order=order), said)


def _not_shared(share: Share, processes: int) -> str:
    return "every process goes through the whole rest of the epoch" if share.processes == 1 < processes else ""


def _about_as_far(at: Position, then: Any, data: Any, saved_by: int, processes: int) -> Handover:
    said = "the order of the data cannot be carried over"
    if at.state is not None:
        return Handover(at._replace(order=None), f"{said}: the data goes on from the state that it had in one process")
    done, of = at.consumed, then.get("batches") if isinstance(then, Mapping) else None
    if at.order is not None:
        done, of = at.order.taken(at.consumed), at.order.total
    has = data_source.batches(data)
    if has is not None and type(of) is int and of > 0:
        consumed, by_guess = done * has // of, False
        if consumed >= has:
            return Handover(_next_epoch(at), f"{said}; no batch was left of the epoch")
    else:  # it is taken for one that is shared out too
        consumed, by_guess = at.consumed * saved_by // processes, True
    dropped = "" if data_source.can_skip(data) and not by_guess else ", which are loaded and dropped"
    said = f"{said}: every process goes on after {consumed} batches of its own{dropped}"
    if not consumed:
        return Handover(Position(at.epoch, 0, None, False, None, None), said)
    return Handover(at._replace(consumed=consumed, order=None), said, by_guess)


def _next_epoch(at: Position) -> Position:
    return Position(at.epoch + 1, 0, None, False, None, None)
