"""The native layout: tensor files and JSON, one set for each part of the state. Format: `docs/format.md`."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from holdfast.errors import CheckpointError, SaveError, UnsupportedError
from holdfast.layouts import ownership
from holdfast.layouts.image import Image, json_image
from holdfast.layouts.ownership import Own
from holdfast.layouts.safetensors import writing
from holdfast.state.part import SIDECAR_PREFIX, Stored
from holdfast.state.sharding import ShardRange
from holdfast.store import grid, names

if TYPE_CHECKING:
    import torch

NAME = "native"

REQUIRED = ("training.json", "random.json")

Tensors = Mapping[str, Mapping[str, Any]]
"""For each part and each of its tensors the `shape` and the `pieces`, as the manifest has them."""

TENSORS = ".safetensors"
"""The ending of a file of tensors."""
_SIDECAR = ".aside.safetensors"
ENDINGS = {TENSORS: "", _SIDECAR: SIDECAR_PREFIX}
"""The files of a part's tensors where one process writes all, each with the prefix of its tensors' names elsewhere."""
REST = ".json"
"""The ending of a part's file that holds all but its tensors."""
# The files that every process has for itself; the number is its rank.
_OWN = re.compile(r"(random|data)-([0-9]+)")
_SHARD = re.compile(r"(?P<part>.+?)(?:\.aside)?-[0-9]{5,}-of-[0-9]{5,}\.safetensors")


def images(
    parts: Sequence[tuple[str, Mapping[str, "torch.Tensor"], Stored]],
    extra: Mapping[str, Any],
    rank: int = 0,
    size: int = 1,
    own: Mapping[str, Own] | None = None,
) -> list[Image]:
    """Returns the files of a checkpoint to be that this process writes. No tensor is copied.

    Args:
        parts: The name of each part, those of its live tensors that this process writes, and its encoded rest, which
            rank 0 writes.
        extra: The JSON that belongs to no part, by the names of `state.part.RESERVED`.
        rank: The number of this process.
        size: The number of processes that write.
        own: For each part what this process has for itself.

    Raises:
        UnsupportedError: Something is of a kind, or a size, that cannot be written.
    """
    file_images = []
    for name, live, stored in parts:
        if _OWN.fullmatch(name):
            raise UnsupportedError(f"{name}: this name is taken in a checkpoint of several processes; choose another")
        for ending, tensors in _by_file(live, stored, rank).items():
            # safetensors' own name for it, and how its `save_model` tells of tied weights.
            metadata = {**stored.aliases, "format": "pt"} if ending == TENSORS else None
            file_images.append(writing.image(_path(name, ending, rank, size), tensors, metadata))
        if rank == 0:
            file_images.append(json_image(name + REST, stored.rest))
    for name, content in (own or {}).items():
        for image in ownership.images(name, rank, content):
            _fitting(image.path, name, size)
            file_images.append(image)
    for name, small in extra.items():
        if rank == 0:
            file_images.append(json_image(name + REST, small))
        elif name != "training":
            file_images.append(json_image(f"{name}-{rank:05}{REST}", small))
    return file_images


def pieces(
    parts: Sequence[tuple[str, Mapping[str, "torch.Tensor"], Stored]],
    places: Mapping[str, Mapping[str, ShardRange]],
    rank: int,
    size: int,
) -> Tensors:
    """Returns the manifest's entries for the pieces of whole tensors that the files of `images` hold.

    Args:
        parts: As for `images`.
        places: For each part the range of each of its live tensors in the whole one, those included that others write:
            so it shows when nobody writes one. A tensor that is not named is whole.
        rank: The number of this process.
        size: The number of processes that write.
    """
    described: dict[str, dict[str, Any]] = {}
    for name, live, stored in parts:
        known = places.get(name, {})
        entries: dict[str, Any] = {key: {"shape": list(place.shape), "pieces": []} for key, place in known.items()}
        for ending, tensors in _by_file(live, stored, rank).items():
            for own, tensor in tensors.items():
                key = SIDECAR_PREFIX + own if ending == _SIDECAR else own
                place = known.get(key) or ShardRange.whole(tensor.shape)
                entry = entries.setdefault(key, {"shape": list(place.shape), "pieces": []})
                file = _path(name, ending, rank, size)
                entry["pieces"].append({"file": file, "offset": list(place.offset), "lengths": list(place.lengths)})
        described[name] = entries
    return described


