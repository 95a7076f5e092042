import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import parts
from helpers.parts import same
from helpers.shards import Grids, committed, held, local, place, written
from helpers.support import content_of
from holdfast.errors import CheckpointError, DamagedCheckpointError, SaveError, UnsupportedError
from holdfast.layouts import export, native, native_reading, native_weights
from holdfast.layouts.pieces import reads
from holdfast.state.part import SIDECAR_PREFIX, LoadedTensors, Stored
from holdfast.state.sharding import ShardRange
from holdfast.store.folder import Folder
from holdfast.store.manifest import Manifest
from holdfast.store.verify import verify

MODEL = {"kind": "model", "frozen": [], "evaluating": [], "extra": {}}
REST = Stored({}, MODEL)


def filled(dtype: torch.dtype, *shape: int, seed: int = 1) -> torch.Tensor:
    size = torch.empty(shape, dtype=dtype).nbytes
    data = torch.arange(size, dtype=torch.int64).mul(7 * seed).remainder(2 if dtype == torch.bool else 120)
    return data.to(torch.uint8).view(dtype).reshape(shape)


STATE = {
    "uneven": filled(torch.float32, 7, 3),
    "rows": filled(torch.float64, 2, 5),
    "both": filled(torch.bfloat16, 9, 5),
    "deep": filled(torch.int16, 3, 5, 4),
    "vector": filled(torch.int64, 10),
    "truths": filled(torch.bool, 6, 2),
    "narrow": filled(torch.float8_e4m3fn, 5, 3),
    "complex": filled(torch.complex64, 5, 2),
    "wide": filled(torch.complex128, 5, 2),
    "odd": filled(torch.float8_e8m0fnu, 5, 2),
    "nothing": filled(torch.float16, 0, 4),
    "nothing whole": filled(torch.float16, 4, 0),
    "scalar": torch.tensor(2.5),
    "plain": filled(torch.float32, 4, 4),
    SIDECAR_PREFIX + "cache": filled(torch.float32, 5),
}


def grids(size: int, chance: random.Random) -> dict[str, tuple[int, ...]]:
    """Another way to cut everything: along one dimension, or two, or with a copy of each piece."""
    found: dict[str, tuple[int, ...]] = {}
    for name, tensor in STATE.items():
        if tensor.ndim and name not in ("plain", "nothing whole"):
            ways = [tuple(size if d == cut else 1 for d in range(tensor.ndim)) for cut in range(tensor.ndim)]
            if tensor.ndim > 1 and size == 4:
                ways += [(2, 2, *(1 for _ in range(tensor.ndim - 2))), (2, *(1 for _ in range(tensor.ndim - 1)))]
            found[name] = chance.choice(ways)
    return found


def manifest_of(checkpoint: Path) -> Manifest:
    report = verify(checkpoint)
    assert report.good and report.entry.manifest is not None
    return report.entry.manifest


def read(checkpoint: Path, cut: Grids | None = None, rank: int = 0) -> tuple[Stored, dict[str, Any]]:
    """What a rank reads of the only part."""
    manifest = manifest_of(checkpoint)

    def wanted(part: str, name: str, shape: tuple[int, ...]) -> ShardRange | None:
        assert part == "model"
        return place(shape, cut[name], rank) if cut is not None and name in cut else None

    files = [file.path for file in manifest.files]
    stored, extra = parts.read(checkpoint, files, tensors=manifest.tensors, rank=rank, places=wanted)
    return stored["model"], extra


