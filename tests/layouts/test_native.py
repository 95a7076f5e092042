import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn, optim

from fixtures import make_native, make_native_ranks
from helpers.parts import content, read, same
from helpers.support import NO_TENSORS, RESUMABLE, commit_checkpoint, content_of
from holdfast.errors import CheckpointError, DamagedCheckpointError, UnsupportedError
from holdfast.layouts import export, image, native
from holdfast.state.data.cursor import DataCursor
from holdfast.state.part import SIDECAR_PREFIX, Stored
from holdfast.state.registry import parts_of
from holdfast.state.rng import state as random_state
from holdfast.store.manifest import Manifest
from holdfast.store.verify import verify

FIXTURE = make_native.HERE / "checkpoint-7"
OF_RANKS = make_native_ranks.HERE / "checkpoint-7"


def manifest_of(checkpoint: Path) -> Manifest:
    manifest = verify(checkpoint).entry.manifest
    assert manifest is not None
    return manifest


def listed(checkpoint: Path) -> list[str]:
    return [file.path for file in manifest_of(checkpoint).files]


def committed(root: Path, **parts: Any) -> Path:
    """A checkpoint of some parts."""
    held = [(part.name, part.live(), part.encode(part.record())) for part in parts_of(parts)]
    images = native.images(held, {"training": {"step": 7}, "random": {}})
    return commit_checkpoint(root, 7, {image.path: content(image) for image in images}, layout=native.NAME)


@pytest.mark.parametrize("fixture", [FIXTURE, OF_RANKS], ids=["one process", "four"])
def test_the_first_version_is_read_by_this_one(fixture: Path) -> None:
    manifest = manifest_of(fixture)
    assert verify(fixture).good and native.missing(listed(fixture), manifest.world_size) == []
    stored, extra = read(fixture, listed(fixture), tensors=manifest.tensors)
    before = make_native.whole()
    model = make_native.Model()
    groups: list[dict[str, Any]] = [{"params": [*model.narrow.parameters()]}, {"params": [model.embed.weight]}]
    optimizer = optim.AdamW(groups)
    now: dict[str, Any] = {
        "model": model,
        "optimizer": optimizer,
        "scheduler": optim.lr_scheduler.MultiStepLR(optimizer, [1]),
        "average": make_native.Average(),
    }
    for part in parts_of(now):
        assert part.problems(stored[part.name]) == []
        part.restore(stored[part.name], strict=True)
    tensors = [{**dict(one.named_parameters()), **dict(one.named_buffers())} for one in (model, before["model"])]
    assert same(*tensors)
    assert not model.narrow.weight.requires_grad and not model.norm.training and model.training
    theirs = before["optimizer"]
    for (_, mine), (_, other) in zip(model.named_parameters(), before["model"].named_parameters(), strict=True):
        assert same(dict(optimizer.state.get(mine, {})), dict(theirs.state.get(other, {})))
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.25]
    assert same(now["scheduler"].state_dict(), before["scheduler"].state_dict())
    found, wanted = now["average"].state_dict(), make_native.everything()
    assert found.keys() == wanted.keys() and repr(found) == repr(wanted)
    assert extra["training"] == {"step": 7}
    assert random_state.decode(extra["random"]).check() == []
    position = DataCursor([10, 20, 30])
    position.restore(extra["data"], after_skip=lambda: None)
    assert next(position.rest_of_epoch()) == 30


def test_both_fixtures_hold_the_same_to_the_last_bit() -> None:
    whole, _ = read(FIXTURE, listed(FIXTURE))
    together, _ = read(OF_RANKS, listed(OF_RANKS), tensors=manifest_of(OF_RANKS).tensors)
    assert whole.keys() == together.keys()
    for name, part in whole.items():
        assert same(dict(sorted(part.tensors.items())), dict(sorted(together[name].tensors.items())))
        assert (part.rest, part.aliases) == (together[name].rest, together[name].aliases)


@pytest.mark.parametrize("rank", range(4))
def test_each_rank_of_the_fixture_has_its_own_generators(rank: int) -> None:
    _, extra = read(OF_RANKS, listed(OF_RANKS), tensors=manifest_of(OF_RANKS).tensors, rank=rank)
    random_state.decode(extra["random"]).restore()
    drawn = torch.rand(3)
    torch.manual_seed(30 + rank)
    assert same(drawn, torch.rand(3))


@pytest.mark.parametrize("script", [make_native, make_native_ranks], ids=["one process", "four"])
def test_the_fixture_is_what_its_script_makes(tmp_path: Path, script: Any) -> None:
    script.make(tmp_path)
    assert content_of(tmp_path) == content_of(script.HERE)


def test_the_page_names_the_files_and_the_names_that_are_taken() -> None:
    page = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    section = page[page.index("### The layout `native`") : page.index("## MANIFEST.json")]
    for name in (
        "<part>.safetensors",
        "<part>.aside.safetensors",
        "<part>.json",
        "<part>-<rank>-of-<world_size>.safetensors",
        "<part>.aside-<rank>-of-<world_size>.safetensors",
        "random-<rank>.json",
        "`frozen`",
        "`evaluating`",
        "`shared`",
    ):
        assert name in section
    for name in (*native.REQUIRED, "data.json"):
        assert f"| `{name}` |" in section


def test_each_part_has_the_files_that_it_needs(tmp_path: Path) -> None:
    model = make_native.Model()
    checkpoint = committed(tmp_path, model=model, scheduler=optim.lr_scheduler.StepLR(optim.SGD([model.phase], 0.1), 1))
    assert sorted(listed(checkpoint)) == [
        "model.aside.safetensors",
        "model.json",
        "model.safetensors",
        "random.json",
        "scheduler.json",
        "training.json",
    ]


