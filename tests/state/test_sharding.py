import math
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard

from holdfast.errors import UnsupportedError
from holdfast.state import sharding
from holdfast.state.model import ModelPart
from holdfast.state.sharding import ShardRange

SIZE = 4


def test_a_plain_tensor_is_whole_and_itself() -> None:
    tensor = nn.Parameter(torch.zeros(2, 3))
    assert sharding.range_of(tensor) == ShardRange((2, 3), (0, 0), (2, 3))
    assert sharding.local_of(tensor) is tensor


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_what_all_ranks_hold_is_spread_by_bytes_and_each_written_once(size: int) -> None:
    tensors = {f"{number}": torch.zeros(1 + number * 37 % 100) for number in range(60)} | {"scalar": torch.tensor(1)}
    backwards = dict(reversed(tensors.items()))
    shares = [sharding.written_by(tensors, rank, size) for rank in range(size)]
    assert sorted(name for share in shares for name in share) == sorted(tensors)
    assert shares == [sharding.written_by(backwards, rank, size) for rank in range(size)]
    loads = [sum(tensors[name].nbytes for name in share) for share in shares]
    assert max(loads) - min(loads) <= max(tensor.nbytes for tensor in tensors.values())


def test_whoever_has_no_distributed_tensor_does_not_pay_for_its_import() -> None:
    script = (
        "import sys, torch; from holdfast.state import sharding; t = torch.ones(2); sharding.range_of(t);"
        "sharding.local_of(t); sharding.written_by({'t': t}, 0, 2); sys.exit('torch.distributed.tensor' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def on_ranks(folder: Path, checks: Sequence[Callable[[int], None]]) -> None:
    """Runs checks in four processes of one gloo group; a rank that fails ends the others' waiting, too."""
    children = [os.fork() or child(rank, folder, checks) for rank in range(SIZE)]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * SIZE


def child(rank: int, folder: Path, checks: Sequence[Callable[[int], None]]) -> int:
    code = 1
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=SIZE)
        for check in checks:
            check(rank)
        dist.barrier()
        code = 0
    except BaseException:  # noqa: BLE001 - the child ends here, whatever happens
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def look(name: str, tensor: torch.Tensor, whole: torch.Tensor) -> None:
    """The local tensor is what lies at its place in the whole one, in the memory that training uses."""
    place, local = sharding.range_of(tensor, name), sharding.local_of(tensor)
    assert type(local) is torch.Tensor and not local.requires_grad and tuple(local.shape) == place.lengths, name
    ranges = tuple(slice(begin, begin + length) for begin, length in zip(place.offset, place.lengths, strict=True))
    assert torch.equal(local, whole[ranges]), (name, place)
    assert isinstance(tensor, DTensor) and local.data_ptr() == tensor._local_tensor.data_ptr(), name


def written_once(tensors: dict[str, torch.Tensor], rank: int) -> list[set[str]]:
    """All ranks' shares; together they have each value once."""
    mine = sharding.written_by(tensors, rank, SIZE)
    shares: list[Any] = [None] * SIZE
    dist.all_gather_object(shares, {name: sharding.range_of(tensors[name]) for name in mine})
    for name, tensor in tensors.items():
        places = [share[name] for share in shares if name in share]
        assert places and len(set(places)) == len(places), name
        assert sum(math.prod(place.lengths) for place in places) == tensor.numel(), name
        assert all(math.prod(place.lengths) for place in places) or len(places) == 1, name
    return [set(share) for share in shares]


def distributed(rank: int) -> None:
    row, square = init_device_mesh("cpu", (SIZE,)), init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    ways: list[Any] = [
        (row, [Shard(0)]),
        (row, [Shard(1)]),
        (square, [Shard(0), Shard(1)]),
        (square, [Shard(1), Shard(1)]),
        (square, [Replicate(), Shard(0)]),
        (square, [Replicate(), Replicate()]),
        (square["tp"], [Shard(0)]),
    ]
    tensors: dict[str, torch.Tensor] = {"plain": torch.ones(3)}
    for rows in (1, 3, 7):
        whole = torch.arange(rows * 5.0).reshape(rows, 5)
        for number, (mesh, placements) in enumerate(ways):
            name = f"{rows} rows, {number}"
            tensors[name] = distribute_tensor(whole, mesh, placements)
            look(name, tensors[name], whole)
    tensors["scalar"] = distribute_tensor(torch.tensor(2.0), square, [Replicate(), Replicate()])
    tensors["nothing"] = distribute_tensor(torch.zeros(0, 4), row, [Shard(1)])
    shares = written_once(tensors, rank)
    # Whoever has copies, those of meshes beside it included, takes turns.
    assert {number for number in range(SIZE) for name in shares[number] if name.endswith(("5", "6"))} == set(
        range(SIZE)
    )


def trained(rank: int) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    whole = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "1": RowwiseParallel()})
    for check in range(2):
        for name, parameter in model.named_parameters():
            look(name, parameter, whole[name])
        written_once(dict(model.named_parameters()), rank)
        if not check:
            for layer in model:
                fully_shard(layer, mesh=mesh["dp"])
    weight = model.get_parameter("0.weight")
    assert isinstance(weight, DTensor) and isinstance(weight.placements[0], _StridedShard)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    weight.grad = weight.detach() * 2
    optimizer.step()
    look("momentum", optimizer.state[weight]["momentum_buffer"], whole["0.weight"] * 2)


def refused(rank: int) -> None:
    mesh = init_device_mesh("cpu", (SIZE,))
    with pytest.raises(UnsupportedError, match=r"^net\.w is distributed as .*, so that no process has values"):
        sharding.range_of(DTensor.from_local(torch.ones(2), mesh, [Partial()]), "net.w")
    with pytest.raises(UnsupportedError, match=r"^net\.w is cut up as .* does not lie in one place"):
        sharding.range_of(DTensor.from_local(torch.ones(2), mesh, [_StridedShard(0, split_factor=2)]), "net.w")


def buffered(rank: int) -> None:
    mesh = init_device_mesh("cpu", (SIZE,))
    module = nn.Module()
    module.register_buffer("alike", distribute_tensor(torch.arange(3.0), mesh, [Replicate()]))
    part = ModelPart("model", module)
    recorded = part.record()
    module.get_buffer("alike").add_(1)
    assert part.buffers(recorded)["alike"].tolist() == [0, 1, 2]
    part.restore(part.encode(recorded), strict=True)
    assert sharding.local_of(module.get_buffer("alike")).tolist() == [0, 1, 2]


def test_on_four_processes(tmp_path: Path) -> None:
    on_ranks(tmp_path, [distributed, trained, refused, buffered])
