"""No pickle in the native layout; in the transformers layout none that runs anything."""

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.loops import train
from helpers.tampering import with_intent
from helpers.trainings import Training
from holdfast.layouts import native
from holdfast.store.manifest import decode

# What begins a pickle of protocols 2 to 5, and a zip, which torch puts one into.
_BEGINNINGS = (*(bytes([0x80, protocol]) for protocol in range(2, 6)), b"PK\x03\x04")


def test_security_s01_every_byte_of_the_native_layout_is_json_or_named_tensors(tmp_path: Path) -> None:
    """Nothing: a loop with everything that has state is saved, and each file is read for what it is."""
    train(tmp_path, 2, save_steps=2)
    (path,) = tmp_path.glob("checkpoint-*")
    found = sorted(one for one in path.rglob("*") if one.is_file())
    assert {one.suffix for one in found} == {".json", ".safetensors"}
    for one in found:
        data = one.read_bytes()
        assert not data.startswith(_BEGINNINGS)
        if one.suffix == ".json":
            json.loads(data)
            continue
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        ends = [told["data_offsets"][1] for name, told in header.items() if name != "__metadata__"]
        assert 8 + length + max(ends) == len(data), f"{one.name} has bytes that belong to no tensor"


_watched: list[str] | None = None


def _watch(event: str, _: tuple[Any, ...]) -> None:
    if _watched is not None and event.startswith(("pickle.", "marshal.")):
        _watched.append(event)


sys.addaudithook(_watch)


def test_security_s01_a_resume_of_the_native_layout_unpickles_nothing(tmp_path: Path) -> None:
    """An audit hook of the interpreter, which sees each look-up of a pickle, during a whole resume."""
    global _watched
    train(tmp_path, 2, save_steps=2)
    pickle.loads(pickle.dumps(Path()))
    _watched = []
    try:
        resumed = train(tmp_path, 4, resume="auto")
        seen = list(_watched)
        pickle.loads(pickle.dumps(Path()))
        assert _watched, "the hook sees nothing"
    finally:
        _watched = None
    assert seen == [] and any("resumed from" in line for line in resumed.said)


class Payload:
    """What makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self._folder,)


def test_security_s01_a_pickle_that_would_run_something_is_refused_however_well_its_manifest_fits(
    training: Training, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """A payload in the files that torch reads, with a manifest that was made to fit, and with none."""
    assert training.start(max_steps=2, save_strategy="steps", save_steps=2).wait() == 0
    run, made = training.run / "checkpoint-2", tmp_path / "made"
    payload = tmp_path / "payload"
    torch.save({"state": Payload(made)}, payload)
    with pytest.raises(FileExistsError):
        made.mkdir()
        torch.load(payload, weights_only=False)
    made.rmdir()
    cases = [("optimizer.pt", True), ("rng_state.pth", False)]
    if os.environ.get("HOLDFAST_FAULTS") == "1":
        cases += [("scheduler.pt", True), ("rng_state.pth", True), ("optimizer.pt", False), ("scheduler.pt", False)]
    for number, (name, with_manifest) in enumerate(cases):
        copy = training.folder / f"case-{number}" / "checkpoint-2"
        shutil.copytree(run, copy)
        with_intent(copy, name, payload.read_bytes())
        if not with_manifest:
            (copy / "MANIFEST.json").unlink()
        process = training.start("--resume", str(copy), max_steps=4, output_dir=f"other-{number}")
        assert process.wait() == 3, process.output
        assert f"{name}: holds posix.mkdir, and is not loaded" in process.output
        assert "Traceback" not in process.output
        assert not made.exists(), f"{name} ran something"
    record_property("injected", len(cases))


def test_security_s01_a_pickle_beside_the_native_layout_is_never_opened(tmp_path: Path) -> None:
    """A FIFO, which would be waited for, and a payload, under the names that torch's programs use."""
    train(tmp_path, 2, save_steps=2)
    (path,) = tmp_path.glob("checkpoint-*")
    os.mkfifo(path / "model.pt")
    (path / "optimizer.pt").write_bytes(pickle.dumps(Payload(tmp_path / "made")))
    resumed = train(tmp_path, 4, resume="auto")
    assert any("resumed from" in line for line in resumed.said)
    assert any("optimizer.pt: not in the manifest, and never read" in line for line in resumed.said)
    assert not (tmp_path / "made").exists()
    assert decode((path / "MANIFEST.json").read_bytes()).layout == native.NAME
