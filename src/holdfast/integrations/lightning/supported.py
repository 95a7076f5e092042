"""The Lightning trainers that cannot be attached, each with the reason, and what it leaves to Lightning alone."""

import sys
from pathlib import Path
from typing import Any

from holdfast.arguments import AUTO, LOCAL
from holdfast.errors import UnsupportedError
from holdfast.integrations.lightning import contract
from holdfast.store import names
from holdfast.text import quoted

ATTACHED = "_is_of_holdfast"
"""The name of the attribute by which the `fit` of an attached trainer is known."""
# By name: neither package is imported for the other.
_STRATEGIES = ("SingleDeviceStrategy", "DDPStrategy")
_TUNERS = ("LearningRateFinder", "BatchSizeFinder")


def package_of(trainer: Any) -> str:
    """Returns the package whose trainer this is: `lightning.pytorch` or `pytorch_lightning`."""
    kind = next(kind for kind in type(trainer).__mro__ if kind.__name__ == "Trainer")
    return kind.__module__.removesuffix(".trainer.trainer")


def version_of(package: str) -> str:
    """Returns the version of that package, as a `.ckpt` has it."""
    return str(sys.modules[package].__version__)


def require_supported(trainer: Any) -> list[str]:
    """Refuses what this version cannot save exactly, before anything is trained.

    Args:
        trainer: A Lightning trainer that was given to `attach`.

    Returns:
        A line for each thing that is promised less of, because this Lightning lacks what it takes.

    Raises:
        UnsupportedError: It is attached already, shards its model, starts its processes in `fit`, has an address for
            a directory, or is of a version that is made otherwise.
    """
    if hasattr(trainer.fit, ATTACHED):
        raise UnsupportedError("this Trainer is attached already", hint="one call of attach holds for every fit()")
    version = version_of(package_of(trainer))
    lacking = contract.missing(trainer)
    if refused := [name.path for name in lacking if not name.without]:
        raise UnsupportedError(
            f"Lightning {version} has no {refused[0]}, by which its trainings are saved exactly",
            hint=f"use Lightning {contract.SEEN}, with which this was run",
        )
    strategy = type(trainer.strategy).__name__
    if strategy not in _STRATEGIES:
        raise UnsupportedError(
            f"the strategy {strategy} keeps the state in a form of its own, which attach does not save for Lightning",
            hint='use strategy="ddp" or one device; a plain loop with holdfast.Checkpointer can shard with FSDP2',
        )
    root = str(trainer.default_root_dir)
    if "://" in root:
        raise UnsupportedError(
            f"default_root_dir={quoted(root)} is an address, and a run directory is in a file system",
            hint="give a local default_root_dir; on_saved= of attach hears of each checkpoint, to copy it from there",
        )
    launcher = trainer.strategy.launcher
    if launcher is not None and "MultiProcessing" in type(launcher).__name__:
        raise UnsupportedError(
            "this strategy starts its processes inside of fit(), as copies that attach does not reach",
            hint='use strategy="ddp", or start the program with torchrun',
        )
    losses = dict.fromkeys(name.without for name in lacking)
    return [f"Lightning {version} lacks what it takes to put metrics back: {loss}" for loss in losses]


def is_ours(ckpt_path: Any) -> bool:
    """Tells whether `fit` was asked to go on from a checkpoint of Holdfast's: `auto`, `local`, or the path of one.

    A run's own directory, and what is left of a checkpoint in it, count as one too: their refusal says what to give.
    """
    if ckpt_path in (AUTO, LOCAL):
        return True
    try:
        if ckpt_path is None or not (path := Path(ckpt_path)).is_dir():
            return False
        return any(
            place.exists() for place in (path / names.MANIFEST, path / names.CONTROL, path.parent / names.CONTROL)
        )
    except (TypeError, ValueError, OSError):
        return False  # an address of another file system, which is Lightning's to open


def has_metrics(trainer: Any) -> bool:
    """Tells whether a trainer has what it takes to put the metrics of an epoch back."""
    return not any(name.without for name in contract.missing(trainer))


def is_left_alone(trainer: Any) -> str:
    """Returns the reason why a fit is left to Lightning alone; empty where it is saved."""
    if trainer.fast_dev_run:
        return "fast_dev_run"
    if any(getattr(callback, "_early_exit", False) for callback in trainer.callbacks):
        return "a tuner's trial"
    return ""


def has_tuner(trainer: Any) -> bool:
    """Tells whether a callback tries something out at the beginning of the fit."""
    return any(kind.__name__ in _TUNERS for callback in trainer.callbacks for kind in type(callback).__mro__)


def is_started_by_lightning(trainer: Any) -> bool:
    """Tells whether Lightning's own launcher started this process: it kills all others where one ends with an error."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return type(environment).__name__ == "LightningEnvironment" and trainer.global_rank > 0
