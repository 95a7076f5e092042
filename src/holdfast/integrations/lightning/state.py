"""The state of a Lightning training, as the engine saves it: a plain loop's, with the parts of a trainer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from holdfast.errors import UnsupportedError
from holdfast.integrations.lightning.averaging import Schedules, averaging_of
from holdfast.integrations.lightning.data import LightningData
from holdfast.integrations.lightning.parts import (
    CALLBACKS,
    HOOKS,
    PROGRESS,
    LightningCallbacks,
    LightningHooks,
    LightningProgress,
)
from holdfast.loop.settings import LoopSettings
from holdfast.loop.subject import LoopRecord, LoopState
from holdfast.state import values
from holdfast.state.outside import Outside
from holdfast.state.reachable import known_of
from holdfast.state.registry import Parts, parts_of
from holdfast.state.secrets import blanked

_HYPERPARAMETERS = "hyper_parameters"


class LightningState(LoopState):
    """The state of a trainer's fit, once its optimizers are there.

    Args:
        trainer: The trainer.
        data: Its position in the data.
        progress: The progress of its loops.
        callbacks: The states of its callbacks.
        protected: Checkpoints that retention must not touch.
        rank: The rank of this process.
        world_size: The number of processes that train together.
        keep: Keeps the settings of a checkpoint, where that can be done.
        version: The version of Lightning.
    """

    def __init__(
        self,
        trainer: Any,
        data: LightningData,
        progress: LightningProgress,
        callbacks: LightningCallbacks,
        protected: Sequence[Path],
        rank: int,
        world_size: int,
        *,
        keep: bool,
        version: str,
    ) -> None:
        module = trainer.lightning_module
        named: dict[str, object] = {"model": module}
        named |= _numbered("optimizer", trainer.optimizers)
        if averaging_of(trainer) is None:
            named |= _numbered("scheduler", [config.scheduler for config in trainer.lr_scheduler_configs])
        else:
            named["schedulers"] = Schedules(trainer)
        named |= _of_precision(trainer.precision_plugin)
        if (datamodule := trainer.datamodule) is not None and datamodule.state_dict():
            named["datamodule"] = datamodule
        named |= {PROGRESS: progress, CALLBACKS: callbacks}
        owners = _with_own_hook(trainer)
        if owners:
            named[HOOKS] = LightningHooks(trainer, owners)
        self._trainer = trainer
        self.named = named
        parts = Parts(parts_of(named))
        super().__init__(parts, Outside(self._roots, self._known), {}, data, protected, rank, world_size)
        self._lightning_data = data
        content, self.left_out = hyperparameters_of(trainer)
        self._of_ckpt = {"version": version, "hyperparameters": content}
        self.given = LoopSettings(parts, keep=keep)

    def settings(self) -> Mapping[str, Any]:
        """Returns the settings that the script gives, and what a `.ckpt` says of the module's arguments."""
        return {**super().settings(), "lightning": self._of_ckpt}

    def _record_now(self) -> LoopRecord:
        recorded = super()._record_now()
        # Before the first batch nothing of the epoch has happened that a resume would not do again.
        begun = self._lightning_data.begun()
        return recorded if begun is None else recorded._replace(random=begun)

    def _roots(self) -> dict[str, object]:
        trainer = self._trainer
        roots = {"model": trainer.lightning_module, "datamodule": trainer.datamodule}
        return {**roots, "callbacks": {callback.state_key: callback for callback in trainer.callbacks}}

    def _known(self) -> dict[Any, str]:
        trainer = self._trainer
        machinery = {id(trainer): "trainer", id(trainer.strategy): "strategy", id(trainer.fit_loop): "fit_loop"}
        own = {name: value for name, value in self.named.items() if name not in (PROGRESS, CALLBACKS, HOOKS)}
        # A data module gives a part of itself, and what a callback gives is beside its tensors.
        own.pop("datamodule", None)
        return {**known_of(own), **machinery}


def hyperparameters_of(trainer: Any) -> tuple[dict[str, Any], list[str]]:
    """Returns what a `.ckpt` says of the arguments that a module was made with, as JSON, and the names left out."""
    module = trainer.lightning_module
    content: dict[str, Any] = {}
    left_out = []
    for name, value in dict(module.hparams or {}).items():
        tensors: dict[str, torch.Tensor] = {}
        try:
            encoded = values.encode(blanked({name: value})[name], str(name), tensors)
        except UnsupportedError:
            left_out.append(str(name))
            continue
        if tensors:
            left_out.append(str(name))
        else:
            content[str(name)] = encoded
    extra = {"hparams_name": module._hparams_name} if hasattr(module, "_hparams_name") else {}
    return ({**extra, _HYPERPARAMETERS: content} if content else {}), left_out


def _numbered(name: str, objects: Sequence[Any]) -> dict[str, object]:
    if len(objects) == 1:
        return {name: objects[0]}
    return {f"{name}_{number}": each for number, each in enumerate(objects)}


def _of_precision(plugin: Any) -> dict[str, object]:
    scaler = getattr(plugin, "scaler", None)
    if isinstance(scaler, torch.amp.GradScaler):
        return {"scaler": scaler}
    return {"precision": plugin} if plugin.state_dict() else {}


def _with_own_hook(trainer: Any) -> list[Any]:
    """Returns the callbacks of users that override `on_save_checkpoint`, and the module if it does."""
    candidates = [*trainer.callbacks, trainer.lightning_module]
    return [
        each
        for each in candidates
        if type(each).on_save_checkpoint.__module__.partition(".")[0] not in ("lightning", "pytorch_lightning")
    ]
