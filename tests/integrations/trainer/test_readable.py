"""A checkpoint's small files as somebody with intent has made them, and what a resume says of them."""

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.small_trainer import small_trainer, train
from helpers.tampering import with_intent
from holdfast import attach
from holdfast.errors import CheckpointError, DamagedCheckpointError, HoldfastError
from holdfast.integrations.trainer.readable import explaining, require_readable_files
from holdfast.resume.choose import ResumePoint
from holdfast.store.folder import Folder

SCALER = {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 0}


class Payload:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("made",)


def saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def state(**changes: Any) -> bytes:
    fields = {"global_step": 2, "max_steps": 2, "num_train_epochs": 1, "epoch": 0.4, "log_history": []}
    return json.dumps({**fields, **changes}).encode()


LIES: dict[str, tuple[str, bytes, str]] = {
    **{
        f"a payload in {name}": (name, saved({"state": Payload()}), f"{name}: holds posix.mkdir, and is not loaded")
        for name in ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth")
    },
    "no pickle": ("scheduler.pt", b"no pickle", "scheduler.pt: holds nothing that torch can load"),
    "an empty file": ("rng_state.pth", b"", "rng_state.pth: holds nothing that torch can load"),
    "a list": ("optimizer.pt", saved([1]), "optimizer.pt: holds 'list', and no dictionary"),
    "an empty optimizer": ("optimizer.pt", saved({}), "its optimizer.pt or scheduler.pt cannot be loaded into"),
    "groups that are none": ("optimizer.pt", saved({"state": {}, "param_groups": [1]}), "its optimizer.pt cannot be"),
    "a schedule of text": ("scheduler.pt", saved({"last_epoch": "x"}), "scheduler.pt: has 'x' as the number of its"),
    "an empty schedule": ("scheduler.pt", saved({}), "its optimizer.pt or scheduler.pt cannot be loaded into"),
    "other generators": ("rng_state.pth", saved({"python": 1}), "its random state cannot be loaded into"),
    "a scaler too many": ("scaler.pt", saved(SCALER), "scaler: the checkpoint has the scaler of a training in fp16"),
    "a deep state": ("trainer_state.json", b'{"a":' * 5000, "trainer_state.json: is not valid JSON: it is nested too"),
    "a state in UTF-16": ("trainer_state.json", "{}".encode("utf-16"), "trainer_state.json: is not valid JSON: "),
    "a state of NUL": ("trainer_state.json", b"\0" * 9, "trainer_state.json: is not valid JSON: "),
    "a state that is a list": ("trainer_state.json", b"[]", "trainer_state.json: is no JSON object"),
    "a field too many": ("trainer_state.json", state(evil=1), "has the field 'evil', which this version of"),
    "a step in text": ("trainer_state.json", state(global_step="x"), "has 'x' as its global_step"),
    "a step of 10^18": ("trainer_state.json", state(global_step=10**18), "has 1000000000000000000 as its global_step"),
    "an endless epoch": ("trainer_state.json", state(epoch=float("nan")), "has nan as its epoch"),
    "a history of numbers": ("trainer_state.json", state(log_history=[5]), "has a log_history that is no list of"),
    "callbacks that are none": ("trainer_state.json", state(stateful_callbacks=[1]), "has stateful_callbacks that are"),
    "a deep configuration": ("config.json", b'{"a":' * 5000, "config.json: it is nested too deep"),
    "weights in UTF-16": ("model.safetensors", (4).to_bytes(8, "little") + b"{\0}\0", "its header is not valid JSON"),
    "weights that are none": ("model.safetensors", b"weights", "model.safetensors is no file of tensors: "),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("readable")
    train(out, max_steps=2, save_steps=2)
    return out / "checkpoint-2"


def test_security_s32_files_that_a_trainer_cannot_read_are_named_in_words(
    tmp_path: Path, source: Path, record_property: Callable[[str, object], None]
) -> None:
    """Pickles, JSON and headers that are none, or hold other things, with a manifest that fits, and some without."""
    for number, (lie, (name, data, said)) in enumerate(LIES.items()):
        path = tmp_path / str(number) / "checkpoint-2"
        shutil.copytree(source, path)
        with_intent(path, name, data)
        if number % 3 == 0:
            (path / "MANIFEST.json").unlink()
        trainer = attach(small_trainer(tmp_path / "out", max_steps=4))
        with pytest.raises(HoldfastError) as raised:
            trainer.train(resume_from_checkpoint=str(path))
        assert said in str(raised.value) and str(path) in str(raised.value), f"{lie}: {raised.value}"
        assert "/proc/" not in str(raised.value) and len(str(raised.value)) < 600
    assert not Path("made").exists()
    record_property("injected", len(LIES))


def test_a_state_of_another_step_than_its_manifest_is_refused(tmp_path: Path, source: Path) -> None:
    path = tmp_path / "checkpoint-2"
    shutil.copytree(source, path)
    with_intent(path, "trainer_state.json", state(global_step=1))
    with pytest.raises(DamagedCheckpointError, match="is of step 1, the manifest of 2"):
        attach(small_trainer(tmp_path / "out", max_steps=4)).train(resume_from_checkpoint=str(path))


def test_a_scaler_is_left_out_where_the_user_takes_what_fits(tmp_path: Path, source: Path) -> None:
    path = tmp_path / "checkpoint-2"
    shutil.copytree(source, path)
    with_intent(path, "scaler.pt", saved(SCALER))
    trainer = attach(small_trainer(tmp_path / "out", max_steps=3), strict=False)
    trainer.train(resume_from_checkpoint=str(path))
    assert trainer.state.global_step == 3 and "_load_scaler" not in vars(trainer)


def test_security_s24_an_index_without_a_manifest_names_no_file_outside_either(tmp_path: Path, source: Path) -> None:
    """An index of weights in a checkpoint of plain transformers, which leads out of it."""
    path = tmp_path / "checkpoint-2"
    shutil.copytree(source, path, ignore=shutil.ignore_patterns("MANIFEST.json", "model.safetensors"))
    (path / "model.safetensors.index.json").write_text('{"weight_map": {"line.weight": "../evil.safetensors"}}')
    with pytest.raises(DamagedCheckpointError, match=r"names '\.\./evil\.safetensors', which is no file"):
        attach(small_trainer(tmp_path / "out", max_steps=3)).train(resume_from_checkpoint=str(path))


def test_security_s24_an_adapter_that_the_model_lacks_is_not_made_as_its_files_say(tmp_path: Path) -> None:
    """A folder of an adapter more than the model has, whose configuration peft would follow."""
    trainer = small_trainer(tmp_path / "out")
    trainer.model.peft_config = {"default": None}
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="holds the adapter 'evil', which this model does not have"):
        require_readable_files(trainer, ResumePoint(Folder.open(tmp_path), None))


def test_what_a_trainer_writes_of_long_or_endless_training_is_read(tmp_path: Path) -> None:
    """Streams have as many epochs as there are numbers; some configurations hold infinity."""
    (tmp_path / "trainer_state.json").write_bytes(state(num_train_epochs=2**63 - 1, best_metric=float("nan")))
    (tmp_path / "config.json").write_text('{"time_step_limit": [0.0, Infinity]}')
    require_readable_files(small_trainer(tmp_path / "out"), ResumePoint(Folder.open(tmp_path), None))


def test_memory_that_runs_out_while_it_is_loaded_is_no_fault_of_the_checkpoint() -> None:
    def load(path: str) -> None:
        raise torch.OutOfMemoryError(path)

    with pytest.raises(torch.OutOfMemoryError):
        explaining(load, "its weights")("here")
