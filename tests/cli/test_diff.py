import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from helpers.museum import EXHIBITS
from helpers.shards import Grids, committed
from helpers.support import RESUMABLE, commit_checkpoint, holdfast
from holdfast.cli import tensor_distance
from holdfast.cli.tensor_distance import Distance
from holdfast.layouts.safetensors import header as tensor_headers
from holdfast.state.part import Stored
from holdfast.store import catalog, files

BASE = {"fc.weight": torch.arange(20.0).reshape(4, 5), "fc.bias": torch.ones(4, dtype=torch.bfloat16)}


def checkpoint(root: Path, step: int, tensors: Mapping[str, torch.Tensor], **more: bytes) -> Path:
    return commit_checkpoint(root, step, {**RESUMABLE, "model.safetensors": save(dict(tensors)), **more})


def apart(folder: Path, a: bytes, b: bytes) -> Distance | None:
    """The distance of the only tensor of two files."""
    (folder / "a").write_bytes(a)
    (folder / "b").write_bytes(b)
    with files.open_regular(folder / "a") as one, files.open_regular(folder / "b") as other:
        (here,), (there,) = tensor_headers.read(one), tensor_headers.read(other)
        return tensor_distance.distance(reader(one, here), reader(other, there), here.dtype, here.bytes)


def reader(fd: int, tensor: tensor_headers.Tensor) -> tensor_distance.Reader:
    return lambda at, count: tensor_headers.exactly(fd, count, tensor.offset + at)


def test_the_same_is_exit_code_0(tmp_path: Path) -> None:
    found = holdfast("diff", checkpoint(tmp_path, 1, BASE), checkpoint(tmp_path, 2, BASE))
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout == "tensors: 2 the same, 0 not\nother files: 4 the same, 0 not\n"


def test_each_difference_is_named_with_its_size_and_the_exit_code_is_1(tmp_path: Path) -> None:
    one = {**BASE, "only.here": torch.zeros(1), "shape": torch.zeros(2, 3), "type": torch.zeros(2)}
    other = {
        "fc.weight": BASE["fc.weight"] + torch.eye(4, 5) * 0.5,
        "fc.bias": BASE["fc.bias"],
        "only.there": torch.zeros(1),
        "shape": torch.zeros(3, 2),
        "type": torch.zeros(2, dtype=torch.float16),
    }
    a = checkpoint(tmp_path, 1, one)
    b = checkpoint(tmp_path, 2, other, **{"optimizer.pt": b"other moments", "extra.json": b"{}"})
    found = holdfast("diff", a, b)
    assert (found.returncode, found.stderr) == (1, "")
    relative = 1 / BASE["fc.weight"].norm()
    assert found.stdout.splitlines() == [
        "FILE               TENSOR      DIFFERENCE",
        f"model.safetensors  fc.weight   at most 0.5, relative {relative:.3g}",
        "model.safetensors  only.here   only in A",
        "model.safetensors  only.there  only in B",
        "model.safetensors  shape       F32 [2, 3] in A, F32 [3, 2] in B",
        "model.safetensors  type        F32 [2] in A, F16 [2] in B",
        "OTHER FILE    DIFFERENCE",
        "extra.json    only in B",
        "optimizer.pt  differs",
        "tensors: 1 the same, 5 not",
        "other files: 3 the same, 2 not",
    ]
    as_json = holdfast("diff", a, b, "--json")
    content = json.loads(as_json.stdout)
    assert as_json.returncode == 1
    assert (content["a"], content["b"], content["same"]) == (str(a), str(b), False)
    assert (content["tensors"]["same"], content["files"]["same"]) == (1, 3)
    first, *_, kind = content["tensors"]["different"]
    assert first.pop("relative") == pytest.approx(float(relative))
    assert first == {"file": "model.safetensors", "name": "fc.weight", "state": "differs", "greatest": 0.5}
    assert (kind["a"], kind["b"]) == ({"dtype": "F32", "shape": [2]}, {"dtype": "F16", "shape": [2]})
    assert content["files"]["different"] == [
        {"file": "extra.json", "state": "only in B"},
        {"file": "optimizer.pt", "state": "differs"},
    ]


def test_a_model_in_other_shards_is_the_same_model(tmp_path: Path) -> None:
    whole = checkpoint(tmp_path, 1, BASE)
    content = {name: data for name, data in RESUMABLE.items() if name != "model.safetensors"}
    for number, (name, tensor) in enumerate(BASE.items(), 1):
        content[f"model-{number:05}-of-00002.safetensors"] = save({name: tensor})
    cut = commit_checkpoint(tmp_path, 2, content)
    assert holdfast("diff", whole, cut).returncode == 0


def of_ranks(root: Path, step: int, grids: Grids, size: int, **changes: torch.Tensor) -> Path:
    shapes = {"rows": (7, 3), "columns": (3, 7), "both": (5, 4, 3), "plain": (4,)}
    state = {name: torch.arange(math.prod(shape) * 1.0).reshape(shape) for name, shape in shapes.items()}
    state["pairs"] = torch.arange(6).reshape(6, 1).to(torch.complex128)
    sparse = Stored({"sparse": torch.tensor([0.0, 1.0]).to_sparse()}, {"kind": "model"})
    return committed(root, [("model", {**state, **changes}, sparse)], grids, size, step)