def test_what_a_module_calls_aside_is_not_aside(tmp_path: Path) -> None:
    model = nn.ModuleDict({"aside": nn.Linear(1, 1)})
    stored = read(committed(tmp_path, model=model))[0]["model"]
    assert not any(name.startswith(SIDECAR_PREFIX) for name in stored.tensors)


@pytest.mark.parametrize("name", native.REQUIRED)
def test_what_a_resume_needs_is_missed_by_name(name: str) -> None:
    there = [*native.REQUIRED, "model.safetensors"]
    assert native.missing(there) == []
    assert native.missing([one for one in there if one != name]) == [name]


def test_files_that_the_manifest_does_not_list_are_never_read(tmp_path: Path) -> None:
    checkpoint = committed(tmp_path, model=nn.Linear(1, 1))
    files = listed(checkpoint)
    before, extra = read(checkpoint, files)
    (checkpoint / "other.json").write_text("{")
    (checkpoint / "data.json").write_text("{")
    (checkpoint / "model.aside.safetensors").write_bytes(b"nothing good")
    (checkpoint / "other.safetensors").symlink_to("/etc/passwd")
    after, extra_after = read(checkpoint, files)
    assert after.keys() == before.keys() == {"model"} and extra_after == extra
    assert after["model"].tensors.keys() == before["model"].tensors.keys()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting"),
        (b'{"a": 1, "a": 2}', "a key appears twice"),
        (b'{"a": NaN}', "NaN is not a number"),
        (b'{"a": -Infinity}', "-Infinity is not a number"),
        (b"\xff\xfe", "decode"),
        (b"[" * 100_000, "nested too deep"),
        (b"1" * 5000, "digits"),
    ],
    ids=["empty", "cut", "twice", "NaN", "infinite", "no text", "deep", "long"],
)
def test_json_that_nobody_wrote_raises_an_error_of_ours(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "model.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path, ["model.json"])


def test_json_that_is_too_large_is_neither_written_nor_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "MOST_JSON_BYTES", 100)
    with pytest.raises(UnsupportedError, match=r"big\.json would have 203 bytes"):
        native.images([("big", {}, Stored({}, "x" * 200))], {})
    (tmp_path / "big.json").write_text('"' + "x" * 200 + '"')
    with pytest.raises(CheckpointError, match="is larger than 100 bytes"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors", "model.aside.safetensors", "random.json"])
def test_a_listed_file_that_is_gone_raises_an_error_of_ours(tmp_path: Path, name: str) -> None:
    checkpoint = committed(tmp_path, model=make_native.Model())
    files = listed(checkpoint)
    (checkpoint / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        read(checkpoint, files)


def test_no_pickle_is_in_any_file(tmp_path: Path) -> None:
    for data in content_of(committed(tmp_path, **make_native.whole())).values():
        assert b"torch._utils" not in data and b"_rebuild" not in data


def test_a_module_that_verbs_load_loads_no_torch() -> None:
    script = "import sys, holdfast.layouts.native; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_export_writes_the_weights_of_all_models_and_nothing_else(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = make_native.Model()
    ema = optim.swa_utils.AveragedModel(nn.Linear(2, 2))
    weight = ema.get_parameter("module.weight")
    checkpoint = committed(
        tmp_path, model=model, ema=ema, average=make_native.Average(), o=optim.SGD([model.phase], 0.1)
    )
    target = tmp_path / "a" / "b"
    assert export.export(checkpoint, target) == [target / "ema.safetensors", target / "model.safetensors"]
    assert sorted(path.name for path in target.iterdir()) == ["ema.safetensors", "model.safetensors"]
    assert (target / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()
    assert same(safetensors.torch.load_file(target / "ema.safetensors")["module.weight"], weight.detach())


def test_export_takes_the_model_of_a_trainers_checkpoint_and_no_stranger(tmp_path: Path) -> None:
    model = {"model.safetensors": NO_TENSORS, "config.json": b"{}", "sub/adapter_model.safetensors": NO_TENSORS}
    checkpoint = commit_checkpoint(tmp_path, 7, {**RESUMABLE, **model})
    (checkpoint / "pytorch_model.bin").write_bytes(b"a pickle")
    target = tmp_path / "target"
    written = export.export(checkpoint, target)
    assert content_of(target) == model and sorted(written) == sorted(target / name for name in model)


def test_export_overwrites_nothing(tmp_path: Path) -> None:
    checkpoint = committed(tmp_path, model=nn.Linear(1, 1), other=nn.Linear(1, 1))
    target = tmp_path / "target"
    target.mkdir()
    (target / "model.safetensors").symlink_to("elsewhere")
    with pytest.raises(UnsupportedError, match=r"target has model\.safetensors already"):
        export.export(checkpoint, target)
    assert content_of(target) == {"model.safetensors": b"-> elsewhere"}


def test_export_verifies_first(tmp_path: Path) -> None:
    checkpoint = committed(tmp_path, model=nn.Linear(1, 1))
    data = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DamagedCheckpointError, match=r"model\.safetensors: its bytes have changed"):
        export.export(checkpoint, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_checkpoint_without_a_model_has_nothing_to_export(tmp_path: Path) -> None:
    checkpoint = committed(tmp_path, average=make_native.Average())
    with pytest.raises(UnsupportedError, match="holds no model"):
        export.export(checkpoint, tmp_path / "target")
