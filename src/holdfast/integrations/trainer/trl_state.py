"""State that TRL's trainers keep in attributes: what was generated and is not yet trained on, what is not yet logged.

GRPO, RLOO and their kind generate for several steps at once; without these a resume would generate anew, and in other
steps. Read against TRL 1.8 to 1.16.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import Trainer

from holdfast.state import values

GENERATED = "_buffered_inputs"
"""The attribute with the batches that were generated for this forward pass and the next ones."""
_PASSES = "_step"
# GOLD has what belongs to each of those batches in further attributes.
_BESIDE_GENERATED = "_buffered_"
_COMPLETIONS = "_logs"
_IMAGES = "images"
_METRICS = ("_metrics", "_stored_metrics")
_TRAIN = "train"
# What `GRPOTrainer._save_checkpoint` writes from the trainer itself, which may be a forward pass further.
_WRITTEN = ("entropy_coef", "_last_world_entropy")


def record(trainer: Trainer) -> dict[str, Any]:
    """Records what was generated, and the texts of it that are to be logged, as of now.

    No tensor is copied: what was generated is replaced as a whole, and never written to.
    """
    return {**_generated(trainer), **_completions(trainer)}


def restore(trainer: Trainer, state: Mapping[str, Any]) -> None:
    """Puts back what `record` gave, right before the first step."""
    for name, value in state.items():
        if _is_generated(name) and hasattr(trainer, name):
            setattr(trainer, name, value)
    if _COMPLETIONS in state and hasattr(trainer, _COMPLETIONS):
        _fill(trainer._logs, state[_COMPLETIONS])


def metrics(trainer: Trainer) -> dict[str, Sequence[Any]]:
    """Returns the measurements since the last line of the log, by name; none where a trainer keeps none.

    The lists are only ever added to, or left for new ones. ORPO and its kind put tensors of one number into theirs.
    """
    of_trainer = _holder(trainer)
    return dict(of_trainer.get(_TRAIN, {})) if isinstance(of_trainer, dict) else {}


def restore_metrics(trainer: Trainer, before: Mapping[str, list[float]]) -> None:
    """Puts measurements back."""
    of_trainer = _holder(trainer)
    if isinstance(of_trainer, dict):
        for name, numbers in before.items():
            of_trainer[_TRAIN][name] = numbers


def written(trainer: Trainer) -> dict[str, Any]:
    """Returns the attributes that a trainer's own writer writes, as of now."""
    return {name: vars(trainer)[name] for name in _WRITTEN if name in vars(trainer)}


def _holder(trainer: Trainer) -> Any:
    return next((vars(trainer)[name] for name in _METRICS if name in vars(trainer)), None)


def _is_generated(name: str) -> bool:
    return name == _PASSES or name.startswith(_BESIDE_GENERATED)


def _generated(trainer: Trainer) -> dict[str, Any]:
    """Returns what was generated; nothing where the next step generates in any case."""
    attributes = vars(trainer)
    if attributes.get(GENERATED) is None:
        return {}
    if attributes.get(_PASSES, 0) % _generation_steps(trainer) == 0:
        return {}
    names = [name for name in attributes if _is_generated(name)]
    return {name: values.snapshot(attributes[name], values.live) for name in names}


def _generation_steps(trainer: Trainer) -> int:
    """Returns for how many forward passes is generated at once."""
    steps = getattr(trainer.args, "steps_per_generation", None) or trainer.args.gradient_accumulation_steps
    return int(steps * getattr(trainer, "num_iterations", 1))


def _completions(trainer: Trainer) -> dict[str, Any]:
    """Returns the texts of the last generation, which every line of the log writes into a table again.

    Images have no form in a checkpoint.
    """
    logs = vars(trainer).get(_COMPLETIONS)
    if (
        not getattr(trainer, "log_completions", False)
        or not isinstance(logs, dict)
        or not trainer.is_world_process_zero()
    ):
        return {}
    return {_COMPLETIONS: {name: _plain(column) for name, column in logs.items() if name != _IMAGES}}


def _plain(column: Any) -> Any:
    if isinstance(column, dict):
        return {str(name): _plain(inner) for name, inner in column.items()}
    return list(column)


def _fill(logs: Any, before: Mapping[str, Any]) -> None:
    for name, column in before.items():
        if isinstance(column, Mapping):
            _fill(logs[name], column)
        elif isinstance(logs[name], deque):
            logs[name].extend(column)
