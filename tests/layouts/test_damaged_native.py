"""Each kind of damage to a checkpoint of a plain loop, made from the one that is committed."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash

from fixtures import make_native, make_native_ranks
from fixtures.make_damaged import rewritten
from helpers.support import content_of, holdfast
from holdfast import Checkpointer
from holdfast.errors import CheckpointError, DamagedCheckpointError

WHOLE = make_native.HERE / "checkpoint-7"


def relisted(folder: Path, name: str, data: bytes) -> None:
    """Gives a file other content, and has the manifest say so."""
    (folder / name).write_bytes(data)

    def change(content: dict[str, Any]) -> None:
        for file in content["files"]:
            if file["path"] == name:
                file.update(size=len(data), xxh3_128=xxhash.xxh3_128_hexdigest(data))

    rewritten(folder, change)


def with_header(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes what model.safetensors says of its tensors."""
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    relisted(folder, "model.safetensors", len(text).to_bytes(8, "little") + text + data[8 + length :])


def bit_flip(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def bit_flip_in_json(folder: Path) -> None:
    data = (folder / "optimizer.json").read_bytes()
    (folder / "optimizer.json").write_bytes(data.replace(b'"class"', b'"clasS"'))


def truncated_file(folder: Path) -> None:
    data = (folder / "optimizer.safetensors").read_bytes()
    (folder / "optimizer.safetensors").write_bytes(data[:-1])


def missing_file(folder: Path) -> None:
    (folder / "random.json").unlink()


def extra_file(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "more.safetensors")


def lacking_file(folder: Path) -> None:
    (folder / "random.json").unlink()
    rewritten(folder, lambda content: content.update(files=[f for f in content["files"] if f["path"] != "random.json"]))


def empty_manifest(folder: Path) -> None:
    (folder / "MANIFEST.json").write_bytes(b"")


def future_version(folder: Path) -> None:
    rewritten(folder, lambda content: content.update(version=3))


def past_version(folder: Path) -> None:
    rewritten(folder, lambda content: content.update(version=0))


def linked_file(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "weights")
    (folder / "model.safetensors").symlink_to("../weights")


def path_escape(folder: Path) -> None:
    rewritten(folder, lambda content: content["files"][0].update(path="../outside"))


def other_layout(folder: Path) -> None:
    rewritten(folder, lambda content: content.update(layout="transformers"))


def mixed_steps(folder: Path) -> None:
    relisted(folder, "training.json", b'{"step": 8}\n')


def piece_of_nothing(folder: Path) -> None:
    piece = {"file": "model.safetensors", "offset": [0], "lengths": [5]}
    rewritten(folder, lambda content: content.update(tensors={"model": {"nothing": {"shape": [5], "pieces": [piece]}}}))


def overlapping_tensors(folder: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        first, *others = [name for name in header if name != "__metadata__"]
        twin = next(name for name in others if header[name]["data_offsets"] != header[first]["data_offsets"])
        begin, end = header[twin]["data_offsets"]
        header[twin]["data_offsets"] = [0, end - begin]

    with_header(folder, change)


def huge_tensor(folder: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        name = next(name for name in header if name != "__metadata__")
        header[name]["shape"] = [2**31, 2**31]

    with_header(folder, change)


def huge_header(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    relisted(folder, "model.safetensors", (2**40).to_bytes(8, "little") + data[8:])


@dataclass(frozen=True)
class Exhibit:
    """A kind of damage, what is said of it, the exit code of `holdfast verify`, and whether a resume takes it."""

    damage: Callable[[Path], None]
    problem: str
    code: int = 3
    resumes: bool = False


EXHIBITS = (
    Exhibit(bit_flip, "model.safetensors: its bytes have changed since it was written"),
    Exhibit(bit_flip_in_json, "optimizer.json: its bytes have changed since it was written"),
    Exhibit(truncated_file, "optimizer.safetensors: is "),
    Exhibit(missing_file, "random.json: is missing"),
    Exhibit(extra_file, "more.safetensors: not in the manifest, and never read", code=0, resumes=True),
    Exhibit(lacking_file, "it lacks random.json, without which nothing can be resumed", code=0),
    Exhibit(empty_manifest, "the manifest is cut short or is not one of ours"),
    Exhibit(future_version, "the manifest is of format version 3, and this Holdfast reads versions 1 and 2"),
    Exhibit(past_version, "the manifest is of format version 0, and this Holdfast reads versions 1 and 2"),
    Exhibit(linked_file, "model.safetensors: cannot be read: Too many levels of symbolic links"),
    Exhibit(path_escape, "the manifest lists a file under a name that is not allowed: '../outside'"),
    Exhibit(other_layout, "its layout is 'transformers', and this training reads 'native'", code=0),
    # Whoever made these meant to: every byte is what the manifest says.
    Exhibit(mixed_steps, "training.json is of step 8, the manifest of 7", code=0),
    Exhibit(piece_of_nothing, "model.safetensors", code=0),
    Exhibit(overlapping_tensors, "model.safetensors", code=0),
    Exhibit(huge_tensor, "model.safetensors", code=0),
    Exhibit(huge_header, "model.safetensors", code=0),
)
WHICH = pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.damage.__name__)


def damaged(root: Path, exhibit: Exhibit) -> Path:
    path = root / WHOLE.name
    shutil.copytree(WHOLE, path)
    exhibit.damage(path)
    return path


def resumed(folder: Path, wanted: Path, said: list[str]) -> int:
    """Resumes what `make_native` saves, with other values in it, and gives the step."""
    model = make_native.Model(5.0)
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1])
    with Checkpointer(
        folder,
        resume=str(wanted),
        strict=False,
        say=said.append,
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        average=make_native.Average(),
        data=[10, 20, 30],
    ) as ckpt:
        step = ckpt.resume()
    return step


@WHICH
def test_fault_15_16_each_kind_of_damage_to_a_loops_checkpoint_has_its_exit_code_and_line(
    tmp_path: Path, exhibit: Exhibit
) -> None:
    """A bit, a file, a name, a version or a header of a plain loop's checkpoint is another; then `holdfast verify`."""
    path = damaged(tmp_path, exhibit)
    before = content_of(tmp_path)
    found = holdfast("verify", path)
    assert found.returncode == exhibit.code, found.stdout + found.stderr
    assert "Traceback" not in found.stderr
    if exhibit.code or exhibit.resumes:
        assert f"  {exhibit.problem}" in found.stdout
    assert content_of(tmp_path) == before


@WHICH
def test_fault_15_16_security_s04_each_kind_of_damage_to_a_loops_checkpoint_is_refused_by_name_at_a_resume(
    tmp_path: Path, exhibit: Exhibit
) -> None:
    """A bit, a file, a name, a version or a header of a plain loop's checkpoint is another; then a resume from it."""
    path = damaged(tmp_path, exhibit)
    before = content_of(path)
    said: list[str] = []
    if exhibit.resumes:
        assert resumed(tmp_path / "run", path, said) == 7
        assert any(exhibit.problem in line for line in said)
    else:
        with pytest.raises(CheckpointError) as raised:
            resumed(tmp_path / "run", path, said)
        assert exhibit.problem in "\n".join([str(raised.value), *said])
        assert exhibit.code == 0 or isinstance(raised.value, DamagedCheckpointError)
    assert content_of(path) == before


def test_fault_16_the_checkpoint_of_four_processes_that_lies_about_one_of_them_is_refused(tmp_path: Path) -> None:
    """A file of one rank is missing from the list of the manifest."""
    path = tmp_path / "checkpoint-7"
    shutil.copytree(make_native_ranks.HERE / "checkpoint-7", path)
    rewritten(
        path, lambda content: content.update(files=[f for f in content["files"] if f["path"] != "random-00003.json"])
    )
    with pytest.raises(CheckpointError, match=r"it lacks random-00003\.json"):
        resumed(tmp_path / "run", path, [])
