"""The settings of a Trainer: recorded as its user gave them, and followed or kept at a resume.

A Trainer loads an optimizer's groups and a schedule as a checkpoint has them, the old learning rate included. What its
user has changed is put in their place right after that. Read against transformers 5.23.
"""

from collections.abc import Iterator, Mapping, Sized
from typing import Any

from torch.utils.data import IterableDataset
from transformers import Trainer
from transformers.trainer_callback import ExportableState

from holdfast.engine.engine import Engine
from holdfast.integrations.trainer import arguments
from holdfast.integrations.trainer.contract import lacks
from holdfast.resume import changed_settings
from holdfast.state import adapters
from holdfast.state.hyperparameters import Hyperparameters
from holdfast.state.optimizer_layers import is_optimizer, unwrapped
from holdfast.state.recorded_settings import KEPT, Change, changes, readable

_LOADS = "_load_optimizer_and_scheduler"


class TrainerSettings:
    """The settings of a Trainer, from before its `train` on. Use it as a context manager around that.

    Args:
        trainer: The trainer.
        engine: The open engine.
    """

    def __init__(self, trainer: Trainer, engine: Engine) -> None:
        self._trainer = trainer
        self._log = engine.log
        self._keep = engine.settings.resume_settings == "keep"
        self._chosen = engine.origin.chosen
        manifest = None if self._chosen is None else self._chosen.manifest
        self._before: Mapping[str, Any] = {} if manifest is None else manifest.settings
        self._own_arguments = trainer.args
        self._adapters = adapters.configurations(trainer.model)
        self._data = _size(trainer.train_dataset)
        self._callbacks = [(name, number, _arguments_of(callback)) for name, number, callback in _exported(trainer)]
        self._hyperparameters: Hyperparameters | None = None
        self._changes: list[Change] = []

    def __enter__(self) -> "TrainerSettings":
        trainer = self._trainer
        differing = list(changes(self._before.get("arguments"), arguments.record(trainer.args)))
        if self._keep:
            differing = [self._staying(change) for change in differing]
            trainer.args = arguments.as_recorded(trainer.args, [change for change in differing if change.stays])
            trainer._train_batch_size = trainer.args.train_batch_size
        elif trainer.is_deepspeed_enabled:
            why = "for DeepSpeed loads its optimizer and schedule itself"
            differing = [
                change.staying(why) if arguments.is_of_optimizer(change.path[0]) else change for change in differing
            ]
        self._arguments = arguments.record(trainer.args)
        self._changes = [
            *differing,
            *adapters.changes(self._before.get("adapters"), self._adapters, "adapter"),
        ]
        self._load = trainer._load_optimizer_and_scheduler
        setattr(trainer, _LOADS, self._load_and_follow)
        return self

    def __exit__(self, *exception: object) -> None:
        delattr(self._trainer, _LOADS)
        if self._trainer.args is not self._own_arguments:
            self._trainer.args = self._own_arguments
            self._trainer._train_batch_size = self._own_arguments.train_batch_size

    def begin(self) -> None:
        """Takes in that training begins, with all that was loaded, and names what has changed since the checkpoint."""
        if self._hyperparameters is None:
            self._hyperparameters = self._present()
        if self._chosen is None:
            return
        if not self._before:
            changed_settings.announce_unrecorded(self._log)
        changed_settings.announce(self._log, [*self._changes, *self._follow_callbacks()])
        self._changes = []

    def record(self) -> dict[str, Any]:
        """Returns the settings as JSON, for the manifest."""
        callbacks: dict[str, list[Any]] = {}
        for name, _, args in self._callbacks:
            callbacks.setdefault(name, []).append(readable(args))
        return {
            "arguments": self._arguments,
            "parts": self._hyperparameters.record() if self._hyperparameters is not None else {},
            "adapters": self._adapters,
            "data": self._data,
            "callbacks": callbacks,
        }

    def _staying(self, change: Change) -> Change:
        name = change.path[0]
        can_be_kept = arguments.can_be_kept(self._trainer.args, name)
        if name == "per_device_train_batch_size" and lacks(self._trainer, "_train_batch_size"):
            can_be_kept = False
        return change.staying(KEPT) if can_be_kept else change

    def _present(self) -> Hyperparameters:
        """Returns the hyperparameters as they are; of DeepSpeed none, which has loaded its own by now."""
        trainer = self._trainer
        optimizer = unwrapped(trainer.optimizer)
        if not is_optimizer(optimizer) or trainer.is_deepspeed_enabled:
            return Hyperparameters({}, {}, {})
        names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
        return Hyperparameters({"optimizer": optimizer}, {"scheduler": trainer.lr_scheduler}, names)

    def _load_and_follow(self, checkpoint: str | None) -> None:
        """Replaces the trainer's loading of optimizer and schedule, after which what was changed is put in place."""
        self._hyperparameters = present = self._present()
        recorded = self._before.get("parts")
        parts = recorded if isinstance(recorded, Mapping) else {}
        schedule = self._trainer.lr_scheduler
        if another := present.has_another_schedule(parts):
            schedule.load_state_dict = lambda state: None  # it is not its own
        try:
            self._load(checkpoint)
        finally:
            if another:
                del schedule.load_state_dict
        changed = {change.path[0] for change in self._changes}
        if any(changes(self._before.get("data"), self._data)):  # which is named where the position in the data is kept
            changed.add(arguments.DATA)
        steps = self._trainer.state.global_step
        for change in present.keep(parts) if self._keep else present.follow(parts, steps):
            if change.stays or not arguments.explain(changed, change.path):
                self._changes.append(change)

    def _follow_callbacks(self) -> Iterator[Change]:
        """Gives callbacks that are exported into the state their arguments; yields those that were changed.

        With `restore_callback_states_from_checkpoint` a Trainer has made them anew, with those of the checkpoint.
        """
        recorded = self._before.get("callbacks")
        present = {(name, number): callback for name, number, callback in _exported(self._trainer)}
        for name, number, args in self._callbacks:
            before = recorded.get(name) if isinstance(recorded, Mapping) else None
            before = before[number] if isinstance(before, list) and number < len(before) else {}
            differing = list(changes(before, readable(args), name))
            kept = {change.path[1]: before[change.path[1]] for change in differing} if self._keep else {}
            callback = present.get((name, number))
            for argument, value in {**args, **kept}.items():
                if callback is not None and _arguments_of(callback).get(argument) != value:
                    setattr(callback, argument, value)
            yield from (change.staying(KEPT) if self._keep else change for change in differing)


def _exported(trainer: Trainer) -> Iterator[tuple[str, int, Any]]:
    """Yields the callbacks that are exported into the state, each with its class and its number among those of it."""
    numbers: dict[str, int] = {}
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, ExportableState):
            name = type(callback).__name__
            numbers[name] = numbers.get(name, -1) + 1
            yield name, numbers[name], callback


def _arguments_of(callback: Any) -> dict[str, Any]:
    """Returns the arguments that a callback exports; a Trainer asks for them only where it makes callbacks anew."""
    return dict(callback.state().get("args", {}))


def _size(dataset: object) -> dict[str, int]:
    if isinstance(dataset, Sized) and not isinstance(dataset, IterableDataset):
        return {"samples": len(dataset)}
    return {}
