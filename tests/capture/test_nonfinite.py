from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
import torch

from helpers.parts import content
from holdfast.capture.chunks import Sources
from holdfast.capture.nonfinite import NonFiniteScan, TensorRanges
from holdfast.layouts import native
from holdfast.layouts.image import Image
from holdfast.layouts.safetensors import writing
from holdfast.layouts.torch_zip import OptimizerFile
from holdfast.state.model import ModelPart
from holdfast.state.optimizer import OptimizerPart
from holdfast.state.part import Stored
from holdfast.store.digest import BLOCK_BYTES

BAD = (float("nan"), float("inf"), -float("inf"))
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e5m2, torch.float8_e4m3fn)


def failing(pieces: Iterable[bytes | torch.Tensor], *, backwards: bool = False, **tensors: torch.Tensor) -> list[str]:
    """Returns the failing tensors in a file of some pieces, its blocks looked at in order or in the other."""
    return failing_of(pieces, tensors, backwards=backwards)


def failing_of(
    pieces: Iterable[bytes | torch.Tensor], tensors: Mapping[str, torch.Tensor], *, backwards: bool = False
) -> list[str]:
    image = Image("file", tuple(pieces))
    sources, data, scan = Sources(image), content(image), NonFiniteScan(TensorRanges(tensors))
    for chunk in sorted(sources.chunks, reverse=backwards):
        scan.examine(sources, chunk, memoryview(data[chunk.offset : chunk.offset + chunk.size]))
    return sorted(scan.failing)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_value_of_a_dtype_is_told_apart_as_torch_does(dtype: torch.dtype) -> None:
    if dtype.itemsize <= 2:
        every = torch.arange(256**dtype.itemsize).to({1: torch.uint8, 2: torch.int16}[dtype.itemsize]).view(dtype)
    else:
        limits = torch.finfo(dtype)
        some = torch.tensor([0.0, limits.tiny, limits.smallest_normal, limits.max, *BAD], dtype=dtype)
        # Beside infinity are the greatest number and a NaN; at the end is the NaN of all bits.
        bits = {4: torch.int32, 8: torch.int64}[dtype.itemsize]
        beside = some[-2:].view(bits)
        every = torch.cat([some, -some, *((beside + n).view(dtype) for n in (-1, 1)), (beside * 0 - 1).view(dtype)])
    expected = every.double().isfinite().tolist()
    assert not all(expected) and any(expected)
    good = every[torch.tensor(expected)]
    assert failing([good], good=good) == []
    for index in [index for index, finite in enumerate(expected) if not finite]:
        bad = every[index].clone()
        assert failing([bad], bad=bad) == ["bad"], bad


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64, torch.complex64], ids=str)
def test_a_value_beside_the_edge_of_a_block_is_seen(dtype: torch.dtype, bad: float, backwards: bool) -> None:
    clean = torch.ones(BLOCK_BYTES // dtype.itemsize + 3, dtype=dtype)
    head = bytes(2 * dtype.itemsize)
    edge = (BLOCK_BYTES - len(head)) // dtype.itemsize
    assert failing([head, clean], backwards=backwards, clean=clean) == []
    for index in (0, edge - 1, edge, len(clean) - 1):
        tensor = clean.clone()
        tensor[index] = bad
        assert failing([head, tensor, b"end"], backwards=backwards, tensor=tensor) == ["tensor"], index


def test_a_file_in_which_the_edge_of_a_block_would_cut_a_value_is_refused() -> None:
    tensor = torch.ones(BLOCK_BYTES // 4)
    with pytest.raises(AssertionError, match="values of tensor that the edge of a block cuts"):
        failing([b"odd", tensor], tensor=tensor)


def of_every_dtype(count: int) -> dict[str, torch.Tensor]:
    """Tensors of every dtype that is looked at, among others of every width, in an order that aligns nothing."""
    others = (torch.bool, torch.int16, torch.int64)
    dtypes = (torch.bool, torch.float16, *DTYPES, torch.complex32, torch.complex64, torch.complex128, *others)
    return {f"{number}.{'x' * number}": torch.ones(count).to(dtype) for number, dtype in enumerate(dtypes)}


def of_safetensors(tensors: Mapping[str, torch.Tensor], folder: Path) -> list[Image]:
    """Files whose headers have every length modulo 8."""
    return [writing.image("file", tensors, {"more": "x" * length}) for length in range(8)]


def of_native(tensors: Mapping[str, torch.Tensor], folder: Path) -> list[Image]:
    return native.images([("part", tensors, Stored({}, {}))], {})


def of_torch_save(tensors: Mapping[str, torch.Tensor], folder: Path) -> list[Image]:
    """A file of `torch.save`, and one whose beginning is that of the first."""
    file, state = OptimizerFile(), {0: dict(tensors)}
    contents = [{"state": state, "param_groups": [{"lr": rate}]} for rate in (0.1, 0.2)]
    return [file.image("file", content, folder / "scratch") for content in contents]


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("images_of", [of_safetensors, of_native, of_torch_save])
def test_no_writer_puts_a_tensor_where_the_edge_of_a_block_would_cut_a_value(
    images_of: Callable[[Mapping[str, torch.Tensor], Path], list[Image]], tmp_path: Path
) -> None:
    tensors = of_every_dtype(BLOCK_BYTES // 24 + 3)
    examined = sorted(name for name, tensor in tensors.items() if tensor.is_floating_point() or tensor.is_complex())
    images = images_of(tensors, tmp_path)
    assert max(image.size for image in images) > 2 * BLOCK_BYTES
    for image in images:
        assert failing_of(image.pieces, tensors) == []
    for name in examined:
        tensors[name][-1] = float("nan")
    for image in images:
        if any(isinstance(piece, torch.Tensor) for piece in image.pieces):
            assert failing_of(image.pieces, tensors) == examined


def test_what_is_not_to_be_finite_hides_nothing_and_is_not_named() -> None:
    mask = torch.full((7,), -float("inf"))
    clean, bad = torch.ones(5), torch.tensor([1.0, float("nan")])
    numbers = torch.full((9,), -1, dtype=torch.int64)
    pieces: list[bytes | torch.Tensor] = [b"\xff" * 64, mask, clean, numbers, bad, mask]
    assert failing(pieces, clean=clean, numbers=numbers) == []
    assert failing(pieces, clean=clean, bad=bad) == ["bad"]


def test_values_of_two_widths_beside_each_other() -> None:
    single, half = torch.ones(3), torch.ones(5, dtype=torch.float16)
    assert failing([single, half], single=single, half=half) == []
    half[4] = float("inf")
    assert failing([single, half], single=single, half=half) == ["half"]


def test_a_tensor_is_found_in_the_bytes_of_its_storage_and_in_a_view_of_it() -> None:
    flat = torch.ones(40)
    first, second, columns = flat[3:10], flat[10:40].view(5, 6), torch.ones(4, 6).t()
    storage = torch.empty(0, dtype=torch.uint8).set_(flat.untyped_storage())
    tensors = {"first": first, "second": second, "columns": columns}
    assert failing_of([b"head", storage, columns], tensors) == []
    second[0, 0] = columns[1, 2] = float("nan")
    assert failing_of([b"head", storage, columns], tensors) == ["columns", "second"]
    assert failing([second[:, 1:]], second=second) == [] and failing([second[:1, :1]], second=second) == ["second"]
    flat[0] = float("nan")  # nobody's
    assert failing([storage], first=first) == []
    assert failing([storage], first=first, flat=flat) == ["flat"]
    assert failing([flat[20:30]], first=first, flat=flat) == []
    flat[25] = float("nan")
    assert failing([flat[20:30]], first=first, flat=flat) == ["flat"]


def test_what_lies_between_the_values_of_a_tensor_is_not_its_own() -> None:
    flat = torch.ones(40)
    every_other = flat.view(20, 2)[:, 0]
    storage = torch.empty(0, dtype=torch.uint8).set_(flat.untyped_storage())
    flat[1] = float("nan")
    assert failing([storage], every_other=every_other) == []
    flat[2] = float("nan")
    assert failing([every_other], every_other=every_other) == ["every_other"]


def test_a_tensor_that_shares_memory_at_odd_bytes_is_looked_at_in_its_own_piece() -> None:
    memory = bytearray(64)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    odd = torch.frombuffer(memory, dtype=torch.float32, offset=1, count=8)
    assert failing([whole, odd], odd=odd) == []
    odd[7] = float("nan")
    assert failing([whole], odd=odd) == [] and failing([whole, odd], odd=odd) == ["odd"]


def optimizers() -> list[type[torch.optim.Optimizer]]:
    classes = [kind for kind in vars(torch.optim).values() if isinstance(kind, type)]
    return [kind for kind in classes if issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer]


@pytest.mark.parametrize("kind", optimizers(), ids=lambda kind: kind.__name__)
def test_no_optimizer_of_torch_begins_with_infinity(kind: type[torch.optim.Optimizer]) -> None:
    torch.manual_seed(1)
    model = torch.nn.Embedding(4, 3, sparse=kind is torch.optim.SparseAdam)
    optimizer = kind(model.parameters(), lr=0.1)  # type: ignore[call-arg]
    part = OptimizerPart("optimizer", optimizer, [ModelPart("model", model)])

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        loss_value: torch.Tensor = (model(torch.tensor([0, 1])) ** 2).sum()
        loss_value.backward()  # type: ignore[no-untyped-call]
        return loss_value

    for _ in range(2):
        optimizer.step(loss)  # type: ignore[arg-type]
        live = part.live()
        assert failing_of(live.values(), live) == []
