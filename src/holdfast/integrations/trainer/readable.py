"""The small files of a checkpoint, read before a Trainer loads any of it, and the errors of its loading, in words.

transformers ends in a traceback of json, torch or its own where a file is not what it expects. Digests say nothing of
that: whoever made a file can make a manifest that fits. Read against transformers 5.23 and peft 0.21.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from transformers import Trainer, TrainerState, trainer_pt_utils

from holdfast.errors import CheckpointError, DamagedCheckpointError
from holdfast.layouts.loadable import Allowing, UnloadableError, load
from holdfast.resume.choose import ResumePoint
from holdfast.store import files, names, references
from holdfast.store.manifest import Manifest, strict_json
from holdfast.text import quoted

_MOST_CONFIG_BYTES = 64 << 20
_STATES = ("optimizer.pt", "scheduler.pt", "scaler.pt")
_CONFIGS = ("config.json", "adapter_config.json", "*/adapter_config.json")
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_ANOTHER = "resume from an older one, by its path: holdfast list RUN shows what there is"

# The fields of a state that are whole numbers, those that a step is, and other numbers; and those that may be null.
_STEPS = ("global_step", "best_global_step")
_COUNTS = (*_STEPS, "max_steps", "num_input_tokens_seen", "train_batch_size")
_NUMBERS = ("epoch", "num_train_epochs", "logging_steps", "eval_steps", "save_steps", "total_flos", "best_metric")
_NULLABLE = ("best_global_step", "train_batch_size", "epoch", "eval_steps", "best_metric", "trial_name", "trial_params")

_LOADING = {
    "_load_from_checkpoint": "its weights",
    "_load_optimizer_and_scheduler": "its optimizer.pt or scheduler.pt",
    "_load_scaler": "its scaler.pt",
    "_load_callback_state": "the callbacks of its trainer_state.json",
}
# The errors of code that is given other things than it expects.
_UNEXPECTED = (
    *(AttributeError, LookupError, TypeError, ValueError, RuntimeError, ArithmeticError, EOFError, UnpicklingError),
    SafetensorError,
)


def require_readable_files(trainer: Trainer, chosen: ResumePoint) -> None:
    """Checks the files of a checkpoint that a Trainer reads before and beside the weights.

    Args:
        trainer: The trainer.
        chosen: The checkpoint.

    Raises:
        DamagedCheckpointError: One is not what a Trainer writes.
        CheckpointError: It holds an adapter that the model does not have.
    """
    path = chosen.folder.through
    if chosen.manifest is None and (problem := references.problem_of_foreign(path)):
        _refuse(path, problem)
    if (path / references.STATE).is_file():
        _require_state(path, chosen.manifest)
    for pattern in _CONFIGS:
        for file in sorted(path.glob(pattern)):
            _require_object(path, file)
    for name in _STATES:
        _require_loadable(path, name)
    for file in sorted(path.glob("rng_state*.pth")):
        _require_loadable(path, file.name, allowing=trainer_pt_utils.safe_globals)
    _require_own_adapters(trainer, path)


@contextmanager
def explained(trainer: Trainer, path: Path) -> Iterator[None]:
    """Has a trainer's loading end in an error that says of which checkpoint and what, as long as the context is open.

    Args:
        trainer: The trainer.
        path: The checkpoint.
    """
    before = {name: vars(trainer)[name] for name in _LOADING if name in vars(trainer)}
    there = {name: getattr(trainer, name) for name in _LOADING if hasattr(trainer, name)}
    for name, own in there.items():
        setattr(trainer, name, explaining(own, _LOADING[name], path))
    try:
        yield
    finally:
        for name in there:
            delattr(trainer, name)
        vars(trainer).update(before)


def allow_cpus_of_ranks(trainer: Trainer) -> None:
    """Has torch load onto the CPU of a rank, as transformers before 5.18 calls the host: cpu:0, which torch refuses."""
    device = trainer.args.device
    if device.type == "cpu" and device.index is not None:
        _register_cpus()


@functools.cache
def _register_cpus() -> None:
    torch.serialization.register_package(
        40, lambda storage: None, lambda storage, place: storage if re.fullmatch(r"cpu:\d+", place) else None
    )


def explaining(load: Callable[..., Any], what: str, path: Path | None = None) -> Callable[..., Any]:
    """Returns a function that loads part of a checkpoint, and says so where it does not find what it expects.

    Args:
        load: The function; its first argument is the checkpoint's path, where that is not given here.
        what: The part.
        path: The checkpoint.
    """

    @functools.wraps(load)
    def loading(*args: Any, **kwargs: Any) -> Any:
        try:
            return load(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except _UNEXPECTED as error:
            said = str(error).partition("\n")[0] or type(error).__name__
            raise CheckpointError(
                f"{path or args[0]}: {what} cannot be loaded into this training ({type(error).__name__}: {said})",
                hint=f"the training is another than the one that wrote it, or somebody has changed it; or {_ANOTHER}",
            ) from error

    return loading


def _refuse(path: Path, problem: str, cause: Exception | None = None) -> NoReturn:
    raise DamagedCheckpointError(f"{path} cannot be resumed from: {problem}", [problem], hint=_ANOTHER) from cause


def _require_state(path: Path, manifest: Manifest | None) -> None:
    """Checks what a Trainer takes as it stands, of its counters above all."""
    try:
        content = references.read_state(files.read(path / references.STATE, limit=references.MOST_STATE_BYTES))
    except (OSError, ValueError) as error:
        _refuse(path, f"{references.STATE}: {error}", error)
    if problem := _problem_of_state(content):
        _refuse(path, f"{references.STATE}: {problem}")
    if manifest is not None and content["global_step"] != manifest.step:
        _refuse(path, f"{references.STATE}: is of step {content['global_step']}, the manifest of {manifest.step}")


def _problem_of_state(content: Mapping[str, Any]) -> str:
    fields = {field.name for field in dataclasses.fields(TrainerState)}
    if unknown := sorted(content.keys() - fields):
        return f"has the field {quoted(unknown[0])}, which this version of transformers does not know"
    if "global_step" not in content:
        return "does not say which step it is of"
    for name, value in content.items():
        if value is None and name in _NULLABLE:
            continue
        if name in _COUNTS and not (
            type(value) is int and -1 <= value < (names.NUMBERS_END if name in _STEPS else 2**63)
        ):
            return f"has {quoted(value)} as its {name}"
        # A loss may be NaN; a number of steps or epochs may not.
        if name in _NUMBERS and (
            type(value) not in (int, float) or not (math.isfinite(value) or name == "best_metric")
        ):
            return f"has {quoted(value)} as its {name}"
        if name == "log_history" and not (isinstance(value, list) and all(isinstance(item, dict) for item in value)):
            return "has a log_history that is no list of objects"
        if name == "stateful_callbacks" and not _are_callbacks(value):
            return "has stateful_callbacks that are none"
    return "is of a negative step" if content["global_step"] < 0 else ""


def _are_callbacks(value: Any) -> bool:
    if not isinstance(value, dict) or not all(name.isprintable() for name in value):
        return False
    states = [state for several in value.values() for state in (several if isinstance(several, list) else [several])]
    return all(
        isinstance(state, dict) and all(isinstance(state.get(part, {}), dict) for part in ("args", "attributes"))
        for state in states
    )


def _require_object(path: Path, file: Path) -> None:
    try:
        is_object = isinstance(strict_json(files.read(file, limit=_MOST_CONFIG_BYTES), finite=False), dict)
    except (OSError, ValueError) as error:
        _refuse(path, f"{file.relative_to(path)}: {error}", error)
    if not is_object:
        _refuse(path, f"{file.relative_to(path)}: is no JSON object")


def _require_loadable(path: Path, name: str, allowing: Allowing = nullcontext) -> None:
    """Checks that a pickle holds nothing but tensors and plain values, in a dictionary. No tensor's bytes are read."""
    if not (path / name).is_file():
        return
    try:
        content = load(path / name, allowing)
    except UnloadableError as error:
        _refuse(path, f"{name}: holds {error}, and is not loaded (weights_only=True)", error)
    if not isinstance(content, dict):
        _refuse(path, f"{name}: holds {quoted(type(content).__name__)}, and no dictionary")
    if name == "scheduler.pt" and type(content.get("last_epoch", 0)) is not int:
        _refuse(path, f"{name}: has {quoted(content['last_epoch'])} as the number of its steps")


def _require_own_adapters(trainer: Trainer, path: Path) -> None:
    """Refuses adapters that the model lacks: peft would make them as their files say, with whatever these name."""
    own = getattr(trainer.model, "peft_config", None)
    if own is None:
        return
    folders = {file.parent.name for name in _ADAPTERS for file in path.glob(f"*/{name}")}
    held_by_path = {*folders, *(["default"] if folders and any((path / name).exists() for name in _ADAPTERS) else [])}
    if others := sorted(held_by_path - set(own)):
        raise CheckpointError(
            f"{path} holds the adapter {quoted(others[0])}, which this model does not have",
            hint="give the model the adapters that it had, under the same names",
        )
