"""What is known of the data that a user gives: how it draws its order, and how one gets to a position in it."""

from collections.abc import Iterator, Mapping, Sized
from typing import Any, TypeGuard

import torch
from torch.utils.data import DataLoader, IterableDataset


def is_plain(data: object) -> TypeGuard[DataLoader[Any]]:
    """Whether it is a DataLoader that goes through its data as torch's does."""
    kind = type(data)
    return (
        isinstance(data, DataLoader)
        and getattr(kind, "__iter__", None) is DataLoader.__iter__
        and getattr(kind, "_get_iterator", None) is DataLoader._get_iterator
    )


def keeps_workers(data: object) -> bool:
    """Whether the next epoch will go on with the workers of this one, and draws no new seed for them."""
    return is_plain(data) and data.persistent_workers and data._iterator is not None


def tell_epoch(data: Any, epoch: int) -> None:
    """Calls `set_epoch` of whatever has one."""
    told = {id(part): part for _, part in _members(data, "dataset")}
    for part in told.values():
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


def generators(data: Any) -> dict[str, torch.Generator]:
    """The generators that draw the order of the data, by where they are found."""
    found: dict[str, torch.Generator] = {}
    for path, part in _members(data):
        generator = getattr(part, "generator", None)
        if isinstance(generator, torch.Generator) and all(generator is not other for other in found.values()):
            found[f"{path}.generator" if path else "generator"] = generator
    return found


def stateful(data: Any) -> Any:
    """What knows its own position; None where nothing does."""
    dataset = getattr(data, "dataset", None)
    in_this_process = is_plain(data) and isinstance(dataset, IterableDataset) and data.num_workers == 0
    for part in (data, dataset if in_this_process else None):
        # Loaders of accelerate have the methods in any case; they work where it was asked for them.
        if hasattr(part, "state_dict") and hasattr(part, "load_state_dict"):
            return part if getattr(part, "use_stateful_dataloader", True) else None
    return None


def is_exhausted(iterator: Iterator[Any]) -> bool:
    """Whether the dataset of an iterator has ended with the last batch, whatever position it says it has."""
    return bool(getattr(getattr(iterator, "_dataset_fetcher", None), "ended", False))


def can_skip(data: Any) -> bool:
    """Whether batches can be left out without loading them."""
    return is_plain(data) and not isinstance(data.dataset, IterableDataset)


def sampler(data: Any) -> Any:
    """What gives a DataLoader the places of its samples, one by one."""
    return data.sampler if data.batch_sampler is None else data.batch_sampler.sampler


def batches(data: Any) -> int | None:
    """How many batches a DataLoader has in an epoch; None where that is not known."""
    if not isinstance(data, DataLoader) or isinstance(data.dataset, IterableDataset):
        return None  # a loader that was asked for the length of a stream compares it, and warns
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None


def settings(data: Any) -> dict[str, Any]:
    """What a position depends on, and how long an epoch is."""
    found = {name: getattr(data, name, None) for name in ("batch_size", "num_workers", "persistent_workers")}
    dataset = getattr(data, "dataset", None)
    found["samples"] = len(dataset) if can_skip(data) and isinstance(dataset, Sized) else None
    found["batches"] = batches(data)
    return {name: value for name, value in found.items() if isinstance(value, int)}


def differences(then: Any, now: dict[str, Any]) -> list[str]:
    """What a position depends on and is no longer as it was, one line each."""
    before = then if isinstance(then, Mapping) else {}
    return [
        f"data: {name} is {now[name]!r} and was {before[name]!r}: the rest of the epoch may be other samples"
        for name in sorted(before.keys() & now.keys() - {"batches"})
        if before[name] != now[name]
    ]


def _members(data: Any, *more: str) -> Iterator[tuple[str, Any]]:
    """The data and what draws its order, by where it is found."""
    for path in ("", "sampler", "batch_sampler", "batch_sampler.sampler", *more):
        found = data
        for name in path.split(".") if path else ():
            found = getattr(found, name, None)
        if found is not None:
            yield path, found
