"""The native layout: tensor files and JSON, one set for each part of the state. Format: `docs/format.md`."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from holdfast.errors import CheckpointError, SaveError, UnsupportedError
from holdfast.layouts.image import Image, json_image
from holdfast.layouts.safetensors import writing as tensor_file
from holdfast.state.part import SIDECAR_PREFIX, Stored
from holdfast.state.sharding import ShardRange
from holdfast.store import grid, names

if TYPE_CHECKING:
    import torch

NAME = "native"

REQUIRED = ("training.json", "random.json")

Tensors = Mapping[str, Mapping[str, Any]]
"""For each part and each of its tensors the `shape` and the `pieces`, as the manifest has them."""

_TENSORS = ".safetensors"
_ASIDE = ".aside.safetensors"
ENDINGS = {_TENSORS: "", _ASIDE: SIDECAR_PREFIX}
"""The files of a part's tensors where one process writes all, each with how its tensors' names begin elsewhere."""
REST = ".json"
"""The ending of the file of what of a part is no tensor."""
# What every process has for itself; the number is its rank.
_OWN = re.compile(r"(random|data)-([0-9]+)")
_DIFFERING = re.compile(r"(?P<part>[^.]+)\.own-[0-9]{5,}\.safetensors")
_SHARD = re.compile(r"(?P<part>.+?)(?:\.aside)?-[0-9]{5,}-of-[0-9]{5,}\.safetensors")


def images(
    parts: Sequence[tuple[str, Mapping[str, "torch.Tensor"], Stored]],
    extra: Mapping[str, Any],
    rank: int = 0,
    size: int = 1,
    own: Mapping[str, Mapping[str, "torch.Tensor"]] | None = None,
) -> list[Image]:
    """The files of a checkpoint to be that this process writes. No tensor is copied.

    Args:
        parts: The name of each part, those of its live tensors that this process writes, and what was encoded of it,
            which rank 0 writes.
        extra: What belongs to no part, as JSON, by the names of `state.RESERVED`.
        rank: The number of this process.
        size: How many processes write.
        own: For each part those of its tensors of which this process has other values than rank 0, which writes them
            for all.

    Raises:
        UnsupportedError: Something is of a kind, or a size, that cannot be written.
    """
    found = []
    for name, live, stored in parts:
        if _OWN.fullmatch(name):
            raise UnsupportedError(f"{name}: this name is taken in a checkpoint of several processes; choose another")
        for ending, tensors in _by_file(live, stored, rank).items():
            # safetensors' own name for it, and how its `save_model` tells of tied weights.
            metadata = {**stored.aliases, "format": "pt"} if ending == _TENSORS else None
            found.append(tensor_file.image(_path(name, ending, rank, size), tensors, metadata))
        if rank == 0:
            found.append(json_image(name + REST, stored.rest))
    for name, differing in (own or {}).items():
        if differing:
            found.append(tensor_file.image(_fitting(own_path(name, rank), name, size), differing, {"format": "pt"}))
    for name, content in extra.items():
        if rank == 0:
            found.append(json_image(name + REST, content))
        elif name != "training":
            found.append(json_image(f"{name}-{rank:05}{REST}", content))
    return found


def pieces(
    parts: Sequence[tuple[str, Mapping[str, "torch.Tensor"], Stored]],
    places: Mapping[str, Mapping[str, ShardRange]],
    rank: int,
    size: int,
) -> Tensors:
    """What the files of `images` hold of the whole tensors, as JSON.

    Args:
        parts: As for `images`.
        places: For each part where each of its live tensors lies in the whole one, those included that others write:
            so it shows when nobody writes one. What is not named is whole.
        rank: The number of this process.
        size: How many processes write.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, live, stored in parts:
        known = places.get(name, {})
        told = found[name] = {key: {"shape": list(place.shape), "pieces": []} for key, place in known.items()}
        for ending, tensors in _by_file(live, stored, rank).items():
            for own, tensor in tensors.items():
                key = SIDECAR_PREFIX + own if ending == _ASIDE else own
                place = known.get(key) or ShardRange.whole(tensor.shape)
                entry = told.setdefault(key, {"shape": list(place.shape), "pieces": []})
                file = _path(name, ending, rank, size)
                entry["pieces"].append({"file": file, "offset": list(place.offset), "lengths": list(place.lengths)})
    return found