@pytest.mark.parametrize("piece", [16 << 20, 48, 64])
def test_whole_tensors_are_compared_whoever_wrote_which_pieces(
    tmp_path: Path, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_distance, "_PIECE", piece)
    four = {"rows": (4, 1), "columns": (1, 4), "both": (2, 1, 2), "pairs": (4, 1)}
    two = {"rows": (1, 2), "columns": (2, 1), "both": (1, 2, 1)}
    rows = torch.arange(21.0).reshape(7, 3)
    rows[6, 2] += 2
    paths = [
        of_ranks(tmp_path, 1, {}, 1),
        of_ranks(tmp_path, 2, four, 4),
        of_ranks(tmp_path, 3, two, 2),
    ]
    for one in paths:
        for other in paths:
            content = json.loads(holdfast("diff", one, other, "--json").stdout)
            assert content["tensors"] == {"same": 7, "different": []}
    changed = of_ranks(tmp_path, 4, four, 4, rows=rows)
    for one in paths:
        (found,) = json.loads(holdfast("diff", one, changed, "--json").stdout)["tensors"]["different"]
        assert found.pop("relative") == pytest.approx(2 / float(torch.arange(21.0).norm()))
        assert found == {"file": "model.safetensors", "name": "rows", "state": "differs", "greatest": 2.0}


def test_pieces_that_are_not_what_the_manifest_says_are_exit_code_3(tmp_path: Path) -> None:
    good = of_ranks(tmp_path, 1, {"rows": (2, 1)}, 2)
    manifest = catalog.read(good).manifest
    assert manifest is not None
    told = json.loads(json.dumps(manifest.tensors))
    first, second = told["model"]["rows"]["pieces"]
    first["file"], second["file"] = second["file"], first["file"]
    content = {path.name: path.read_bytes() for path in good.iterdir() if path.name != "MANIFEST.json"}
    lying = commit_checkpoint(tmp_path, 2, content, layout="native", world_size=2, tensors=told)
    for verb in (("diff", good, lying), ("diff", lying, good), ("inspect", lying), ("export", lying, tmp_path / "x")):
        found = holdfast(*verb)
        assert found.returncode == 3, found
        assert "the manifest says that model-00001-of-00002.safetensors holds [4, 3] of 'rows'" in found.stderr


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.uint16,
        torch.uint32,
        torch.uint64,
        torch.complex64,
    ],
    ids=str,
)
def test_every_type_is_counted_with(tmp_path: Path, dtype: torch.dtype) -> None:
    one, other = torch.tensor([3.0, 4.0]).to(dtype), torch.tensor([3.0, 2.0]).to(dtype)
    assert apart(tmp_path, save({"t": one}), save({"t": other})) == Distance(2.0, 2 / 5)
    assert apart(tmp_path, save({"t": one}), save({"t": one})) is None


@pytest.mark.parametrize(
    ("a", "b", "greatest", "relative"),
    [
        ([True, False], [True, True], 1.0, 1.0),
        ([0.0, 0.0], [0.0, 3.0], 3.0, math.inf),
        ([0.0], [-0.0], 0.0, 0.0),
        ([math.nan, 4.0], [math.nan, 2.0], 2.0, 0.5),
        ([math.inf, 4.0], [math.inf, 2.0], 2.0, 0.5),
        ([1.0, 1.0], [math.nan, 2.0], math.nan, math.nan),
        ([math.inf], [1.0], math.inf, math.nan),
    ],
)
def test_what_is_no_ordinary_number_spoils_nothing_else(
    tmp_path: Path, a: list[float], b: list[float], greatest: float, relative: float
) -> None:
    found = apart(tmp_path, save({"t": torch.tensor(a)}), save({"t": torch.tensor(b)}))
    assert found is not None
    assert (found.greatest, found.relative) == pytest.approx((greatest, relative), nan_ok=True)


def test_a_large_tensor_is_read_in_pieces_and_counted_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_distance, "_PIECE", 64)
    one = torch.ones(100)
    other = one.clone()
    other[70] += 3
    other[99] -= 4
    assert apart(tmp_path, save({"t": one}), save({"t": other})) == Distance(4.0, 0.5)


def test_a_type_that_torch_does_not_count_with_is_still_compared(tmp_path: Path) -> None:
    header = json.dumps({"t": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
    file = struct.pack("<Q", len(header)) + header
    assert apart(tmp_path, file + b"ab", file + b"ab") is None
    assert apart(tmp_path, file + b"ab", file + b"ac") == Distance(None, None)


@pytest.mark.parametrize("kind", ["bit_flip", "truncated_file", "altered_manifest", "no_manifest"])
def test_damage_is_exit_code_3_and_not_a_difference(tmp_path: Path, kind: str) -> None:
    (exhibit,) = (one for one in EXHIBITS if one.kind == kind)
    damaged = exhibit.in_a_run(tmp_path)
    good = checkpoint(tmp_path, 1, BASE)
    for given in ((good, damaged), (damaged, good)):
        found = holdfast("diff", *given)
        assert (found.returncode, found.stdout) == (3, "") and str(damaged) in found.stderr


def test_weights_that_are_none_are_exit_code_3(tmp_path: Path) -> None:
    good = checkpoint(tmp_path, 1, BASE)
    found = holdfast("diff", good, commit_checkpoint(tmp_path, 2))
    assert found.returncode == 3 and "checkpoint-2/model.safetensors: it is cut short" in found.stderr


def test_names_in_a_file_move_no_cursor(tmp_path: Path) -> None:
    evil = "\x1b[2J\nfake"
    found = holdfast("diff", checkpoint(tmp_path, 1, {evil: torch.zeros(1)}), checkpoint(tmp_path, 2, BASE))
    assert found.returncode == 1 and all(line.isprintable() for line in found.stdout.splitlines())


def test_a_path_that_is_mistyped_is_exit_code_4(tmp_path: Path) -> None:
    good = checkpoint(tmp_path, 1, BASE)
    for given in ((good, tmp_path / "checkpoint-2"), (tmp_path, good)):
        found = holdfast("diff", *given)
        assert (found.returncode, found.stdout) == (4, "")
