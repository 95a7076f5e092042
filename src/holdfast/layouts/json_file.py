"""A JSON file of a checkpoint to be, and one read back. What is read may have been written by anybody."""

import json
from pathlib import Path
from typing import Any

from holdfast.errors import CheckpointError, UnsupportedError
from holdfast.layouts.tensor_file import Image
from holdfast.store import files
from holdfast.store.manifest import strict_json

MOST_BYTES = 256 << 20


def image(path: str, content: Any) -> Image:
    """The file of some JSON.

    Raises:
        UnsupportedError: It would be larger than any reader takes.
    """
    data = json.dumps(content, allow_nan=False).encode() + b"\n"
    if len(data) > MOST_BYTES:
        raise UnsupportedError(
            f"{path} would have {len(data):,} bytes, and a checkpoint's JSON has at most {MOST_BYTES:,}",
            hint="have state_dict() give large data as tensors or arrays, not as numbers in lists",
        )
    return Image(path, (data,))


def read(path: Path) -> Any:
    """Reads the JSON of a file.

    Raises:
        CheckpointError: It is too large, or no JSON, or a key is there twice.
    """
    try:
        data = files.read(path, limit=MOST_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return decode(data, path)


def decode(data: bytes, path: Path) -> Any:
    """The JSON of a file's bytes; `path` is what to call it.

    Raises:
        CheckpointError: It is no JSON, or a key is there twice.
    """
    try:
        return strict_json(data.decode())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
