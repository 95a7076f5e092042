"""Questions to the data that a user gives: how it draws its order, and how a position in it is reached."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sized
from typing import Any, TypeGuard

import torch
from torch.utils.data import DataLoader, IterableDataset

_ACCELERATE = "accelerate.data_loader"


def is_plain(data: object) -> TypeGuard[DataLoader[Any]]:
    """Tells if data is a DataLoader that goes through its samples as torch's does."""
    kind = type(data)
    return (
        isinstance(data, DataLoader)
        and getattr(kind, "__iter__", None) is DataLoader.__iter__
        and getattr(kind, "_get_iterator", None) is DataLoader._get_iterator
    )


def unwrapped(data: Any) -> tuple[Any, Callable[[Any], Any] | None]:
    """Returns a loader without what Lightning's Fabric has put around it, and what that does to each batch."""
    kind = type(data)
    if kind.__name__ != "_FabricDataLoader":
        return data, None
    own, device = data._dataloader, data.device
    move = None if device is None else sys.modules[kind.__module__].move_data_to_device
    return own, None if move is None else lambda batch: move(batch, device)


def is_prepared(data: object) -> bool:
    """Tells if data is a loader as accelerate prepares it: it fetches from one of torch's, one batch ahead."""
    return any(kind.__module__ == _ACCELERATE for kind in type(data).__mro__) and hasattr(data, "base_dataloader")


def is_dispatched(data: object) -> bool:
    """Tells if data is a loader of accelerate that fetches in the first process alone, for all."""
    return is_prepared(data) and any(kind.__name__ == "DataLoaderDispatcher" for kind in type(data).__mro__)


def base(data: Any) -> Any:
    """Returns the loader that batches are fetched from: the data itself, where accelerate has not prepared it."""
    return data.base_dataloader if is_prepared(data) else data


def keeps_workers(data: object) -> bool:
    """Tells if the next epoch will go on with the workers of this one, and draws no new seed for them."""
    own = base(data)
    return is_plain(own) and own.persistent_workers and own._iterator is not None


def draws_late(data: object) -> bool:
    """Tells if data draws its order when the first batch is asked for, and not when its iterator is made."""
    return not getattr(base(data), "num_workers", 0)


def tell_epoch(data: Any, epoch: int) -> None:
    """Calls `set_epoch` of whatever has one."""
    for part in _with_epochs(data):
        part.set_epoch(epoch)


def epoch_of(data: Any) -> dict[str, int]:
    """Returns the epoch that each of them has been told last, by its path, where it shows that."""
    if is_prepared(data):
        return {"": data.iteration}  # it counts by itself, and tells the others
    epochs = {
        path: getattr(part, "epoch", None) for path, part in _members(data, "dataset") if hasattr(part, "set_epoch")
    }
    return {path: epoch for path, epoch in epochs.items() if type(epoch) is int}


def generators(data: Any) -> dict[str, torch.Generator]:
    """Returns the generators that draw the order of the data, by their paths in it."""
    by_path: dict[str, torch.Generator] = {}
    for path, part in _members(data):
        generator = getattr(part, "generator", None)
        if isinstance(generator, torch.Generator) and all(generator is not other for other in by_path.values()):
            by_path[f"{path}.generator" if path else "generator"] = generator
    return by_path


def stateful(data: Any) -> Any:
    """Returns the part of the data that knows its own position; None where nothing does."""
    dataset = getattr(data, "dataset", None)
    in_this_process = is_plain(data) and isinstance(dataset, IterableDataset) and data.num_workers == 0
    for part in (data, dataset if in_this_process else None):
        # Loaders of accelerate have the methods in any case; they work where it was asked for them.
        if hasattr(part, "state_dict") and hasattr(part, "load_state_dict"):
            return part if getattr(part, "use_stateful_dataloader", True) else None
    return None


def is_exhausted(iterator: Iterator[Any]) -> bool:
    """Tells if the dataset of an iterator has ended with the last batch, whatever position it says it has."""
    return bool(getattr(getattr(iterator, "_dataset_fetcher", None), "ended", False))