def merge(told: Iterable[Tensors]) -> dict[str, dict[str, Any]]:
    """Makes one of what each process gave as `pieces`, in the order of ranks, for the manifest.

    Raises:
        SaveError: They do not make up whole tensors.
    """
    found: dict[str, dict[str, Any]] = {}
    ranks = list(told)
    for rank, parts in enumerate(ranks):
        for part, tensors in parts.items():
            for name, one in tensors.items():
                if name not in ranks[0].get(part, {}):
                    raise _on_one_alone(part, name, rank, 0)
                entry = found.setdefault(part, {}).setdefault(name, {"shape": one["shape"], "pieces": []})
                if entry["shape"] != one["shape"]:
                    raise SaveError(
                        f"{part}: {name!r} has the shape {one['shape']} on rank {rank} and {entry['shape']} before it",
                        hint="every rank has to train the same model",
                    )
                entry["pieces"] += one["pieces"]
    for part, tensors in found.items():
        for name, entry in tensors.items():
            if problem := grid.problem(entry):
                lacking = [rank for rank, parts in enumerate(ranks) if name not in parts.get(part, {})]
                if lacking and not entry["pieces"]:
                    raise _on_one_alone(part, name, 0, lacking[0])
                raise SaveError(f"{part}: {name!r} cannot be saved: {problem}", hint="the ranks hold different states")
    return {part: tensors for part, tensors in found.items() if tensors}


def _on_one_alone(part: str, name: str, there: int, lacking: int) -> SaveError:
    return SaveError(
        f"{part}: {name!r} is on rank {there} and not on rank {lacking}; ranks are saved together that hold the same"
        " tensors, or shards of them, and no stages of a pipeline or experts of their own"
    )


def differ(files: Iterable[str]) -> list[str]:
    """The parts of which some process had tensors with other values than rank 0.

    Args:
        files: The paths of a checkpoint's files.
    """
    return sorted({match["part"] for path in files if (match := _DIFFERING.fullmatch(path))})


def missing(found: Iterable[str], world_size: int = 1) -> list[str]:
    """What a checkpoint lacks that it must have to be resumed from.

    Args:
        found: The paths of its files.
        world_size: How many processes wrote it, as its manifest says. Of many that lack something, some are named.
    """
    there = set(found)
    others = range(1, min(world_size, len(there) + 2))  # more than there are files cannot all be there
    return [name for name in (*REQUIRED, *(f"random-{rank:05}{REST}" for rank in others)) if name not in there]


def _path(part: str, ending: str, rank: int, size: int) -> str:
    if size == 1:
        return part + ending
    return _fitting(f"{part}{ending.removesuffix(_TENSORS)}-{rank:05}-of-{size:05}{_TENSORS}", part, size)


def own_path(part: str, rank: int) -> str:
    """The file of what a process has other values of than rank 0."""
    return f"{part}.own-{rank:05}{_TENSORS}"


def _fitting(path: str, part: str, size: int) -> str:
    if not names.is_component(path):
        raise UnsupportedError(f"{part}: this name is too long for a checkpoint of {size} processes; choose a shorter")
    return path


def _by_file(live: Mapping[str, "torch.Tensor"], stored: Stored, rank: int) -> dict[str, dict[str, "torch.Tensor"]]:
    """The tensors of a part that go to each file, by its ending, and by their names there."""
    tensors = {**live, **stored.tensors} if rank == 0 else live
    own = {key: tensor for key, tensor in tensors.items() if not key.startswith(SIDECAR_PREFIX)}
    aside = {
        key.removeprefix(SIDECAR_PREFIX): tensor for key, tensor in tensors.items() if key.startswith(SIDECAR_PREFIX)
    }
    return {ending: held for ending, held in ((_TENSORS, own), (_ASIDE, aside)) if held}


def names_of_json(listed: Collection[str], rank: int) -> dict[str, str]:
    """The JSON that one process reads: what it is called, and the file's name without its ending."""
    found = {}
    for path in sorted(listed):
        stem = path.removesuffix(REST)
        if path.endswith(REST) and "/" not in path and path != names.MANIFEST and not _OWN.fullmatch(stem):
            own = f"{stem}-{rank:05}"
            found[stem] = own if rank and stem in ("random", "data") and own + REST in listed else stem
    return found


def refuse_unknown_pieces(listed: Collection[str], tensors: Tensors) -> None:
    """Looks for files of tensors of which the manifest says nothing.

    Raises:
        CheckpointError: There is one.
    """
    known = {piece["file"] for told in tensors.values() for entry in told.values() for piece in entry["pieces"]}
    for path in sorted(set(listed) - known):
        if (match := _SHARD.fullmatch(path)) and match["part"] + REST in listed:
            raise CheckpointError(f"the manifest does not say which pieces of {match['part']}'s tensors are in {path}")
