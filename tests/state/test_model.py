import socket
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from helpers.parts import move, raw, same, save, save_recorded
from holdfast.errors import CheckpointError, ConfigError
from holdfast.state.model import ModelPart
from holdfast.state.part import SIDECAR_PREFIX, Stored

LARGE = 2 << 18  # floats: 2 MiB


class Tied(nn.Module):
    """Two names for one weight, a buffer for forward to write, and one that is not persistent."""

    mask: torch.Tensor
    seen: torch.Tensor

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(6, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("mask", torch.randn(3), persistent=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        output: torch.Tensor = self.head(self.norm(self.embed(x)))
        return output


class Cache(nn.Module):
    """One large buffer."""

    table: torch.Tensor

    def __init__(self, size: int = LARGE, **kwargs: Any) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(size), **kwargs)


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def part(module: Any) -> ModelPart:
    return ModelPart("model", module)


def moved(old: nn.Module, new: nn.Module, folder: Path) -> list[str]:
    return move([part(old)], [part(new)], folder)


def test_names_and_dtypes_are_those_of_the_module(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(2, 3, dtype=torch.bfloat16), nn.BatchNorm1d(3), nn.Linear(3, 1))
    save([part(module)], tmp_path)
    assert same(
        dict(sorted(safetensors.torch.load_file(tmp_path / "model.safetensors").items())),
        dict(sorted(module.state_dict().items())),
    )


def test_everything_comes_back_exactly_and_in_place(tmp_path: Path) -> None:
    old, new = Tied(), Tied(1)
    old(torch.tensor([1, 2, 3]))
    places = {name: tensor.data_ptr() for name, tensor in state_of(new).items()}
    assert moved(old, new, tmp_path) == []
    assert same(state_of(new), state_of(old))
    assert {name: tensor.data_ptr() for name, tensor in state_of(new).items()} == places


def test_fault_46_what_is_put_back_shares_nothing_with_the_checkpoint(tmp_path: Path) -> None:
    """The model is changed after the resume, and the checkpoint looked at again."""
    old, new = Tied(), Tied(1)
    stored = save([part(old)], tmp_path)["model"]
    part(new).restore(stored, strict=True)
    nn.init.zeros_(new.embed.weight)
    assert stored.tensors["embed.weight"].any()


def test_tied_weights_are_written_once_and_safetensors_loads_the_model(tmp_path: Path) -> None:
    old, new = Tied(), Tied(1)
    old(torch.tensor([1, 2, 3]))
    save([part(old)], tmp_path)
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "head.weight": "embed.weight"}
        assert "head.weight" not in file.keys()  # noqa: SIM118 - it is no dict
    safetensors.torch.load_model(new, tmp_path / "model.safetensors")
    assert same(dict(new.state_dict()), dict(old.state_dict()))


def test_weights_that_share_memory_without_being_one_object_are_tied(tmp_path: Path) -> None:
    module = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    module["b"].weight.data = module["a"].weight.data
    assert list(part(module).live()) == ["a.weight"]
    assert save([part(module)], tmp_path)["model"].aliases == {"b.weight": "a.weight"}


@pytest.fixture
def group() -> Iterator[None]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_what_is_wrapped_around_a_module_is_not_in_its_names(group: None, tmp_path: Path) -> None:
    plain = nn.ModuleDict({"fc": nn.Linear(2, 2)})
    inner = nn.ModuleDict()
    inner["fc"] = cast(nn.Module, torch.compile(plain["fc"], backend="eager"))
    wraps = [
        torch.compile(plain, backend="eager"),
        inner,
        DistributedDataParallel(plain),
        torch.compile(DistributedDataParallel(plain), backend="eager"),
        DistributedDataParallel(torch.compile(plain, backend="eager")),
        nn.DataParallel(plain),
    ]
    plain.cpu()  # where there is a GPU, DataParallel has moved it there
    for number, wrapped in enumerate(wraps):
        assert isinstance(wrapped, nn.Module)
        assert list(part(wrapped).live()) == ["fc.weight", "fc.bias"]
        other = nn.ModuleDict({"fc": nn.Linear(2, 2)})
        move([part(wrapped)], [part(other)], tmp_path / str(number))
        assert same(state_of(other), state_of(plain))


def test_a_compiled_module_that_has_run_is_the_same_part(tmp_path: Path) -> None:
    plain = nn.Linear(2, 2)
    compiled = torch.compile(plain, backend="eager")
    registered = part(compiled)
    before = registered.structure()
    compiled(torch.ones(1, 2))
    registered.record()
    assert list(registered.live()) == ["weight", "bias"] and registered.structure() == before


