"""Holdfast saves a PyTorch training run the moment you ask, and resumes it exactly where it was."""

from importlib import import_module
from typing import TYPE_CHECKING

from holdfast.errors import HoldfastError, Stopped

if TYPE_CHECKING:
    from holdfast.integrations.attach import attach
    from holdfast.loop.checkpointer import Checkpointer
    from holdfast.mirror.asking import save, status
    from holdfast.run.request import Answer
    from holdfast.settings import DynamicCheckpoint
    from holdfast.state.rng.evaluation import evaluation

__all__ = [
    "Answer",
    "Checkpointer",
    "DynamicCheckpoint",
    "HoldfastError",
    "Stopped",
    "__version__",
    "attach",
    "evaluation",
    "save",
    "status",
]

__version__ = "0.2.0"
"""The one place of the version: what is built, and `holdfast --version`, take it from here."""


_PLACES = {
    "Answer": "holdfast.run.request",
    "Checkpointer": "holdfast.loop.checkpointer",
    "DynamicCheckpoint": "holdfast.settings",
    "attach": "holdfast.integrations.attach",
    "evaluation": "holdfast.state.rng.evaluation",
    "save": "holdfast.mirror.asking",
    "status": "holdfast.mirror.asking",
}


def __getattr__(name: str) -> object:
    # torch, transformers and pydantic take seconds to import; the verbs that need none of them must not wait.
    if name not in _PLACES:
        raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
