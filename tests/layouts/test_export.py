import os
from pathlib import Path
from typing import Any

import pytest

from helpers.support import NO_TENSORS, RESUMABLE, commit_checkpoint, content_of, dies_at, holdfast, succeeds_in_child
from holdfast.errors import DamagedCheckpointError
from holdfast.layouts import transformers
from holdfast.store import catalog
from holdfast.store.folder import Folder, files_below

MODEL = {
    "model.safetensors": NO_TENSORS,
    "config.json": b"{}",
    "generation_config.json": b"{}",
    "tokenizer.json": b"{}",
    "second/adapter_model.safetensors": NO_TENSORS,
}
TRAINING = {**RESUMABLE, "scaler.pt": b"s", "training_args.bin": b"a", "rng_state_1.pth": b"r"}


def copy_model(source: Path, target: Path) -> None:
    with Folder.open(source) as origin, Folder.open(target) as into:
        transformers.copy_model(origin, into, files_below(origin))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return commit_checkpoint(tmp_path, 7, {**TRAINING, **MODEL})


@pytest.fixture
def target(tmp_path: Path) -> Path:
    made = tmp_path / "target"
    made.mkdir()
    return made


def test_what_loads_the_model_is_copied_and_what_only_training_needs_is_not(checkpoint: Path, target: Path) -> None:
    copy_model(checkpoint, target)
    assert content_of(target) == MODEL


def test_files_of_the_same_names_are_replaced_and_others_left_alone(checkpoint: Path, target: Path) -> None:
    (target / "model.safetensors").write_bytes(b"older and longer weights")
    (target / "events.jsonl").write_bytes(b"mine")
    copy_model(checkpoint, target)
    copy_model(checkpoint, target)
    assert content_of(target) == {**MODEL, "events.jsonl": b"mine"}


def test_the_checkpoint_is_not_touched_and_shares_nothing_with_the_copy(checkpoint: Path, target: Path) -> None:
    before = {path: path.stat() for path in checkpoint.rglob("*")}
    copy_model(checkpoint, target)
    (target / "model.safetensors").write_bytes(b"overwritten in place")
    assert {path: path.stat().st_mtime_ns for path in before} == {p: s.st_mtime_ns for p, s in before.items()}
    assert all(path.stat().st_nlink == found.st_nlink for path, found in before.items())
    assert (checkpoint / "model.safetensors").read_bytes() == NO_TENSORS


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_written_through(checkpoint: Path, target: Path) -> None:
    (target.parent / "precious").write_bytes(b"precious")
    (target / "config.json").symlink_to("../precious")
    copy_model(checkpoint, target)
    assert (target.parent / "precious").read_bytes() == b"precious" and not (target / "config.json").is_symlink()


def test_the_model_of_a_save_is_taken_from_what_was_saved_and_from_nothing_else(checkpoint: Path, target: Path) -> None:
    manifest = catalog.read(checkpoint).manifest
    assert manifest is not None
    (checkpoint / "stranger.safetensors").write_bytes(b"which no manifest lists")
    with Folder.open(target) as into:
        transformers.copy_saved_model(checkpoint, manifest.sha256, into)
        assert content_of(target) == MODEL
        checkpoint.rename(checkpoint.with_name("aside"))
        commit_checkpoint(checkpoint.parent, 7, {**TRAINING, "model.safetensors": b"another"})
        with pytest.raises(DamagedCheckpointError, match="is not what was saved there: somebody has exchanged it"):
            transformers.copy_saved_model(checkpoint, manifest.sha256, into)
    assert content_of(target) == MODEL


def test_a_folder_of_the_target_that_is_a_link_is_not_followed(checkpoint: Path, target: Path) -> None:
    elsewhere = target.with_name("elsewhere")
    elsewhere.mkdir()
    (target / "second").symlink_to(elsewhere)
    with pytest.raises(OSError, match="second"):
        copy_model(checkpoint, target)
    assert not list(elsewhere.iterdir())


def test_a_crash_at_any_change_leaves_every_file_whole_old_or_new(checkpoint: Path, tmp_path: Path) -> None:
    old = dict.fromkeys(MODEL, b"old")
    for count in range(1, 200):
        target = tmp_path / str(count)
        for name, data in old.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(data)
        died = dies_at(count, lambda target=target: copy_model(checkpoint, target))  # type: ignore[misc]
        left = {name: data for name, data in content_of(target).items() if not name.endswith(".new")}
        assert left.keys() == MODEL.keys() and all(left[name] in (old[name], MODEL[name]) for name in left)
        if not died:
            assert left == MODEL and count > 15
            return
    raise AssertionError("copying has no end")


def test_every_directory_that_got_a_name_is_synced(checkpoint: Path, target: Path) -> None:
    reading, writing = os.pipe()

    def copy_and_tell() -> bool:
        real = os.fsync

        def fsync(fd: Any) -> None:
            os.write(writing, os.readlink(f"/proc/self/fd/{fd}").encode() + b"\n")  # noqa: PTH115
            real(fd)

        os.fsync = fsync
        copy_model(checkpoint, target)
        return True

    assert succeeds_in_child(copy_and_tell)
    os.close(writing)
    with os.fdopen(reading) as told:
        synced = [Path(line.rstrip("\n")) for line in told]
    assert {target, target / "second"} <= set(synced)
    assert synced.index(target) > max(place for place, path in enumerate(synced) if path.suffix == ".new")


@pytest.mark.parametrize("layout", ["transformers", "native"])
def test_security_s32_weights_that_are_none_are_not_exported(tmp_path: Path, layout: str) -> None:
    """A file of tensors whose header is in UTF-16; its manifest fits it."""
    utf16 = (4).to_bytes(8, "little") + b"{\0}\0"
    path = commit_checkpoint(tmp_path, 7, {"model.safetensors": utf16, "model.json": b"{}"}, layout=layout)
    ended = holdfast("export", path, tmp_path / "target")
    assert ended.returncode == 3 and "model.safetensors: its header is not valid JSON" in ended.stderr
    assert not (tmp_path / "target").exists()


def test_security_s32_json_that_is_none_is_damage_to_verify_and_export(tmp_path: Path) -> None:
    """JSON of a plain loop's checkpoint that is too deep, in UTF-16, or no object; its manifest fits it."""
    for step, data in enumerate((b'{"a":' * 5000, "{}".encode("utf-16"), b"[]")):
        path = commit_checkpoint(tmp_path, step, {"model.safetensors": NO_TENSORS, "model.json": data}, layout="native")
        for ended in (holdfast("verify", path), holdfast("export", path, tmp_path / "target")):
            assert ended.returncode == 3 and "model.json" in ended.stdout + ended.stderr
    assert not (tmp_path / "target").exists()