def test_an_average_is_a_model_whose_names_keep_their_module(tmp_path: Path) -> None:
    from torch.optim.swa_utils import AveragedModel

    model = nn.Linear(2, 2)
    old, new = AveragedModel(model), AveragedModel(nn.Linear(2, 2))
    old.update_parameters(model)
    moved(old, new, tmp_path)
    assert same(state_of(new), state_of(old)) and int(new.n_averaged) == 1
    assert "module.weight" in part(old).live()


def test_frozen_weights_are_there_and_frozen_again(tmp_path: Path) -> None:
    old, new = nn.Linear(2, 2), nn.Linear(2, 2)
    old.weight.requires_grad_(False)
    new.bias.requires_grad_(False)
    (note,) = moved(old, new, tmp_path)
    assert note.startswith("model: 2 weights were frozen or not otherwise than in the checkpoint")
    assert same(state_of(new), state_of(old))
    assert (new.weight.requires_grad, new.bias.requires_grad) == (False, True)


def test_modes_come_back_module_by_module(tmp_path: Path) -> None:
    old, new = Tied(), Tied(1)
    old.norm.eval()
    new.eval()
    moved(old, new, tmp_path)
    assert (new.training, new.norm.training, new.head.training) == (True, False, True)


def test_buffers_are_those_of_the_moment_of_recording(tmp_path: Path) -> None:
    module = Tied()
    registered = part(module)
    recorded = registered.record()
    module(torch.tensor([1, 2, 3]))
    module.mask.zero_()
    module.eval()
    module.embed.weight.requires_grad_(False)
    stored = save_recorded([registered], [recorded], tmp_path)["model"]
    assert stored.tensors["seen"] == 0 and stored.tensors["norm.num_batches_tracked"] == 0
    assert not stored.tensors["norm.running_mean"].any() and stored.tensors[f"{SIDECAR_PREFIX}mask"].all()
    assert stored.rest["evaluating"] == stored.rest["frozen"] == []


def test_a_buffer_that_is_replaced_or_given_other_memory_or_added_is_recorded(tmp_path: Path) -> None:
    module = Tied()
    registered = part(module)
    registered.record()
    module.seen = torch.tensor(5)
    module.mask.data = torch.full((3,), 2.0)
    module.norm.register_buffer("extra", torch.ones(1))
    tensors = save([registered], tmp_path)["model"].tensors
    assert (
        tensors["seen"] == 5 and tensors[f"{SIDECAR_PREFIX}mask"].tolist() == [2, 2, 2] and tensors["norm.extra"] == 1
    )
    module.seen = None  # type: ignore[assignment]
    del module.norm.extra
    assert {"seen", "norm.extra"}.isdisjoint(save([registered], tmp_path)["model"].tensors)


def test_buffers_that_are_not_persistent_are_in_a_file_of_their_own(tmp_path: Path) -> None:
    save([part(Tied())], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model.aside.safetensors",
        "model.json",
        "model.safetensors",
    ]
    assert list(safetensors.torch.load_file(tmp_path / "model.aside.safetensors")) == ["mask"]
    assert "mask" not in safetensors.torch.load_file(tmp_path / "model.safetensors")


def test_a_cache_that_was_grown_comes_back_as_large_as_it_was(tmp_path: Path) -> None:
    old, new = Cache(8, persistent=False), Cache(4, persistent=False)
    old.table += 1
    moved(old, new, tmp_path)
    assert same(new.table, old.table)


def test_a_cache_that_a_checkpoint_lacks_is_left_alone(tmp_path: Path) -> None:
    stored = save([part(nn.Module())], tmp_path)["model"]
    registered = part(Cache(4, persistent=False))
    assert registered.problems(stored) == [] and registered.restore(stored, strict=True) == []


@pytest.mark.parametrize("persistent", [True, False])
def test_a_large_buffer_is_live_until_it_is_seen_to_change(tmp_path: Path, persistent: bool) -> None:
    module = Cache(persistent=persistent)
    name = "table" if persistent else f"{SIDECAR_PREFIX}table"
    registered = part(module)
    recorded, before = registered.record(), registered.structure()
    assert (
        registered.live()[name].data_ptr() == module.table.data_ptr()
        and name not in registered.encode(recorded).tensors
    )
    assert registered.moving_buffers == {}
    module.table += 1
    recorded = registered.record()
    assert registered.structure() != before and name not in registered.live()
    assert registered.moving_buffers == {"table": 4 * LARGE}
    module.table += 1
    stored = save_recorded([registered], [recorded], tmp_path)["model"]
    assert raw(stored.tensors[name]) == raw(torch.ones(LARGE))


