"""The weights of a checkpoint in the native layout: one file for each model, as one process would have written it."""

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from holdfast.errors import UnsupportedError
from holdfast.layouts.image import read_json
from holdfast.layouts.native import REST, TENSORS
from holdfast.layouts.ownership import note_of
from holdfast.layouts.pieces import PiecesReader
from holdfast.layouts.safetensors.reading import bytes_of
from holdfast.layouts.safetensors.writing import arranged
from holdfast.state.part import SIDECAR_PREFIX
from holdfast.state.sharding import ShardRange
from holdfast.store import files
from holdfast.store.folder import Folder, Place
from holdfast.store.manifest import Manifest
from holdfast.store.verify import Report

if TYPE_CHECKING:
    import torch

# Small tensors share blocks, which are read and digested whole: so many bytes of tensors are read together.
_TOGETHER_BYTES = 64 << 20


def leave_weights(report: Report, checkpoint: Folder, target: Folder) -> None:
    """Writes the weights of all models of a checkpoint into another directory, and of a Lightning training a `.ckpt`.

    Args:
        report: The checkpoint, verified and good.
        checkpoint: It, open.
        target: The directory, open; nothing in it has the name of a model's file.

    Raises:
        DamagedCheckpointError: A file was changed since.
        UnsupportedError: The ranks that saved it had weights of their own.
    """
    manifest = report.entry.manifest
    assert manifest is not None
    listed = {file.path for file in manifest.files}
    for path in sorted(listed):
        part = path.removesuffix(REST)
        if part == path or "/" in path or not _is_model(rest := read_json(checkpoint / path)):
            continue
        _refuse_own(checkpoint, manifest, part, rest)
        entries = {
            name: entry for name, entry in manifest.tensors.get(part, {}).items() if not name.startswith(SIDECAR_PREFIX)
        }
        if entries:
            _join(checkpoint, manifest, entries, target / (part + TENSORS))
        elif part not in manifest.tensors and part + TENSORS in listed:
            files.copy(checkpoint / (part + TENSORS), target / (part + TENSORS))
    # It loads torch, for which verbs that export nothing do not wait.
    from holdfast.layouts import lightning_ckpt

    if lightning_ckpt.is_of_lightning(checkpoint, manifest):
        lightning_ckpt.leave(checkpoint, manifest, target)


def _join(checkpoint: Folder, manifest: Manifest, entries: Mapping[str, Mapping[str, Any]], target: Place) -> None:
    """Writes a file from the pieces of its tensors, of which few at a time are in memory."""
    reader = PiecesReader(checkpoint, {file.path: file for file in manifest.files})
    stand_ins = {name: _stand_in(reader, name, entry) for name, entry in entries.items()}
    # Each of the files says all aliases.
    metadata = reader.file(next(iter(entries.values()))["pieces"][0]["file"]).metadata
    aliases = {name: first for name, first in sorted(metadata.items()) if name != "format"}
    head, plain = arranged(target.name, stand_ins, {**aliases, "format": "pt"})
    fd = files.open_new(target)
    try:
        files.write_all(fd, head)
        for together in _in_turns(plain):
            tensors = {
                name: reader.plan(reader.want(name, entries[name]["pieces"], ShardRange.whole(entries[name]["shape"])))
                for name in together
                if name in entries
            }
            reader.read()
            for name, tensor in together.items():
                if name in tensors:
                    tensor = arranged(target.name, {name: tensors.pop(name)})[1][name]
                files.write_all(fd, bytes_of(tensor.contiguous()) if tensor.nbytes else b"")
                del tensor  # not beside those of the next turn
        os.fsync(fd)
    finally:
        os.close(fd)


def _stand_in(reader: PiecesReader, name: str, entry: Mapping[str, Any]) -> "torch.Tensor":
    """Returns a tensor of the whole shape and the dtype, and of no memory; a sparse one, which was read, as it is."""
    import torch

    file = reader.file(entry["pieces"][0]["file"])
    if name in file.sparse:
        return file.sparse[name]
    return torch.empty((), dtype=file.dense[name].dtype).expand(entry["shape"])


def _in_turns(tensors: Mapping[str, "torch.Tensor"]) -> Iterator[dict[str, "torch.Tensor"]]:
    """Yields the tensors in their order, few at a time."""
    together: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if together and size + tensor.nbytes > _TOGETHER_BYTES:
            yield together
            together, size = {}, 0
        together[name] = tensor
        size += tensor.nbytes
    yield together


def _is_model(rest: Any) -> bool:
    return isinstance(rest, dict) and rest.get("kind") == "model"


def _refuse_own(checkpoint: Folder, manifest: Manifest, part: str, rest: Any) -> None:
    """Refuses a model of which there is not one.

    Raises:
        UnsupportedError: The ranks that saved it had weights of their own.
    """
    if own := note_of(part, rest).tensors:
        what = f"{own[0]!r} and {len(own) - 1} more of its tensors differ" if len(own) > 1 else f"{own[0]!r} differs"
        raise UnsupportedError(
            f"{checkpoint} holds no one {part}: {what} between the {manifest.world_size} ranks that saved it",
            hint=f"resume it with {manifest.world_size} processes, and save there what you need",
        )
