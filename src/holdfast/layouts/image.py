"""The files of a checkpoint to be, and its JSON read back, which may have been written by anybody."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.errors import CheckpointError, DamagedCheckpointError, UnsupportedError
from holdfast.store import files
from holdfast.store.folder import Where, path_of
from holdfast.store.manifest import is_deep, strict_json

if TYPE_CHECKING:
    import torch

MOST_JSON_BYTES = 256 << 20
MOST_JSON_LEVELS = 200  # whoever reads a tree needs more of Python's stack for a level than whoever writes it


@dataclass(frozen=True)
class Image:
    """A file to be.

    Args:
        path: Its path inside the checkpoint.
        pieces: Its content in order: bytes, or a tensor whose elements' bytes go there, in the order of its indices.
    """

    path: str
    pieces: tuple["bytes | torch.Tensor", ...]

    @property
    def size(self) -> int:
        """The size of the file in bytes."""
        return sum(len(piece) if isinstance(piece, bytes) else piece.nbytes for piece in self.pieces)


def json_image(path: str, content: Any) -> Image:
    """Returns the file of some JSON.

    Raises:
        UnsupportedError: It would be larger, or deeper, than any reader takes.
    """
    if is_deep(content, MOST_JSON_LEVELS):
        raise UnsupportedError(
            f"{path} would be nested in more than {MOST_JSON_LEVELS} levels, and no reader takes that",
            hint="have state_dict() give flat lists and dicts",
        )
    data = json.dumps(content, allow_nan=False).encode() + b"\n"
    if len(data) > MOST_JSON_BYTES:
        raise UnsupportedError(
            f"{path} would have {len(data):,} bytes, and a checkpoint's JSON has at most {MOST_JSON_BYTES:,}",
            hint="have state_dict() give large data as tensors or arrays, not as numbers in lists",
        )
    return Image(path, (data,))


def read_json(where: Where) -> Any:
    """Reads the JSON of a file.

    Raises:
        CheckpointError: It is too large, or no JSON, or a key is there twice.
    """
    try:
        data = files.read(where, limit=MOST_JSON_BYTES)
    except OSError as error:
        raise CheckpointError(f"{where} cannot be read: {error.strerror or error}") from error
    return decode_json(data, path_of(where))


def decode_json(data: bytes, path: Path) -> Any:
    """Returns the JSON of a file's bytes; `path` is for messages.

    Raises:
        DamagedCheckpointError: It is no JSON, or a key is there twice, or it is too deep.
    """
    try:
        content = strict_json(data)
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    if is_deep(content, MOST_JSON_LEVELS):
        raise _damaged(path, f"it is nested in more than {MOST_JSON_LEVELS} levels")
    return content


def _damaged(path: Path, why: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(f"{path} cannot be read: {why}", [f"{path.name} cannot be read: {why}"])
