"""Holdfast saves a PyTorch training run the moment you ask, and resumes it exactly where it was."""

from typing import TYPE_CHECKING

from holdfast.errors import HoldfastError, Stopped

if TYPE_CHECKING:
    from holdfast.config import DynamicCheckpoint
    from holdfast.integrations.transformers import attach

__all__ = ["DynamicCheckpoint", "HoldfastError", "Stopped", "__version__", "attach"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    # torch, transformers and pydantic take seconds to import; the verbs that need none of them must not wait.
    if name == "attach":
        from holdfast.integrations.transformers import attach

        return attach
    if name == "DynamicCheckpoint":
        from holdfast.config import DynamicCheckpoint

        return DynamicCheckpoint
    raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
