"""Parts of a state on their way to a directory in the native layout, and back."""

from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from holdfast.layouts import native, native_reading
from holdfast.layouts.image import Image
from holdfast.state.part import Part, Stored
from holdfast.store import digest
from holdfast.store.folder import Folder
from holdfast.store.manifest import File


def content(image: Image) -> bytes:
    """The bytes of a file to be, as the engine writes them."""
    return b"".join(piece if isinstance(piece, bytes) else raw(piece) for piece in image.pieces)


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor's elements, in the order of its indices."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().tobytes()


def save(parts: Sequence[Part], directory: Path) -> dict[str, Stored]:
    """Writes parts as they are now, and reads them back."""
    recorded = [part.record() for part in parts]
    return save_recorded(parts, recorded, directory)


def save_recorded(parts: Sequence[Part], recorded: Sequence[Any], directory: Path) -> dict[str, Stored]:
    """Writes parts as they were recorded, and reads them back."""
    directory.mkdir(exist_ok=True)
    states = [(part.name, part.live(), part.encode(record)) for part, record in zip(parts, recorded, strict=True)]
    for image in native.images(states, {}):
        (directory / image.path).write_bytes(content(image))
        assert (directory / image.path).stat().st_size == image.size
    return read(directory)[0]


def read(
    directory: Path,
    paths: Iterable[str] | None = None,
    *,
    tensors: native.Tensors | None = None,
    through_cache: bool = False,
    **what: Any,
) -> tuple[dict[str, Stored], dict[str, Any]]:
    """Reads files of the native layout, those that are named or all, whatever has become of them since."""
    listed_paths = [path.name for path in directory.iterdir()] if paths is None else paths
    files = [listed(directory, path) for path in listed_paths]
    with Folder.open(directory) as folder:
        reading = native_reading.NativeReading(folder, files, tensors or {}, **what)
        reading.read(through_cache=through_cache)
    return reading.stored, reading.extra


def listed(directory: Path, path: str) -> File:
    """Returns what a manifest would say of a file as it is now."""
    data = (directory / path).read_bytes() if (directory / path).is_file() else b""
    return File(path, len(data), digests_of(data))


def digests_of(data: bytes) -> str:
    """The digests that a file of these bytes has."""
    return digest.of_bytes(data)


def move(old: Sequence[Part], new: Iterable[Part], directory: Path) -> list[str]:
    """Takes the state of some parts over into others, through files."""
    stored = save(old, directory)
    new = list(new)
    assert [problem for part in new for problem in part.problems(stored[part.name])] == []
    return [note for part in new for note in part.restore(stored[part.name], strict=True)]


def same(value: Any, other: Any) -> bool:
    """Tells if two values are the same to the last bit, types included."""
    if type(value) is not type(other) and not (isinstance(value, dict) and isinstance(other, dict)):
        return False
    if isinstance(value, torch.Tensor):
        if (value.dtype, value.shape, value.layout, value.device) != (
            other.dtype,
            other.shape,
            other.layout,
            other.device,
        ):
            return False
        value, other = (t.to_dense() if t.layout != torch.strided else t for t in (value, other))
        return raw(value) == raw(other)
    if isinstance(value, dict):
        return list(value) == list(other) and all(same(value[key], other[key]) for key in value)
    if isinstance(value, list | tuple | deque):
        return len(value) == len(other) and all(map(same, value, other))
    if isinstance(value, float | complex):
        return repr(value) == repr(other)
    return bool(value == other)