def whole(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(sorted(tensors.items()))


@pytest.mark.parametrize("seed", range(6))
def test_any_number_of_processes_reads_what_any_other_wrote_bit_for_bit(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    sizes = [4, 2, 1, 3, *chance.choices([1, 2, 3, 4, 5, 8], k=2)]
    state = STATE
    for step, (size, next_size) in enumerate(zip(sizes, [*sizes[1:], 1], strict=True)):
        checkpoint = committed(tmp_path, [("model", state, REST)], grids(size, chance), size, step)
        cut = grids(next_size, chance)
        for rank in range(next_size):
            found = whole(read(checkpoint, cut, rank)[0].tensors)
            places = {name: place(one.shape, cut[name], rank) for name, one in STATE.items() if name in cut}
            assert same(found, whole({n: local(one, places[n]) if n in places else one for n, one in STATE.items()}))
        state = {name: tensor.clone() for name, tensor in read(checkpoint)[0].tensors.items()}


def test_each_value_is_written_once(tmp_path: Path) -> None:
    cut = {"uneven": (4, 1), "both": (2, 2), "rows": (2, 1)}
    files, told = written([("model", STATE, REST)], cut, [{}] * 4)
    tensors = told["model"]
    assert [piece["lengths"] for piece in tensors["uneven"]["pieces"]] == [[2, 3], [2, 3], [2, 3], [1, 3]]
    assert [piece["offset"] for piece in tensors["both"]["pieces"]] == [[0, 0], [0, 3], [5, 0], [5, 3]]
    # Ranks 2 and 3 have copies of the pieces of 0 and 1.
    assert [piece["file"][:11] for piece in tensors["rows"]["pieces"]] == ["model-00000", "model-00001"]
    assert all(len(one["pieces"]) == 1 for name, one in tensors.items() if name not in cut)
    assert sum(len(data) for name, data in files.items() if name.endswith("safetensors")) < 4 * 2000


def test_only_the_files_that_a_rank_needs_are_opened(tmp_path: Path) -> None:
    cut = {"w": (4, 1)}
    checkpoint = committed(tmp_path, [("model", {"w": STATE["uneven"]}, REST)], cut, 4)
    manifest = manifest_of(checkpoint)
    for rank in (1, 2):
        (checkpoint / f"model-{rank:05}-of-00004.safetensors").unlink()
    found, _ = parts.read(
        checkpoint,
        [file.path for file in manifest.files],
        tensors=manifest.tensors,
        places=lambda _, __, shape: place(shape, (4, 1), 0),
    )
    assert same(found["model"].tensors["w"], STATE["uneven"][:2])
    with pytest.raises(CheckpointError, match="model-00001-of-00004"):
        parts.read(checkpoint, [file.path for file in manifest.files], tensors=manifest.tensors)


@pytest.mark.parametrize("rank", [0, 3])
def test_of_a_large_file_only_the_part_that_a_rank_needs_is_read_and_proved(tmp_path: Path, rank: int) -> None:
    large = filled(torch.float32, 8, 1 << 19)
    checkpoint = committed(tmp_path, [("model", {"w": large}, REST)], {}, 1)
    listed = {file.path: file for file in manifest_of(checkpoint).files}
    with (checkpoint / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")

    def read_quarter() -> torch.Tensor:
        with Folder.open(checkpoint) as folder:
            reading = native_reading.NativeReading(
                folder, list(listed.values()), {}, places=lambda _, __, shape: place(shape, (4, 1), rank)
            )
            reading.read()
        return reading.stored["model"].tensors["w"]

    if rank == 0:
        assert same(read_quarter(), large[:2])
    else:
        with pytest.raises(DamagedCheckpointError, match=r"model\.safetensors: its bytes have changed"):
            read_quarter()


def test_what_this_process_has_is_read_right_into_its_memory(tmp_path: Path) -> None:
    state = {name: STATE[name] for name in ("uneven", "both", "plain", "vector")}
    checkpoint = committed(tmp_path, [("model", state, REST)], {"uneven": (2, 1), "both": (2, 2)}, 4)
    manifest = manifest_of(checkpoint)
    paths = [file.path for file in manifest.files]
    cut = {"uneven": (3, 1), "both": (1, 3)}
    for rank in range(3):
        places = {name: place(one.shape, cut[name], rank) if name in cut else None for name, one in state.items()}
        live = {
            name: torch.zeros(w.lengths if w else STATE[name].shape).to(STATE[name].dtype) for name, w in places.items()
        }
        live["plain"] = torch.zeros(4, 8)[:, ::2]  # its bytes do not lie in order
        live["vector"] = torch.zeros(10)  # it is of another dtype
        memory = {"model": live}
        found, _ = parts.read(
            checkpoint, paths, tensors=manifest.tensors, places=lambda _, name, __, p=places: p[name], memory=memory
        )
        tensors = found["model"].tensors
        assert same(dict(tensors), {n: local(one, w) if (w := places[n]) else one for n, one in state.items()})
        assert {name for name in live if tensors[name].data_ptr() == live[name].data_ptr()} == {"uneven", "both"}
        assert isinstance(tensors, LoadedTensors) and tensors.free == {"plain", "vector"}


def test_two_tensors_are_never_read_into_the_same_memory(tmp_path: Path) -> None:
    state = {"a": torch.ones(4), "b": torch.full((2,), 2.0), "c": torch.full((4,), 3.0)}
    checkpoint = committed(tmp_path, [("model", state, REST)], {}, 1)
    shared = torch.zeros(8)
    live = {"a": shared[:4], "b": shared[2:4], "c": shared[4:]}
    found, _ = parts.read(checkpoint, memory={"model": live})
    assert same(dict(found["model"].tensors), state)
    assert shared.tolist() == [1, 1, 1, 1, 3, 3, 3, 3]


def test_a_checkpoint_of_one_process_is_cut_up_too(tmp_path: Path) -> None:
    checkpoint = committed(tmp_path, [("model", STATE, REST)], {}, 1)
    assert manifest_of(checkpoint).tensors == {}
    found = read(checkpoint, {"uneven": (4, 1)}, 3)[0].tensors
    assert same(found["uneven"], STATE["uneven"][6:]) and same(found["both"], STATE["both"])


def test_a_place_in_another_shape_gives_all_there_is(tmp_path: Path) -> None:
    checkpoint = committed(tmp_path, [("model", {"w": STATE["uneven"]}, REST)], {"w": (2, 1)}, 2)
    manifest = manifest_of(checkpoint)
    files = [file.path for file in manifest.files]
    for other in (ShardRange((8, 3), (0, 0), (4, 3)), ShardRange((21,), (0,), (7,))):
        found, _ = parts.read(checkpoint, files, tensors=manifest.tensors, places=lambda *_, other=other: other)
        assert same(found["model"].tensors["w"], STATE["uneven"])


def test_what_rank_0_encoded_comes_back_and_tied_names_with_it(tmp_path: Path) -> None:
    sparse = torch.tensor([0.0, 1.5, 0.0]).to_sparse()
    stored = Stored({"sparse": sparse, SIDECAR_PREFIX + "state": torch.ones(2)}, MODEL, {"head.weight": "w"})
    for size in (1, 2, 4):
        checkpoint = committed(tmp_path, [("model", {"w": STATE["uneven"]}, stored)], {"w": (size, 1)}, size, size)
        for rank in range(3):
            found = read(checkpoint, {"w": (3, 1)}, rank)[0]
            assert found.aliases == {"head.weight": "w"} and found.rest == MODEL
            assert same(found.tensors["sparse"], sparse) and same(
                found.tensors[SIDECAR_PREFIX + "state"], torch.ones(2)
            )


def test_each_rank_has_its_own_generators_and_position(tmp_path: Path) -> None:
    checkpoint = committed(tmp_path, [("model", {"w": STATE["uneven"]}, REST)], {"w": (3, 1)}, 3)
    for rank, whose in ((0, 0), (1, 1), (2, 2), (3, 0)):
        _, extra = read(checkpoint, rank=rank)
        assert extra == {"training": {"step": 7}, "random": {"of": whose}, "data": {"of": whose}}


def test_a_rank_whose_generators_are_missing_is_named() -> None:
    there = ["training.json", "random.json", "random-00001.json", "random-00002.json", "model.json"]
    assert native.missing(there, 3) == [] and native.missing(there) == []
    assert native.missing([one for one in there if one != "random-00001.json"], 3) == ["random-00001.json"]
    assert "random-00003.json" in native.missing(there, 2**62)


def test_names_that_several_processes_need_are_refused() -> None:
    for name in ("random-00001", "data-3"):
        with pytest.raises(UnsupportedError, match=f"^{name}: this name is taken"):
            native.images([(name, {}, REST)], {})
    long = "x" * 80
    assert native.images([(long, STATE, REST)], {})
    with pytest.raises(UnsupportedError, match=r"^x+: this name is too long for a checkpoint of 2 processes"):
        native.images([(long, STATE, REST)], {}, 0, 2)


def told(rank: int, size: int = 2) -> native.Tensors:
    live, places = held({"w": STATE["uneven"], "plain": STATE["plain"]}, {"w": (size, 1)}, rank, size)
    return native.pieces([("model", live, REST)], {"model": places}, rank, size)


def test_ranks_that_fit_together_are_merged() -> None:
    merged = native.merge([told(0), told(1)])["model"]
    assert list(merged) == ["w", "plain"] and [len(one["pieces"]) for one in merged.values()] == [2, 1]


def test_ranks_that_do_not_fit_together_save_nothing() -> None:
    other = {"model": {"w": {"shape": [8, 3], "pieces": []}}}
    stage = {"model": {"v": told(1)["model"]["plain"]}}
    alone: native.Tensors = {"model": {**told(0)["model"], "v": {"shape": [2], "pieces": []}}}
    unwritten: native.Tensors = {"model": {**told(1)["model"], "v": {"shape": [2], "pieces": []}}}
    twice = {"model": {"w": told(1)["model"]["w"]}}
    cases: list[tuple[list[native.Tensors], str]] = [
        ([told(0)], r"'w' cannot be saved: its 1 pieces, 12 values in all, do not fill its shape \[7, 3\]"),
        ([told(0), told(1), twice], r"'w' cannot be saved: its 3 pieces, 30 values"),
        ([told(0), told(0)], r"'w' cannot be saved: its 2 pieces, 24 values"),
        ([told(0), told(1), other], r"'w' has the shape \[8, 3\] on rank 2 and \[7, 3\] before it"),
        ([alone, unwritten], r"'v' cannot be saved: it has no pieces"),
        ([told(0), told(1), stage], r"'v' is on rank 2 and not on rank 0; ranks are saved together that hold the same"),
        ([alone, told(1)], r"'v' is on rank 0 and not on rank 1; ranks are saved together that hold the same"),
    ]
    for ranks, message in cases:
        with pytest.raises(SaveError, match=f"^model: {message}"):
            native.merge(ranks)


def test_pieces_that_are_not_where_the_manifest_says_are_named(tmp_path: Path) -> None:
    checkpoint = committed(tmp_path, [("model", {"w": STATE["uneven"]}, REST)], {"w": (2, 1)}, 2)
    manifest = manifest_of(checkpoint)
    files = [file.path for file in manifest.files]
    first, second = manifest.tensors["model"]["w"]["pieces"]
    exchanged = [{**first, "file": second["file"]}, {**second, "file": first["file"]}]
    lies = {
        "w": {"shape": [7, 3], "pieces": exchanged},
        "v": {"shape": [7, 3], "pieces": [first, second]},
        SIDECAR_PREFIX + "v": {"shape": [7, 3], "pieces": [first, second]},
    }
    for name, lie in lies.items():
        with pytest.raises(DamagedCheckpointError, match=r"the manifest says that model-.* holds \[., 3\] of '[wv]'"):
            parts.read(checkpoint, files, tensors={"model": {name: lie}})
    with pytest.raises(CheckpointError, match="does not say which pieces of model's tensors are in model-00000-of"):
        parts.read(checkpoint, files)


def test_pieces_of_several_dtypes_are_refused(tmp_path: Path) -> None:
    checkpoint = committed(tmp_path, [("model", {"w": STATE["uneven"]}, REST)], {"w": (2, 1)}, 2)
    other = committed(tmp_path, [("model", {"w": STATE["uneven"].to(torch.float16)}, REST)], {"w": (2, 1)}, 2, 8)
    name = "model-00001-of-00002.safetensors"
    (checkpoint / name).write_bytes((other / name).read_bytes())
    report = verify(checkpoint, full=False).entry.manifest
    assert report is not None
    with pytest.raises(DamagedCheckpointError, match="the pieces of 'w' are of several dtypes"):
        parts.read(checkpoint, [file.path for file in report.files], tensors=report.tensors)


@pytest.mark.parametrize("seed", range(4))
def test_the_ranges_are_those_of_pytorchs_planner(seed: int) -> None:
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorProperties, TensorStorageMetadata
    from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

    chance = random.Random(seed)
    shape = [chance.randint(1, 9) for _ in range(chance.randint(1, 3))]
    there, here = ([chance.randint(1, 4) for _ in shape] for _ in range(2))
    cells = [place(shape, there, rank) for rank in range(1000)]
    boxes = list(dict.fromkeys(cell for cell in cells if min(cell.lengths)))
    pieces = [{"file": str(number), "offset": box.offset, "lengths": box.lengths} for number, box in enumerate(boxes)]
    chunks = [ChunkStorageMetadata(torch.Size(box.offset), torch.Size(box.lengths)) for box in boxes]
    known = TensorStorageMetadata(TensorProperties(torch.float32), torch.Size(shape), chunks)
    for rank in range(8):
        wanted = place(shape, here, rank)
        if min(wanted.lengths):
            mine = [ChunkStorageMetadata(torch.Size(wanted.offset), torch.Size(wanted.lengths))]
            theirs = {
                (str(item.storage_index.index), *map(tuple, (item.storage_offsets, item.lengths, item.dest_offsets)))
                for item in create_read_items_for_chunk_list("w", known, mine)
            }
            ours = reads(pieces, wanted)
            assert {(file, one.begin, one.lengths, one.place) for file, one in ours} == theirs


@pytest.mark.parametrize("together", [0, 100, 64 << 20])
def test_export_writes_what_one_process_would_have_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setattr(native_weights, "_TOGETHER_BYTES", together)
    stored = Stored({"s": torch.tensor([0.0, 1.5]).to_sparse()}, MODEL, {"head": "uneven"})
    alone = committed(tmp_path, [("model", STATE, stored)], {}, 1, 1)
    export.export(alone, tmp_path / "alone")
    for seed, size in enumerate((2, 4)):
        cut = grids(size, random.Random(seed))
        many = committed(tmp_path, [("model", STATE, stored), ("o", STATE, Stored({}, {}))], cut, size, size)
        assert export.export(many, tmp_path / f"{size}") == [tmp_path / f"{size}" / "model.safetensors"]
        assert content_of(tmp_path / f"{size}") == content_of(tmp_path / "alone")
