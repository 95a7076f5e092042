"""Holdfast saves a PyTorch training run the moment you ask, and resumes it exactly where it was."""

from importlib import import_module
from typing import TYPE_CHECKING

from holdfast.errors import HoldfastError, Stopped

if TYPE_CHECKING:
    from holdfast.capture.evaluation import evaluation
    from holdfast.checkpointer import Checkpointer
    from holdfast.config import DynamicCheckpoint
    from holdfast.integrations.transformers import attach

__all__ = ["Checkpointer", "DynamicCheckpoint", "HoldfastError", "Stopped", "__version__", "attach", "evaluation"]

__version__ = "0.1.0"


_PLACES = {
    "Checkpointer": "holdfast.checkpointer",
    "DynamicCheckpoint": "holdfast.config",
    "attach": "holdfast.integrations.transformers",
    "evaluation": "holdfast.capture.evaluation",
}


def __getattr__(name: str) -> object:
    # torch, transformers and pydantic take seconds to import; the verbs that need none of them must not wait.
    if name not in _PLACES:
        raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