def merge(by_rank: Iterable[Tensors]) -> dict[str, dict[str, Any]]:
    """Merges the entries that `pieces` gave in each process into those of the manifest.

    Args:
        by_rank: The entries, in the order of ranks.

    Raises:
        SaveError: They do not make up whole tensors.
    """
    merged: dict[str, dict[str, Any]] = {}
    ranks = list(by_rank)
    for rank, parts in enumerate(ranks):
        for part, tensors in parts.items():
            for name, addition in tensors.items():
                if name not in ranks[0].get(part, {}):
                    raise _on_one_alone(part, name, rank, 0)
                entry = merged.setdefault(part, {}).setdefault(name, {"shape": addition["shape"], "pieces": []})
                if entry["shape"] != addition["shape"]:
                    raise SaveError(
                        f"{part}: {name!r} has the shape {addition['shape']} on rank {rank}"
                        f" and {entry['shape']} before it",
                        hint="every rank has to train the same model",
                    )
                entry["pieces"] += addition["pieces"]
    for part, tensors in merged.items():
        for name, entry in tensors.items():
            if problem := grid.problem(entry):
                lacking = [rank for rank, parts in enumerate(ranks) if name not in parts.get(part, {})]
                if lacking and not entry["pieces"]:
                    raise _on_one_alone(part, name, 0, lacking[0])
                raise SaveError(f"{part}: {name!r} cannot be saved: {problem}", hint="the ranks hold different states")
    return {part: tensors for part, tensors in merged.items() if tensors}


def _on_one_alone(part: str, name: str, present: int, lacking: int) -> SaveError:
    return SaveError(
        f"{part}: {name!r} is on rank {present} and not on rank {lacking}; ranks are saved together that hold the same"
        " tensors, or shards of them, and no stages of a pipeline or experts of their own"
    )


def missing(paths: Iterable[str], world_size: int = 1) -> list[str]:
    """Returns the files that a checkpoint lacks and must have to be resumed from.

    Args:
        paths: The paths of its files.
        world_size: The number of processes that wrote it, as its manifest says. Of many that lack something, some are
            named.
    """
    present = set(paths)
    others = range(1, min(world_size, len(present) + 2))  # more than there are files cannot all be there
    return [name for name in (*REQUIRED, *(f"random-{rank:05}{REST}" for rank in others)) if name not in present]


def _path(part: str, ending: str, rank: int, size: int) -> str:
    if size == 1:
        return part + ending
    return _fitting(f"{part}{ending.removesuffix(TENSORS)}-{rank:05}-of-{size:05}{TENSORS}", part, size)


def _fitting(path: str, part: str, size: int) -> str:
    if not names.is_component(path):
        raise UnsupportedError(f"{part}: this name is too long for a checkpoint of {size} processes; choose a shorter")
    return path


def _by_file(live: Mapping[str, "torch.Tensor"], stored: Stored, rank: int) -> dict[str, dict[str, "torch.Tensor"]]:
    """Returns the tensors of a part that go to each file, by its ending, and by their names in it."""
    tensors = {**live, **stored.tensors} if rank == 0 else live
    own = {key: tensor for key, tensor in tensors.items() if not key.startswith(SIDECAR_PREFIX)}
    sidecar = {
        key.removeprefix(SIDECAR_PREFIX): tensor for key, tensor in tensors.items() if key.startswith(SIDECAR_PREFIX)
    }
    return {ending: group for ending, group in ((TENSORS, own), (_SIDECAR, sidecar)) if group}


def files_of_json(listed: Collection[str], rank: int, *, own: bool) -> dict[str, str]:
    """Returns the files of the JSON that one process reads, by name.

    Args:
        listed: The paths of the checkpoint's files.
        rank: The number of the process.
        own: True where it takes back what was its own of a part.
    """
    rests = ownership.own_rests(listed)
    of_others = {path for files in rests.values() for path in files.values()}
    paths = {}
    for path in sorted(set(listed) - of_others):
        stem = path.removesuffix(REST)
        if path.endswith(REST) and "/" not in path and path != names.MANIFEST and not _OWN.fullmatch(stem):
            of_rank = f"{stem}-{rank:05}{REST}"
            paths[stem] = of_rank if rank and stem in ("random", "data") and of_rank in listed else path
    # Another number of processes takes rank 0's of a part that not every rank has.
    for part, files in rests.items():
        if (mine := files.get(rank if own else 0)) is not None:
            paths[part] = mine
    return paths


def refuse_unknown_pieces(listed: Collection[str], tensors: Tensors) -> None:
    """Refuses a checkpoint with files of tensors of which the manifest says nothing.

    Raises:
        CheckpointError: It has one.
    """
    known = {piece["file"] for entries in tensors.values() for entry in entries.values() for piece in entry["pieces"]}
    for path in sorted(set(listed) - known):
        if (match := _SHARD.fullmatch(path)) and match["part"] + REST in listed:
            raise CheckpointError(f"the manifest does not say which pieces of {match['part']}'s tensors are in {path}")
