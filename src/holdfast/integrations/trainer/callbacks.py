"""The state of a Trainer's callbacks: that of those which export it is carried, numbers of others are named.

transformers writes the state of each `ExportableState` into `trainer_state.json`, and reads it back only where
`restore_callback_states_from_checkpoint` is set, into new objects with the old arguments. Here the user's own objects
get their `attributes` back, and keep the arguments that the user gave them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from holdfast.state.secrets import blanked, filled

Exported = tuple[tuple[str, dict[str, Any]], ...]
"""The state of each callback that exports it, by the name of its class."""

# Callbacks of these are known to begin anew without harm: progress bars, printers, loggers.
_STOCK = ("transformers", "trl", "holdfast")


def exported(trainer: Trainer) -> Exported:
    """Returns the state of each callback that exports it, as of now."""
    return tuple((type(callback).__name__, callback.state()) for callback in _exporting(trainer))


def by_name(states: Exported) -> dict[str, Any]:
    """Returns the states as a Trainer writes them: several of one class in a list, and without secrets.

    An attribute that is one is left out, so that whoever sets the others leaves it as it is.
    """
    named: dict[str, list[Any]] = {}
    for name, state in states:
        written = blanked(state)
        if isinstance(attributes := state.get("attributes"), dict):
            after = written["attributes"]
            blank = [key for key, value in attributes.items() if value is not None and after[key] is None]
            for key in blank:
                del after[key]
        named.setdefault(name, []).append(written)
    return {name: several if len(several) > 1 else several[0] for name, several in named.items()}


def restore(trainer: Trainer) -> list[str]:
    """Sets the attributes of the callbacks that export them, as the resumed state has them.

    Args:
        trainer: The trainer, which has loaded its state.

    Returns:
        A line for each callback whose state does not come back.
    """
    if trainer.args.restore_callback_states_from_checkpoint:
        return []  # transformers has done it, in its own way, which the user chose
    lines = []
    here: dict[str, list[Any]] = {}
    for callback in _exporting(trainer):
        here.setdefault(type(callback).__name__, []).append(callback)
    for name, callbacks in here.items():
        stored = trainer.state.stateful_callbacks.get(name, [])
        # A Trainer that was told to save them itself has added each save's to those that were there before.
        states = stored[-len(callbacks) :] if isinstance(stored, list) else [stored]
        for number, callback in enumerate(callbacks):
            attributes = states[number].get("attributes") if number < len(states) else None
            if attributes is None:
                lines.append(f"{name}: the checkpoint has no state of it; it begins anew")
            else:
                vars(callback).update(filled(attributes, vars(callback)))
    missing = [name for name in trainer.state.stateful_callbacks if name not in here and name != "TrainerControl"]
    return [
        *lines,
        *(f"{name}: the checkpoint has its state, and no callback here is of that class" for name in missing),
    ]


class UncarriedNumbers:
    """Watches the numbers of callbacks that do not export them.

    Args:
        trainer: The trainer, at the beginning of its training.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._callbacks = [(callback, _numbers(callback)) for callback in _silent(trainer)]

    def changed(self) -> list[str]:
        """Returns the names of those that have changed since: the callback's class, a dot, the attribute."""
        return [
            f"{type(callback).__name__}.{name}"
            for callback, before in self._callbacks
            for name, value in _numbers(callback).items()
            if before.get(name) != value
        ]


def still_here(trainer: Trainer, names: Sequence[str]) -> list[str]:
    """Returns those of the names of `UncarriedNumbers.changed` whose callback is among a trainer's."""
    here = {type(callback).__name__ for callback in _silent(trainer)}
    return [name for name in names if name.partition(".")[0] in here]


def _exporting(trainer: Trainer) -> list[Any]:
    return [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, ExportableState)]


def _silent(trainer: Trainer) -> Iterator[TrainerCallback]:
    for callback in trainer.callback_handler.callbacks:
        if not isinstance(callback, ExportableState) and not _is_stock(type(callback)):
            yield callback


def _is_stock(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _STOCK


def _numbers(callback: TrainerCallback) -> Mapping[str, Any]:
    """Returns the plain numbers of a callback, but for those that a stock class which it extends keeps."""
    stock = [kind for kind in type(callback).__mro__ if _is_stock(kind) and kind is not TrainerCallback]
    functions = [value for kind in stock for value in vars(kind).values() if isinstance(value, FunctionType)]
    theirs = {name for function in functions for name in function.__code__.co_names}
    items = list(vars(callback).items())
    return {name: value for name, value in items if isinstance(value, int | float) and name not in theirs}


@contextmanager
def silent_on_save(trainer: Trainer) -> Iterator[None]:
    """Keeps callbacks from learning of a save that the trainer only wishes for: they do after its commit."""
    handler = trainer.callback_handler
    handler.on_save = lambda args, state, control: control
    try:
        yield
    finally:
        del handler.on_save