def test_a_large_buffer_that_moved_no_version_counter_is_seen_to_change() -> None:
    module = Cache()
    registered = part(module)
    registered.record()
    module.table.numpy()[:] = 1
    registered.record()
    assert list(registered.moving_buffers) == ["table"]


def test_putting_back_is_no_movement(tmp_path: Path) -> None:
    old, new = Cache(), Cache()
    old.table += 1
    registered = part(new)
    move([part(old)], [registered], tmp_path)
    registered.record()
    assert registered.moving_buffers == {} and new.table.all()


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.count: dict[str, Any] = {"n": 0, "t": torch.zeros(2)}

    def get_extra_state(self) -> Any:
        return self.count

    def set_extra_state(self, state: Any) -> None:
        self.count = state


def test_extra_state_comes_back_as_of_the_moment_of_recording(tmp_path: Path) -> None:
    counting, counted = Counting(), Counting()
    registered = part(nn.Sequential(counting))
    counting.count["n"] = 3
    recorded = registered.record()
    counting.count["n"] = 4
    counting.count["t"].add_(1)
    part(nn.Sequential(counted)).restore(save_recorded([registered], [recorded], tmp_path)["model"], strict=True)
    assert same(counted.count, {"n": 3, "t": torch.zeros(2)})


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_weights_of_any_dtype_come_back(tmp_path: Path, dtype: torch.dtype) -> None:
    old, new = nn.Module(), nn.Module()
    for module, factor in ((old, 3.0), (new, 1.0)):
        module.register_parameter("w", nn.Parameter(torch.full((2, 3), factor).to(dtype)))
    moved(old, new, tmp_path)
    assert same(state_of(new), state_of(old))


def test_strides_stay_as_they_are(tmp_path: Path) -> None:
    old, new = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3)
    new.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    strides = new.weight.stride()
    moved(old, new, tmp_path)
    assert torch.equal(new.weight, old.weight) and new.weight.stride() == strides


def test_a_sparse_buffer_comes_back(tmp_path: Path) -> None:
    old, new = nn.Module(), nn.Module()
    old.register_buffer("s", torch.tensor([0.0, 1.0, 2.0]).to_sparse())
    new.register_buffer("s", torch.tensor([5.0, 0.0, 0.0]).to_sparse())
    moved(old, new, tmp_path)
    assert same(new.s, old.s)


def test_a_sparse_buffer_comes_back_without_a_word_where_torch_speaks_of_checks_that_it_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = torch.sparse_coo_tensor

    def torch_of_2_11(*args: Any, **kwargs: Any) -> torch.Tensor:
        warnings.warn("Sparse invariant checks are implicitly disabled. Memory errors", stacklevel=2)
        return original(*args, **kwargs)

    monkeypatch.setattr(torch, "sparse_coo_tensor", torch_of_2_11)
    test_a_sparse_buffer_comes_back(tmp_path)


@pytest.mark.parametrize(
    ("new", "problems"),
    [
        (
            nn.Linear(4, 12),
            [
                "model: weight 'weight' is float32 [10, 4] in the checkpoint and float32 [12, 4] in the model",
                "model: weight 'bias' is float32 [10] in the checkpoint and float32 [12] in the model",
            ],
        ),
        (
            nn.Linear(4, 10, dtype=torch.bfloat16),
            [
                "model: weight 'weight' is float32 [10, 4] in the checkpoint and bfloat16 [10, 4] in the model",
                "model: weight 'bias' is float32 [10] in the checkpoint and bfloat16 [10] in the model",
            ],
        ),
        (nn.Linear(4, 10, bias=False), ["model: 'bias' is in the checkpoint and not in the model"]),
        (
            nn.BatchNorm1d(10),
            [
                "model: weight 'weight' is float32 [10, 4] in the checkpoint and float32 [10] in the model",
                "model: buffer 'running_mean' is in the model and not in the checkpoint",
                "model: buffer 'running_var' is in the model and not in the checkpoint",
                "model: buffer 'num_batches_tracked' is in the model and not in the checkpoint",
            ],
        ),
        (
            nn.Sequential(nn.Linear(4, 10)),
            [
                "model: weight '0.weight' is in the model and not in the checkpoint",
                "model: weight '0.bias' is in the model and not in the checkpoint",
                "model: 'bias' is in the checkpoint and not in the model",
                "model: 'weight' is in the checkpoint and not in the model",
            ],
        ),
    ],
    ids=["shape", "dtype", "unexpected", "missing", "renamed"],
)
def test_fault_44_mismatches_are_named_before_any_tensor_is_written(
    tmp_path: Path, new: nn.Module, problems: list[str]
) -> None:
    """Models of other shapes, dtypes, names and buffers are given the checkpoint."""
    stored = save([part(nn.Linear(4, 10))], tmp_path)["model"]
    before = {name: tensor.detach().clone() for name, tensor in state_of(new).items()}
    assert part(new).problems(stored) == problems
    with pytest.raises(CheckpointError, match="model does not fit the checkpoint"):
        part(new).restore(stored, strict=True)
    assert same({name: tensor.detach() for name, tensor in state_of(new).items()}, before)


