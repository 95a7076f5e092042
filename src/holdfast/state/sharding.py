"""The shard that one process has of a whole tensor, and the process that writes it. All without communication."""

import heapq
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from holdfast.errors import UnsupportedError

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs


@dataclass(frozen=True)
class ShardRange:
    """The range of a whole tensor that a process has.

    Args:
        shape: The shape of the whole tensor.
        offset: The beginning of the process's own in it, along each dimension.
        lengths: The shape of the process's own.
    """

    shape: tuple[int, ...]
    offset: tuple[int, ...]
    lengths: tuple[int, ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> "ShardRange":
        """Returns the range of a tensor that is all of itself."""
        return cls(tuple(shape), (0,) * len(shape), tuple(shape))


def range_of(tensor: "torch.Tensor", name: str = "a tensor") -> ShardRange:
    """Returns the range that the local tensor of this process has.

    Args:
        tensor: A distributed tensor, or a plain one, which is whole.
        name: Its name, for whoever is told that it has no such range.

    Raises:
        UnsupportedError: This process's values are not one box of the whole.
    """
    if not is_distributed(tensor):
        return ShardRange.whole(tensor.shape)
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
    from torch.distributed.tensor.placement_types import _StridedShard

    for placement in tensor.placements:
        if not isinstance(placement, Replicate | Shard | _StridedShard):
            raise UnsupportedError(
                f"{name} is distributed as {placement}, so that no process has values of it that could be saved",
                hint="have it redistributed to Shard or Replicate before the step ends",
            )
    shape = tuple(tensor.shape)
    if tensor.device_mesh.get_coordinate() is None:
        return ShardRange(shape, (0,) * len(shape), (0,) * len(shape))
    lengths, offset = compute_local_shape_and_global_offset(shape, tensor.device_mesh, tensor.placements)
    shard = ShardRange(shape, offset, lengths)
    if tuple(local_of(tensor).shape) != lengths or not _is_a_box(tensor, shard):
        raise UnsupportedError(
            f"{name} is cut up as {tensor.placements}: what this process has of it does not lie in one place",
            hint="shard it as fully_shard, parallelize_module or distribute_tensor do",
        )
    return shard


def local_of(tensor: "torch.Tensor") -> "torch.Tensor":
    """Returns this process's own of a distributed tensor, in the same memory; a plain one itself. Nothing is sent."""
    return tensor._local_tensor.detach() if is_distributed(tensor) else tensor


def show_shards(module: "torch.nn.Module") -> None:
    """Has `fully_shard` give back what it gathered for a forward, so that a module shows its shards. Nothing is sent.

    After an evaluation the root's own weights stay gathered until the next backward.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None:
        for inner in module.modules():
            if isinstance(inner, fsdp.FSDPModule):
                inner.reshard()


def written_by(tensors: Mapping[str, "torch.Tensor"], rank: int, size: int) -> set[str]:
    """Returns the names of the tensors that one process writes, so that each value is written by exactly one.

    Every process finds the same distribution by itself: it depends on names, whole shapes and meshes alone.

    Args:
        tensors: All tensors, by name: plain ones, which all processes hold alike, and distributed ones.
        rank: The process.
        size: The number of processes.
    """
    written = set()
    ranks = [(0, number) for number in range(size)]
    copies: dict[Any, list[tuple[int, int]]] = {}
    # The largest first: so the last ones make even what the first ones left uneven.
    for name, tensor in sorted(tensors.items(), key=lambda item: (-_bytes(item[1]), item[0])):
        if not is_distributed(tensor):
            mine, loads = rank, ranks
        elif (copy := _copy_of(tensor)) is not None:
            group, mine, count = copy
            loads = copies.setdefault(group, [(0, number) for number in range(count)])
        else:
            continue
        load, chosen = loads[0]
        heapq.heapreplace(loads, (load + _bytes(tensor), chosen))
        if chosen == mine and _has_a_piece(tensor):
            written.add(name)
    return written


def is_distributed(tensor: "torch.Tensor") -> "TypeIs[DTensor]":
    """Tells whether a tensor is a distributed one, of which this process has its own part."""
    # To import it takes a second, and whoever has such a tensor has done so.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def _bytes(tensor: "torch.Tensor") -> int:
    """Returns the size of the whole tensor, on which all processes agree."""
    return tensor.numel() * tensor.element_size()


def _is_a_box(tensor: "DTensor", shard: ShardRange) -> bool:
    """Tells if the rows of a local tensor are neighbours in the whole one. Only strided shards may have others."""
    from torch.distributed.tensor.placement_types import _StridedShard

    coordinate = tensor.device_mesh.get_coordinate()
    assert coordinate is not None
    for dimension in {placement.dim for placement in tensor.placements if isinstance(placement, _StridedShard)}:
        rows: Sequence[int] = range(shard.shape[dimension])
        for placement, number, count in zip(tensor.placements, coordinate, tensor.device_mesh.shape, strict=True):
            if isinstance(placement, _StridedShard) and placement.dim == dimension:
                factor = int(placement.split_factor)
                runs = [_chunk(rows, index, factor) for index in range(factor)]
                rows = [row for run in runs for row in _chunk(run, number, count)]
            elif placement.is_shard(dimension):
                rows = _chunk(rows, number, count)
        begin, length = shard.offset[dimension], shard.lengths[dimension]
        if length and list(rows) != list(range(begin, begin + length)):
            return False
    return True


def _chunk(rows: Sequence[int], number: int, count: int) -> Sequence[int]:
    """Returns a chunk as `torch.chunk` cuts."""
    step = -(-len(rows) // count)
    return rows[number * step : (number + 1) * step]


def _copy_of(tensor: "DTensor") -> tuple[Any, int, int] | None:
    """Finds which of the copies of a shard this process has.

    Returns:
        A key, alike for all tensors whose copies take turns together; the number of the copy; the number of copies.
        None for a process outside the mesh.
    """
    coordinate = tensor.device_mesh.get_coordinate()
    if coordinate is None:
        return None
    replicated = [dimension for dimension, placement in enumerate(tensor.placements) if placement.is_replicate()]
    digits = [(coordinate[dimension], tensor.device_mesh.shape[dimension]) for dimension in replicated]
    around, beside = _beside(tensor.device_mesh)
    number, count = 0, 1
    for digit, base in [*beside, *digits]:
        number, count = number * base + digit, count * base
    return (around, tuple(replicated), count), number, count


def _beside(mesh: "DeviceMesh") -> tuple[tuple[int, ...], list[tuple[int, int]]]:
    """Finds the dimensions of a mesh's root mesh along which other processes have meshes just like it.

    Returns:
        Those dimensions, and for each the coordinate of this process and the number of coordinates.
    """
    import torch

    root = mesh._get_root_mesh()
    here = root.get_coordinate()
    if here is None or root is mesh:
        return (), []
    members = torch.isin(root.mesh, mesh.mesh).nonzero().T.tolist()
    across = [dimension for dimension, coordinates in enumerate(members) if len(set(coordinates)) == 1]
    if math.prod(root.shape[dimension] for dimension in range(root.ndim) if dimension not in across) != mesh.size():
        return (), []
    return tuple(across), [(here[dimension], root.shape[dimension]) for dimension in across]


def _has_a_piece(tensor: "torch.Tensor") -> bool:
    """Tells if there is a piece to write here: an empty one only of a tensor that has no others, for its dtype."""
    if not is_distributed(tensor) or tensor._local_tensor.numel():
        return True
    coordinate = tensor.device_mesh.get_coordinate()
    placed = zip(coordinate or (), tensor.placements, strict=True)
    sharded = [number for number, placement in placed if not placement.is_replicate()]
    return not tensor.numel() and not any(sharded)
