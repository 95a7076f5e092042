"""States cut up by hand, as several processes hold them, on their way to a checkpoint; no process is started."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from helpers.parts import content
from helpers.support import commit_checkpoint
from holdfast.layouts import native
from holdfast.state.part import Stored
from holdfast.state.sharding import ShardRange, written_by

Grids = Mapping[str, Sequence[int]]
"""Into how many pieces each tensor is cut, along each dimension; who is not named is held whole by all."""


def place(shape: Sequence[int], grid: Sequence[int], rank: int) -> ShardRange:
    """Returns the range of a rank, cut as `torch.chunk` cuts. Ranks beyond the grid have the pieces of the first."""
    cells = list(itertools.product(*map(range, grid)))
    offset, lengths = [], []
    for length, number, count in zip(shape, cells[rank % len(cells)], grid, strict=True):
        step = -(-length // count)
        begin = min(length, number * step)
        offset.append(begin)
        lengths.append(min(length, begin + step) - begin)
    return ShardRange(tuple(shape), tuple(offset), tuple(lengths))


def local(tensor: torch.Tensor, shard: ShardRange) -> torch.Tensor:
    """Returns the values in a range."""
    ranges = [slice(begin, begin + length) for begin, length in zip(shard.offset, shard.lengths, strict=True)]
    return tensor[tuple(ranges)] if ranges else tensor


def held(
    tensors: Mapping[str, torch.Tensor], grids: Grids, rank: int, size: int
) -> tuple[dict[str, torch.Tensor], dict[str, ShardRange]]:
    """Returns what a rank writes of some whole tensors, and the ranges of all that it has."""
    plain = {name: tensor for name, tensor in tensors.items() if name not in grids}
    mine = written_by(plain, rank, size)
    places = {
        name: place(tensor.shape, grids[name], rank) if name in grids else ShardRange.whole(tensor.shape)
        for name, tensor in tensors.items()
    }
    for name in tensors.keys() & grids.keys():
        empty = 0 in places[name].lengths
        only_one = rank == 0 and not tensors[name].numel()
        if rank < math.prod(grids[name]) and (not empty or only_one):
            mine.add(name)
    return {name: local(tensors[name], places[name]) for name in tensors if name in mine}, places


def written(
    parts: Sequence[tuple[str, Mapping[str, torch.Tensor], Stored]],
    grids: Grids,
    extra: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The files that as many processes write as `extra` has items, and what the manifest says of the tensors."""
    size = len(extra)
    files, pieces = {}, []
    for rank in range(size):
        own, places = [], {}
        for name, live, stored in parts:
            mine, places[name] = held(live, grids, rank, size)
            own.append((name, mine, stored))
        images = native.images(own, extra[rank], rank, size)
        files.update({image.path: content(image) for image in images})
        pieces.append(native.pieces(own, places, rank, size))
    return files, native.merge(pieces)


def committed(
    root: Path,
    parts: Sequence[tuple[str, Mapping[str, torch.Tensor], Stored]],
    grids: Grids,
    size: int,
    step: int = 7,
) -> Path:
    """A checkpoint that several processes wrote."""
    extra = [{"training": {"step": step}, "random": {"of": rank}, "data": {"of": rank}} for rank in range(size)]
    if size == 1:
        images = native.images(parts, extra[0])
        return commit_checkpoint(root, step, {image.path: content(image) for image in images}, layout=native.NAME)
    files, tensors = written(parts, grids, extra)
    return commit_checkpoint(root, step, files, layout=native.NAME, world_size=size, tensors=tensors)
