"""The native layout: tensor files and JSON, one set for each part of the state. Format: `docs/format.md`."""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from holdfast.capture.state import ASIDE, RESERVED, Stored
from holdfast.errors import DamagedCheckpointError, UnsupportedError
from holdfast.layouts import json_file, tensor_file, transformers
from holdfast.layouts.model_copy import copy_model
from holdfast.layouts.tensor_file import Image
from holdfast.store import files as disk
from holdfast.store import names
from holdfast.store.verify import verify

if TYPE_CHECKING:
    import torch

NAME = "native"

REQUIRED = ("training.json", "random.json")

_TENSORS = ".safetensors"
_ASIDE = ".aside.safetensors"
_REST = ".json"


def images(parts: Sequence[tuple[str, Mapping[str, "torch.Tensor"], Stored]], extra: Mapping[str, Any]) -> list[Image]:
    """The files of a checkpoint to be. No tensor is copied.

    Args:
        parts: The name of each part, its live tensors, and what was encoded of it.
        extra: What belongs to no part, as JSON, by the names of `state.RESERVED`.

    Raises:
        UnsupportedError: Something is of a kind, or a size, that cannot be written.
    """
    found = []
    for name, live, stored in parts:
        tensors = {**live, **stored.tensors}
        own = {key: tensor for key, tensor in tensors.items() if not key.startswith(ASIDE)}
        aside = {key.removeprefix(ASIDE): tensor for key, tensor in tensors.items() if key.startswith(ASIDE)}
        if own:
            # safetensors' own name for it, and how its `save_model` tells of tied weights.
            metadata = {**stored.aliases, "format": "pt"}
            found.append(tensor_file.image(name + _TENSORS, own, metadata))
        if aside:
            found.append(tensor_file.image(name + _ASIDE, aside))
        found.append(json_file.image(name + _REST, stored.rest))
    return [*found, *(json_file.image(name + _REST, content) for name, content in extra.items())]


def read(directory: Path, files: Collection[str] | None = None) -> tuple[dict[str, Stored], dict[str, Any]]:
    """Reads the files of `images` back.

    Args:
        directory: The checkpoint.
        files: The paths that its manifest lists; no other is read. None: all that are there.

    Returns:
        What it holds of each part, and what belongs to none. Tensors are the files' memory.

    Raises:
        CheckpointError: A file is not what the layout says.
    """
    listed = set(files) if files is not None else {path.name for path in directory.iterdir()}
    content = {
        path.removesuffix(_REST): json_file.read(directory / path)
        for path in sorted(listed)
        if path.endswith(_REST) and "/" not in path and path != names.MANIFEST
    }
    extra = {name: content.pop(name) for name in RESERVED if name in content}
    return {name: _read_part(directory, name, rest, listed) for name, rest in content.items()}, extra


def missing(found: Iterable[str]) -> list[str]:
    """What a checkpoint lacks that it must have to be resumed from.

    Args:
        found: The paths of its files.
    """
    there = set(found)
    return [name for name in REQUIRED if name not in there]


def export(checkpoint: Path, target: Path) -> list[Path]:
    """Leaves the weights of a checkpoint, of either layout, in another directory, for anything that loads a model.

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
    disk.make_directory(staging)
    try:
        if manifest.layout == transformers.NAME:
            copy_model(checkpoint, staging)
            for name in report.unlisted:
                (staging / name).unlink(missing_ok=True)
        else:
            for name in _models(checkpoint, [file.path for file in manifest.files]):
                disk.copy(checkpoint / name, staging / name)
        return _moved(staging, target)
    finally:
        disk.remove_tree(staging)


def _models(directory: Path, files: Collection[str]) -> list[str]:
    """The files that hold a model's weights."""
    found = [path.removesuffix(_TENSORS) for path in sorted(files) if path.endswith(_TENSORS) and "/" not in path]
    return [name + _TENSORS for name in found if name + _REST in files and _is_model(directory / (name + _REST))]


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
        disk.rename_new(staging / path, target / path)
    for folder in sorted({(target / path).parent for path in found}, reverse=True):
        disk.sync_directory(folder)
    return [target / path for path in found]


def _read_part(directory: Path, name: str, rest: Any, listed: Collection[str]) -> Stored:
    tensors: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    if name + _TENSORS in listed:
        tensors, aliases = tensor_file.read(directory / (name + _TENSORS))
        aliases.pop("format", None)
    if name + _ASIDE in listed:
        aside, _ = tensor_file.read(directory / (name + _ASIDE))
        tensors |= {ASIDE + key: tensor for key, tensor in aside.items()}
    return Stored(tensors, rest, aliases)


def _is_model(path: Path) -> bool:
    rest = json_file.read(path)
    return isinstance(rest, dict) and rest.get("kind") == "model"