def is_at_end(data: Any, consumed: int) -> bool:
    """Tells if the batch that was handed out last is known to be the last of its epoch."""
    if is_prepared(data):
        return bool(data.end_of_dataloader)
    length = len(data) if isinstance(data, list | tuple) else batches(data)
    return length is not None and consumed >= length


def can_skip(data: Any) -> bool:
    """Tells if batches can be left out without loading them."""
    return is_plain(base(data)) and not isinstance(data.dataset, IterableDataset) and not is_dispatched(data)


def shard(data: Any) -> Any:
    """Returns what gives each process batches of its own in a loader of accelerate; None where nothing does."""
    batches = getattr(base(data), "batch_sampler", None)
    batches = getattr(batches, "watched", batches)
    kind = type(batches)
    return batches if kind.__module__ == _ACCELERATE and kind.__name__ == "BatchSamplerShard" else None


def batch_sampler(data: Any) -> Any:
    """Returns the sampler that makes a DataLoader's batches, of all processes; None where there is none."""
    batches = getattr(base(data), "batch_sampler", None)
    batches = getattr(batches, "watched", batches)
    return batches if (own := shard(data)) is None else own.batch_sampler


def sampler(data: Any) -> Any:
    """Returns the sampler that gives a DataLoader the places of its samples, one by one."""
    batches = batch_sampler(data)
    return data.sampler if batches is None else batches.sampler


def is_seedable(sampler: object) -> bool:
    """Tells if a sampler is accelerate's, which shuffles by a seed and the number of the epoch."""
    kind = type(sampler)
    return kind.__module__ == _ACCELERATE and kind.__name__ == "SeedableRandomSampler"


def batches(data: Any) -> int | None:
    """Counts the batches that a DataLoader has in an epoch; None where that is not known."""
    if not isinstance(data, DataLoader) or isinstance(data.dataset, IterableDataset):
        return None  # a loader that was asked for the length of a stream compares it, and warns
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None


def settings(data: Any) -> dict[str, Any]:
    """Returns the settings on which a position depends, and the length of an epoch."""
    values = {name: getattr(data, name, None) for name in ("batch_size", "num_workers", "persistent_workers")}
    dataset = getattr(data, "dataset", None)
    values["samples"] = len(dataset) if can_skip(data) and isinstance(dataset, Sized) else None
    values["batches"] = batches(data)
    return {name: value for name, value in values.items() if isinstance(value, int)}


def other_size(then: Any, now: dict[str, Any]) -> str:
    """Returns a line if a data set has another number of samples than it had; otherwise nothing."""
    before, samples = (then if isinstance(then, Mapping) else {}).get("samples"), now.get("samples")
    if type(before) is not int or samples is None or before == samples:
        return ""
    return f"data: the data set has {samples:,} samples and had {before:,}"


def differences(then: Any, now: dict[str, Any]) -> list[str]:
    """Names the settings on which a position depends that are no longer as they were, one line each."""
    before = then if isinstance(then, Mapping) else {}
    return [
        f"data: {name} is {now[name]!r} and was {before[name]!r}: the rest of the epoch may be other samples"
        for name in sorted(before.keys() & now.keys() - {"batches", "samples"})
        if before[name] != now[name]
    ]


def _with_epochs(data: Any) -> list[Any]:
    members = {id(part): part for _, part in _members(data, "dataset")}
    return [part for part in members.values() if hasattr(part, "set_epoch")]


def _members(data: Any, *more: str) -> Iterator[tuple[str, Any]]:
    """Yields the data and what draws its order, each with its path in the data."""
    of_all = ("batch_sampler.batch_sampler", "batch_sampler.batch_sampler.sampler") if is_prepared(data) else ()
    for path in ("", "sampler", "batch_sampler", "batch_sampler.sampler", *of_all, *more):
        part = data
        for name in path.split(".") if path else ():
            part = getattr(part, name, None)
        if part is not None:
            yield path, part
