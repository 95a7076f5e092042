"""Files of `torch.save` as those who resume load them: with `weights_only`, for tensors and plain values alone."""

import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from holdfast.errors import UnsupportedError

Allowing = Callable[[], AbstractContextManager[Any]]
"""Allows the types besides torch's own that the reader of a file allows."""


class UnloadableError(ValueError):
    """A file that is not loaded. The text is what it holds."""


def load(path: Path, allowing: Allowing = nullcontext) -> Any:
    """Loads a file as whoever resumes from it. Of the tensors' bytes none is read.

    Args:
        path: The file.
        allowing: Allows the types besides torch's own that its reader allows.

    Raises:
        UnloadableError: It holds something else than tensors and plain values, or is no such file.
    """
    import torch

    kinds: list[str] = []
    try:
        with allowing():
            is_zip = zipfile.is_zipfile(path)
            kinds = torch.serialization.get_unsafe_globals_in_checkpoint(path) if is_zip else []
            return torch.load(path, map_location="cpu", mmap=is_zip, weights_only=True)
    except Exception as error:
        said = str(error).partition("\n")[0]
        if isinstance(error, UnpicklingError | EOFError):
            said = "nothing that torch can load"
        raise UnloadableError(", ".join(sorted(kinds)) or said or type(error).__name__) from error


def require_loadable(path: Path, name: str, allowing: Allowing = nullcontext) -> None:
    """Checks that a file can be loaded by whoever resumes from it. Of the tensors' bytes none is read.

    Args:
        path: The file. Its tensors may be without their bytes yet.
        name: Its name in the checkpoint.
        allowing: Allows the types besides torch's own that its reader allows.

    Raises:
        UnsupportedError: It holds something else, which is named.
    """
    try:
        load(path, allowing)
    except UnloadableError as error:
        raise UnsupportedError(
            f"{name} would hold {error}, which transformers refuses to load (weights_only=True), so that no training"
            " could resume from it; use another, or call torch.serialization.add_safe_globals for its classes before"
            " the training and before each resume"
        ) from error
