"""The weights of a checkpoint, of either layout, left in another directory for anything that loads a model."""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from holdfast.errors import DamagedCheckpointError, UnsupportedError
from holdfast.layouts import transformers
from holdfast.layouts.image import read_json
from holdfast.layouts.pieces import assemble
from holdfast.layouts.safetensors import writing as tensor_file
from holdfast.layouts.safetensors.reading import opened
from holdfast.state.part import SIDECAR_PREFIX
from holdfast.store import files, names
from holdfast.store.manifest import Manifest
from holdfast.store.verify import verify

if TYPE_CHECKING:
    import torch


_TENSORS = ".safetensors"
_BLOCK_BYTES = 16 << 20


def export(checkpoint: Path, target: Path) -> list[Path]:
    """Leaves the weights of a checkpoint in another directory.

    Args:
        checkpoint: The checkpoint; it is verified first.
        target: Where they go. It is made if it is missing; nothing in it is replaced.

    Returns:
        The files that were written.

    Raises:
        DamagedCheckpointError: It is not what was written.
        UnsupportedError: The target has files of the same names, or the checkpoint holds no weights.
    """
    report = verify(checkpoint)
    manifest = report.entry.manifest
    if manifest is None or not report.good:
        raise DamagedCheckpointError(
            f"{checkpoint} cannot be exported: {'; '.join(report.problems)}", list(report.problems)
        )
    target.mkdir(parents=True, exist_ok=True)
    # First under a name of its own, so that a file of the target is there whole or not at all.
    staging = target / names.staging(manifest.run, manifest.step, uuid4().hex)
    files.make_directory(staging)
    try:
        if manifest.layout == transformers.NAME:
            copy_model(checkpoint, staging)
            for name in report.unlisted:
                (staging / name).unlink(missing_ok=True)
        else:
            _leave_models(checkpoint, manifest, staging)
        return _moved(staging, target)
    finally:
        files.remove_tree(staging)


def _leave_models(checkpoint: Path, manifest: Manifest, staging: Path) -> None:
    """Leaves one file for each model, as one process would have written it."""
    listed = {file.path for file in manifest.files}
    for path in sorted(listed):
        part = path.removesuffix(".json")
        if part == path or "/" in path or not _is_model(checkpoint / path):
            continue
        own = {
            name: told for name, told in manifest.tensors.get(part, {}).items() if not name.startswith(SIDECAR_PREFIX)
        }
        if own:
            _put_together(checkpoint, own, staging / (part + _TENSORS))
        elif part not in manifest.tensors and part + _TENSORS in listed:
            files.copy(checkpoint / (part + _TENSORS), staging / (part + _TENSORS))


def _put_together(checkpoint: Path, told: Mapping[str, Mapping[str, Any]], target: Path) -> None:
    """Writes a file from the pieces of its tensors, of which one at a time is in memory."""
    import torch

    with opened(checkpoint / next(iter(told.values()))["pieces"][0]["file"]) as first:
        aliases = {name: kept for name, kept in sorted(first.metadata.items()) if name != "format"}
    whole = {name: one for name, one in told.items() if len(one["pieces"]) == 1}
    cut = {name: one for name, one in told.items() if name not in whole}
    tensors = assemble(checkpoint, whole, lambda *_: None)  # these stay in their files
    for name, one in cut.items():
        tensors[name] = _stand_in(checkpoint, name, one)
    head, plain = tensor_file.arranged(target.name, {name: tensors[name] for name in told}, {**aliases, "format": "pt"})
    with ExitStack() as opening:
        fd = files.open_new(target)
        opening.callback(os.close, fd)
        files.write_all(fd, head)
        for name, tensor in plain.items():
            if name in cut:
                together = assemble(checkpoint, {name: cut[name]}, lambda *_: None)
                tensor = tensor_file.arranged(target.name, together)[1][name]
            data = tensor.contiguous().reshape(-1).view(torch.uint8)
            for at in range(0, len(data), _BLOCK_BYTES):
                files.write_all(fd, data[at : at + _BLOCK_BYTES].numpy().tobytes())
        os.fsync(fd)


def _stand_in(checkpoint: Path, name: str, told: Mapping[str, Any]) -> "torch.Tensor":
    """A tensor of the shape and dtype of one that is cut up, and of no memory."""
    piece = told["pieces"][0]
    with opened(checkpoint / piece["file"]) as source:
        one = source.take(name, [0] * len(piece["lengths"]), [1] * len(piece["lengths"]))
    return one.expand(told["shape"])


def _is_model(path: Path) -> bool:
    rest = read_json(path)
    return isinstance(rest, dict) and rest.get("kind") == "model"


def _moved(staging: Path, target: Path) -> list[Path]:
    found = [path.relative_to(staging) for path in sorted(staging.rglob("*")) if path.is_file()]
    if not found:
        raise UnsupportedError("the checkpoint holds no model whose weights could be exported")
    if taken := [str(path) for path in found if os.path.lexists(target / path)]:
        raise UnsupportedError(
            f"{target} has {', '.join(taken)} already, and nothing is overwritten",
            hint="give a directory of its own, or remove what is there",
        )
    for path in found:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        files.rename_new(staging / path, target / path)
    for folder in sorted({(target / path).parent for path in found}, reverse=True):
        files.sync_directory(folder)
    return [target / path for path in found]


# What is of use to the training alone.
_TRAINING = ("optimizer.pt", "scheduler.pt", "scaler.pt", "trainer_state.json", "training_args.bin", names.MANIFEST)


def copy_model(source: Path, target: Path) -> None:
    """Copies the model's files from a checkpoint, each by write and rename, so that none is ever half there.

    Args:
        source: A directory in the transformers layout.
        target: An existing directory. Files of the same names are replaced, others left alone.
    """
    folders = {target}
    for path in sorted(source.rglob("*")):
        if path.is_file() and path.name not in _TRAINING and not path.name.startswith("rng_state"):
            destination = target / path.relative_to(source)
            destination.parent.mkdir(parents=True, exist_ok=True)
            files.copy(path, destination)
            folders.add(destination.parent)
    for folder in sorted(folders, reverse=True):
        files.sync_directory(folder)
