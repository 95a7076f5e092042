"""The parts of a Lightning training that are no model and no optimizer: progress, callbacks, and what hooks add."""

import math
import os
from collections.abc import Mapping
from typing import Any

import torch

from holdfast.errors import UnsupportedError
from holdfast.integrations.lightning.metrics import Metrics
from holdfast.state import values

PROGRESS, CALLBACKS, HOOKS = "progress", "callbacks", "hooks"
"""The names of these parts."""
_LOOPS = ("fit_loop", "validate_loop", "test_loop", "predict_loop")


class LightningProgress:
    """The progress of a trainer's loops, and its metrics.

    Args:
        trainer: The trainer.
        package: The name of the package that the trainer is of.
        with_metrics: False where this version of Lightning has none that could be put back.
    """

    def __init__(self, trainer: Any, package: str, *, with_metrics: bool) -> None:
        self._trainer = trainer
        self._metrics = Metrics(trainer, package) if with_metrics else None
        self.loss: torch.Tensor | None = None
        """The loss of the last batch."""
        # As given: a callback may change it from epoch to epoch.
        self._accumulate_given = trainer.accumulate_grad_batches
        # What a checkpoint has, above all of the trainer itself, until it is set there.
        self._to_come: Mapping[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Returns it all, as of now."""
        trainer = self._trainer
        now = {
            "epoch": trainer.current_epoch,
            "loops": {name: progress_of(getattr(trainer, name)) for name in _LOOPS},
            "loss": self.loss,
            "metrics": None if self._metrics is None else self._metrics.record(),
        }
        return {**now, **self._of_trainer(), **(self._to_come or {})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts the fit's progress and metrics back. What a training before its first batch had is made anew."""
        fit_loop, recorded = self._trainer.fit_loop, state["loops"]["fit_loop"]
        self.loss = state["loss"]
        if not recorded["epoch_loop.batch_progress"]["total"]["ready"]:
            self._to_come = state
            return
        # An older checkpoint has the first of them alone.
        self._to_come = {name: state[name] for name in self._of_trainer() if name in state}
        fit_loop.load_state_dict(recorded)
        _forget_restart(fit_loop)
        if self._metrics is not None and state["metrics"] is not None:
            self._metrics.restore(state["metrics"])

    @property
    def should_stop(self) -> bool:
        """True where training is to stop early by the checkpoint that is to be gone on from.

        Where its `max_time` was over, that of now decides: somebody may have given more.
        """
        to_come = self._to_come or {}
        by_time = self.is_out_of_time if to_come.get("is_out_of_time") else to_come.get("should_stop", False)
        return bool(self._trainer.strategy.broadcast(by_time))  # each process has a clock of its own

    @property
    def is_out_of_time(self) -> bool:
        """True where a timer of this training, such as that of `max_time`, has none left."""
        left = [timer.time_remaining() for timer in self._trainer.callbacks if _is_timer(timer)]
        return any(seconds is not None and seconds <= 0 for seconds in left)

    def make_loaders(self) -> None:
        """Has Lightning make its loaders for the epochs of the saved ones, and make them anew when it did."""
        trainer, loop = self._trainer, self._trainer.fit_loop
        made_for = (self._to_come or {}).get("loaders_made_for", {})
        at = loop.epoch_progress.current
        now = at.completed  # which users and Lightning know as `current_epoch`
        try:
            at.completed = _epoch(made_for.get("train"), now)
            loop.setup_data()
            if trainer.enable_validation and _epoch(made_for.get("validation"), -1) >= 0:
                at.completed = made_for["validation"]
                trainer.validating = True
                loop.epoch_loop.val_loop.setup_data()
        finally:
            at.completed = now
            trainer.training = True

    def begin_anew(self) -> None:
        """Takes in that the fit begins as one without a checkpoint: that is of before the first batch."""
        self._to_come = None

    def arrive(self) -> None:
        """Sets what a checkpoint has of the trainer itself. What its user gives otherwise now holds."""
        trainer = self._trainer
        trainer.should_stop = self.should_stop
        to_come, self._to_come = self._to_come or {}, None
        accumulate = to_come.get("accumulate_grad_batches")
        if accumulate is not None and accumulate["given"] == self._accumulate_given:
            trainer.accumulate_grad_batches = accumulate["now"]

    def _of_trainer(self) -> dict[str, Any]:
        trainer, loop = self._trainer, self._trainer.fit_loop
        return {
            "should_stop": trainer.should_stop,
            "is_out_of_time": self.is_out_of_time,
            "accumulate_grad_batches": {"given": self._accumulate_given, "now": trainer.accumulate_grad_batches},
            "loaders_made_for": {
                "train": loop._last_train_dl_reload_epoch,
                "validation": loop.epoch_loop.val_loop._last_val_dl_reload_epoch,
            },
        }


class LightningCallbacks:
    """The states of a trainer's callbacks, by their keys.

    Args:
        trainer: The trainer.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.left_out: dict[str, str] = {}
        """The callbacks whose state is none that a checkpoint can hold, each with the reason."""
        for key, state in self._states():
            try:
                values.encode(state, key, {})
            except UnsupportedError as error:
                self.left_out[key] = str(error)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of each that has one."""
        return {key: state for key, state in self._states() if key not in self.left_out}

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        """Has each load its own."""
        for callback in self._trainer.callbacks:
            if state := states.get(callback.state_key):
                callback.load_state_dict(state)
                if "current_score" in state and hasattr(callback, "current_score"):
                    callback.current_score = state["current_score"]  # which a ModelCheckpoint forgets

    def lost(self) -> list[str]:
        """Returns the best of each ModelCheckpoint, by its path on a disk, where no such file is there any more."""
        paths = [str(getattr(callback, "best_model_path", None) or "") for callback in self._trainer.callbacks]
        return [path for path in paths if path and "://" not in path and not os.path.lexists(path)]

    def _states(self) -> list[tuple[str, Any]]:
        states = [(callback.state_key, _state_of(callback)) for callback in self._trainer.callbacks]
        return [(key, state) for key, state in states if state]


class LightningHooks:
    """The additions of users' `on_save_checkpoint` to a checkpoint, which `on_load_checkpoint` gets back.

    Args:
        trainer: The trainer.
        owners: Those that override the hook: callbacks, and the module.
    """

    def __init__(self, trainer: Any, owners: list[Any]) -> None:
        self._trainer = trainer
        self._owners = owners

    def state_dict(self) -> dict[str, Any]:
        """Calls the hooks as Lightning does when it saves; returns what they have added."""
        checkpoint = self._usual()
        usual = dict(checkpoint)
        self._call("on_save_checkpoint", checkpoint)
        return {key: value for key, value in checkpoint.items() if key not in usual}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Calls the hooks as Lightning does when it loads."""
        self._call("on_load_checkpoint", {**self._usual(), **state})

    def _usual(self) -> dict[str, Any]:
        trainer = self._trainer
        return {
            "epoch": trainer.current_epoch,
            "global_step": trainer.global_step,
            "state_dict": trainer.lightning_module.state_dict(),
            "callbacks": {},
            "loops": {},
            "optimizer_states": [],
            "lr_schedulers": [],
        }

    def _call(self, hook: str, checkpoint: dict[str, Any]) -> None:
        module = self._trainer.lightning_module
        for owner in self._owners:
            arguments = (checkpoint,) if owner is module else (self._trainer, module, checkpoint)
            getattr(owner, hook)(*arguments)


def progress_of(loop: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the progress of a loop and those inside, as its own `state_dict` would, but for loaders' states."""
    state: dict[str, Any] = {f"{prefix}state_dict": {}}
    if hasattr(loop, "_batches_that_stepped"):
        state[f"{prefix}state_dict"] = {"_batches_that_stepped": loop._batches_that_stepped}
    for name, value in vars(loop).items():
        if hasattr(value, "_restarting"):
            state.update(progress_of(value, f"{prefix}{name}."))
        elif type(value).__module__.endswith("loops.progress"):
            state[prefix + name] = value.state_dict()
    return state


def _state_of(callback: Any) -> dict[str, Any]:
    """Returns a callback's state; of a timer, the time that it takes back, which is that of training."""
    state: dict[str, Any] = callback.state_dict()
    if _is_timer(callback):
        return {"time_elapsed": {"train": state["time_elapsed"]["train"]}}
    return state


def _is_timer(callback: Any) -> bool:
    """Tells whether a callback is Lightning's `Timer`, which a trainer makes of its `max_time`."""
    return any(kind.__name__ == "Timer" for kind in type(callback).__mro__) and hasattr(callback, "time_remaining")


def _epoch(recorded: float | None, otherwise: int) -> int:
    """Returns an epoch in which Lightning has made loaders, where it has: it begins with minus infinity."""
    return otherwise if recorded is None or math.isinf(recorded) else int(recorded)


def _forget_restart(loop: Any) -> None:
    """Takes back that a loop is to restart: it goes on exactly where it was, which Lightning's own way does not."""
    loop._restarting = loop._loaded_from_state_dict = loop._resuming_from_checkpoint = False
    for value in vars(loop).values():
        if hasattr(value, "_restarting"):
            _forget_restart(value)
