"""Blocks of another size: one constant is changed, in a process of its own, and everything still fits."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.shards import committed, place
from holdfast import Checkpointer
from holdfast.errors import DamagedCheckpointError
from holdfast.layouts import native_reading
from holdfast.layouts.export import export
from holdfast.state.part import Stored
from holdfast.store.digest import BLOCK_BYTES, DIGITS
from holdfast.store.folder import Folder
from holdfast.store.manifest import Manifest
from holdfast.store.verify import verify

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("size", [64 << 10, 1 << 20])
def test_everything_fits_with_blocks_of_another_size(tmp_path: Path, size: int) -> None:
    script = (
        "import pathlib; from holdfast.store import digest; digest.BLOCK_BYTES = " + f"{size}; "
        "from exactness import test_block_size as test; "
        "test.saves_and_resumes(pathlib.Path('loop')); test.reads_ranges(pathlib.Path('ranks'))"
    )
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


def saves_and_resumes(run: Path) -> None:
    """A loop is saved, verified, exported and resumed; its files, JSON too, are of several blocks."""
    first = trained(run, until=3, resume=False)
    checkpoint = run / "checkpoint-3"
    manifest = good(checkpoint)
    sizes = {file.path: file.size for file in manifest.files}
    assert all(len(file.digests) == (-(-file.size // BLOCK_BYTES) or 1) * DIGITS for file in manifest.files)
    assert min(sizes["model.safetensors"], sizes["optimizer.safetensors"], sizes["notes.json"]) > 2 * BLOCK_BYTES
    export(checkpoint, run / "exported")
    assert (run / "exported" / "model.safetensors").stat().st_size == sizes["model.safetensors"]
    assert trained(run, until=6, resume=True) == trained(run.with_name("through"), until=6, resume=False)
    assert first != trained(run, until=6, resume=True)
    with (checkpoint / "notes.json").open("r+b") as file:
        file.seek(BLOCK_BYTES + 5)
        file.write(b"\0")
    assert verify(checkpoint).problems == ("notes.json: its bytes have changed since it was written",)


class Notes:
    """An object whose JSON is of several blocks."""

    def __init__(self) -> None:
        self.lines = ["0"]

    def state_dict(self) -> dict[str, Any]:
        return {"lines": list(self.lines)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.lines = list(state["lines"])


def trained(run: Path, until: int, *, resume: bool) -> tuple[float, int, int]:
    torch.manual_seed(3)
    side = int((3 * BLOCK_BYTES / 4) ** 0.5)
    model = torch.nn.Linear(side, side)
    optimizer, notes = torch.optim.AdamW(model.parameters()), Notes()
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "notes": notes}
    with Checkpointer(run, **parts, save_steps=3, resume="auto" if resume else False, say=lambda line: None) as ckpt:
        for _ in range(ckpt.resume(), until):
            model(torch.randn(4, side)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            notes.lines.append("x" * BLOCK_BYTES)
            ckpt.step()
    return sum(weight.double().sum().item() for weight in model.parameters()), side, len(notes.lines)


def reads_ranges(root: Path) -> None:
    """Each of three ranks reads and proves its range of what two wrote; damage elsewhere is none of its business."""
    root.mkdir()
    tensor = torch.arange(12 * (BLOCK_BYTES // 4) // 8 * 8, dtype=torch.float32).reshape(12, -1)
    checkpoint = committed(root, [("model", {"w": tensor}, Stored({}, {"kind": "model"}))], {"w": (2, 1)}, 2)
    manifest = good(checkpoint)
    last = checkpoint / "model-00001-of-00002.safetensors"
    for rank, rows in enumerate(ranges(checkpoint, manifest)):
        assert torch.equal(rows, tensor[4 * rank : 4 * rank + 4])
    with last.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    each = ranges(checkpoint, manifest)
    assert torch.equal(next(each), tensor[:4]) and torch.equal(next(each), tensor[4:8])
    with pytest.raises(DamagedCheckpointError, match=f"{last.name}: its bytes have changed"):
        next(each)


def good(checkpoint: Path) -> Manifest:
    report = verify(checkpoint)
    assert report.good and report.entry.manifest is not None
    return report.entry.manifest


def ranges(checkpoint: Path, manifest: Manifest) -> Iterator[torch.Tensor]:
    for rank in range(3):
        with Folder.open(checkpoint) as folder:
            reading = native_reading.NativeReading(
                folder,
                manifest.files,
                manifest.tensors,
                rank=rank,
                places=lambda _, __, shape, rank=rank: place(shape, (3, 1), rank),  # type: ignore[misc]
            )
            reading.read()
        yield reading.stored["model"].tensors["w"]
