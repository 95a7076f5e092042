import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from helpers.parts import content, listed, same
from holdfast.errors import CheckpointError, UnsupportedError
from holdfast.layouts.pieces import PiecesReader
from holdfast.layouts.safetensors import writing
from holdfast.state.sharding import ShardRange
from holdfast.store.folder import Folder

PLAIN = sorted((dtype for dtype in safetensors.torch._TYPES.values() if dtype is not None), key=str)
NOTED = [torch.complex128, torch.complex32, torch.float8_e8m0fnu]


def filled(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    size = torch.empty(shape, dtype=dtype).nbytes
    data = torch.arange(size, dtype=torch.int64).mul(7).remainder(2 if dtype == torch.bool else 120).to(torch.uint8)
    return data.view(dtype).reshape(shape)


def written(folder: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    path = folder / "x.safetensors"
    path.write_bytes(content(writing.image("x.safetensors", tensors, metadata)))
    return path


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with Folder.open(path.parent) as folder:
        reader = PiecesReader(folder, {path.name: listed(path.parent, path.name)})
        file = reader.file(path.name)
        shapes = {name: file.shape(name) or () for name in [*file.dense, *file.sparse]}
        tensors = {
            name: reader.plan(reader.want(name, whole_piece(path.name, shape), ShardRange.whole(shape)))
            for name, shape in shapes.items()
        }
        reader.read()
        return tensors, file.metadata


def whole_piece(path: str, shape: tuple[int, ...]) -> list[dict[str, object]]:
    return [{"file": path, "offset": [0] * len(shape), "lengths": list(shape)}]


@pytest.mark.parametrize("dtype", PLAIN, ids=str)
def test_the_library_loads_every_dtype_that_it_knows(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"b": filled(dtype, 3, 5), "a": filled(dtype, 2), "none": filled(dtype, 0, 4)}
    path = written(tmp_path, tensors, {"format": "pt", "of": "me"})
    assert same(dict(sorted(safetensors.torch.load_file(path).items())), dict(sorted(tensors.items())))
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "of": "me"}


def test_the_library_loads_all_dtypes_in_one_file_beside_each_other(tmp_path: Path) -> None:
    tensors = {str(dtype): filled(dtype, 3) for dtype in PLAIN} | {"scalar": torch.tensor(2.5)}
    path = written(tmp_path, tensors)
    found = safetensors.torch.load_file(path)
    assert found.keys() == tensors.keys() and all(same(found[name], tensors[name]) for name in tensors)
    with path.open("rb") as file:
        assert (8 + int.from_bytes(file.read(8), "little")) % 64 == 0


@pytest.mark.parametrize("dtype", NOTED, ids=str)
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_what_the_format_lacks_comes_back_as_it_was(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"odd": filled(torch.uint8, 1), "a": filled(dtype, 3, 5), "b": filled(dtype, 1).reshape(())}
    found, metadata = read(written(tmp_path, tensors, {"format": "pt"}))
    assert all(same(found[name], tensors[name]) for name in tensors)
    assert metadata == {"format": "pt"}
    assert safetensors.torch.load_file(tmp_path / "x.safetensors").keys() == tensors.keys()


def test_complex_numbers_are_read_to_where_torch_can_copy_them_from(tmp_path: Path) -> None:
    tensors = {f"{number}": filled(torch.float64, number) for number in (1, 3)} | {"z": filled(torch.complex128, 4)}
    for names in (["1", "z"], ["3", "1", "z"]):
        found, _ = read(written(tmp_path, {name: tensors[name] for name in names}))
        assert found["z"].data_ptr() % found["z"].element_size() == 0


def test_complex_numbers_stream_from_the_memory_that_they_are_in() -> None:
    tensor = filled(torch.complex128, 4)
    (_, piece) = writing.image("x", {"z": tensor}).pieces
    assert isinstance(piece, torch.Tensor) and piece.data_ptr() == tensor.data_ptr()


@pytest.mark.filterwarnings("ignore:Sparse (CS|BS)[RC] tensor support:UserWarning")
@pytest.mark.parametrize("values", [torch.float32, torch.complex128], ids=str)
@pytest.mark.parametrize("layout", ["sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc"])
def test_sparse_tensors_come_back_sparse(tmp_path: Path, layout: str, values: torch.dtype) -> None:
    dense = torch.tensor([[0, 1, 0, 2], [3, 0, 0, 0]], dtype=values)
    block = (1, 2) if layout.startswith("sparse_bs") else None
    tensor = dense.to_sparse(layout=getattr(torch, layout), blocksize=block)
    found, _ = read(written(tmp_path, {"s": tensor}))
    assert list(found) == ["s"] and same(found["s"], tensor)


def test_a_sparse_tensor_that_is_not_coalesced_stays_so(tmp_path: Path) -> None:
    tensor = torch.sparse_coo_tensor(
        torch.tensor([[1, 1, 0]]), torch.tensor([1.0, 2.0, 3.0]), (3,), check_invariants=True
    )
    found = read(written(tmp_path, {"s": tensor}))[0]["s"]
    assert not found.is_coalesced() and found._values().tolist() == [1.0, 2.0, 3.0]


def test_other_strides_are_written_in_the_order_of_indices(tmp_path: Path) -> None:
    tensor = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    flipped = torch.tensor([1 + 2j, 3 - 4j]).conj()
    found = safetensors.torch.load_file(written(tmp_path, {"x": tensor, "t": tensor[0, 0].t(), "c": flipped}))
    assert torch.equal(found["x"], tensor) and torch.equal(found["t"], tensor[0, 0].t())
    assert torch.equal(found["c"], flipped)


def test_what_cannot_be_written_is_named() -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    for tensor in (torch.ones(2, device="meta"), nested):
        with pytest.raises(UnsupportedError, match=r"^net\.w is a"):
            writing.image("x", {"net.w": tensor})
    with pytest.raises(UnsupportedError, match=r"two tensors of the name 's\.indices'"):
        writing.image("x", {"s": torch.ones(2).to_sparse(), "s.indices": torch.ones(1)})


def rewritten(path: Path, **notes: object) -> Path:
    """Changes the notes, as somebody with intent would."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"]["holdfast"] = json.dumps(notes)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return path


HOSTILE: list[dict[str, object]] = [
    {"w": {"dtype": "load", "shape": [2]}},
    {"w": {"dtype": "complex128", "shape": [1 << 60]}},
    {"w": {"dtype": "float64"}},
    {"w": 7},
    {"gone": {"dtype": "float64", "shape": [2]}},
    {"w": {"layout": "sparse_coo", "shape": [2], "coalesced": True}},
    {"w": {"layout": "strided", "shape": [2]}},
    {"s": {"layout": "sparse_coo", "shape": [1], "coalesced": True}},
    {"s": {"layout": "sparse_coo", "shape": [-1], "coalesced": True}},
]


@pytest.mark.parametrize("notes", HOSTILE, ids=str)
def test_notes_that_lie_raise_an_error_of_ours(tmp_path: Path, notes: dict[str, object]) -> None:
    tensors = {"w": torch.ones(2, 2), "s.indices": torch.tensor([[0, 5]]), "s.values": torch.ones(2)}
    path = written(tmp_path, tensors, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"x\.safetensors is not a file of tensors"):
        read(rewritten(path, **notes))


def test_any_truncation_raises_an_error_of_ours(tmp_path: Path) -> None:
    path = written(tmp_path, {"w": torch.ones(4)})
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            read(path)
