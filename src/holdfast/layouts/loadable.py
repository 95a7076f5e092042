"""Files of `torch.save` as those who resume load them: with `weights_only`, for tensors and plain values alone."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from holdfast.errors import UnsupportedError


def require_loadable(path: Path, name: str, allowing: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
    """Checks that a file can be loaded by whoever resumes from it. Of the tensors' bytes none is read.

    Args:
        path: The file. Its tensors may be without their bytes yet.
        name: Its name in the checkpoint.
        allowing: Allows the types besides torch's own that its reader allows.

    Raises:
        UnsupportedError: It holds something else, which is named.
    """
    import torch

    kinds: list[str] = []
    try:
        with allowing():
            kinds = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:
        shown = ", ".join(sorted(kinds)) or str(error).partition("\n")[0]
        raise UnsupportedError(
            f"{name} would hold {shown}, which transformers refuses to load (weights_only=True), so that no training"
            " could resume from it; use another, or call torch.serialization.add_safe_globals for its classes before"
            " the training and before each resume"
        ) from error