def test_without_strictness_what_fits_is_put_back_and_the_rest_is_told(tmp_path: Path) -> None:
    old, new = nn.Linear(4, 10), nn.Linear(4, 10, bias=False)
    stored = save([part(old)], tmp_path)["model"]
    notes = part(new).restore(stored, strict=False)
    assert notes == ["model: 'bias' is in the checkpoint and not in the model: left out"]
    assert same(new.weight, old.weight)


def test_weights_that_are_tied_on_one_side_alone_are_a_mismatch(tmp_path: Path) -> None:
    tied, untied = Tied(), Tied()
    untied.head.weight = nn.Parameter(untied.head.weight.detach().clone())
    stored = save([part(tied)], tmp_path / "tied")["model"]
    assert part(untied).problems(stored) == [
        "model: 'head.weight' and 'embed.weight' are one tensor in the checkpoint and two in the model"
    ]
    stored = save([part(untied)], tmp_path / "untied")["model"]
    assert part(tied).problems(stored) == [
        "model: 'head.weight' and 'embed.weight' are one tensor in the model and two in the checkpoint"
    ]


def test_a_tied_weight_may_be_kept_under_its_other_name(tmp_path: Path) -> None:
    class Turned(Tied):
        def __init__(self) -> None:
            super().__init__(1)
            self._modules = {name: self._modules[name] for name in ("head", "norm", "embed")}

    old, new = Tied(), Turned()
    assert next(iter(part(new).live())) == "head.weight"
    moved(old, new, tmp_path)
    assert same(new.embed.weight, old.embed.weight) and new.head.weight is new.embed.weight


@pytest.mark.parametrize(
    "rest",
    [
        None,
        [],
        {"kind": "optimizer"},
        {"kind": "model"},
        {"kind": "model", "frozen": 1, "evaluating": [], "extra": {}},
        {"kind": "model", "frozen": [], "evaluating": [], "extra": {"": {"$pickle": 1}}},
    ],
)
def test_what_nobody_wrote_raises_an_error_of_ours_and_changes_nothing(tmp_path: Path, rest: Any) -> None:
    module = nn.Linear(1, 1)
    before = module.weight.item()
    tensors = {"weight": torch.full((1, 1), 7.0), "bias": torch.ones(1)}
    with pytest.raises(CheckpointError):
        part(module).restore(Stored(tensors, rest, {"x": "gone"}), strict=False)
    assert module.weight.item() == before


def test_structure_differs_when_live_would_give_other_tensors() -> None:
    module = nn.Linear(2, 2)
    registered = part(nn.Sequential(module))
    registered.record()
    before = registered.structure()
    nn.init.zeros_(module.weight)
    module.weight.data = torch.ones(2, 2)
    registered.record()
    assert registered.structure() == before
    module.weight = nn.Parameter(torch.ones(2, 2))
    assert registered.live()["0.weight"] is module.weight and registered.structure() != before


def test_a_module_that_comes_later_is_in_the_next_checkpoint(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    registered = part(module)
    before = registered.structure()
    recorded = registered.record()
    module.append(nn.BatchNorm1d(2))
    stored = save_recorded([registered], [recorded], tmp_path)["model"]
    assert stored.tensors.keys() == module.state_dict().keys() and registered.structure() != before


def test_a_module_without_shapes_is_refused() -> None:
    with pytest.raises(ConfigError, match="model: 'weight' has no shape yet"):
        part(nn.LazyLinear(3))


def test_recording_draws_no_random_number_and_builds_no_graph() -> None:
    module = Tied()
    registered = part(module)
    before = torch.get_rng_state()
    registered.encode(registered.record())
    assert torch.equal(torch.get_rng_state(), before) and module.seen.grad_fn is None
