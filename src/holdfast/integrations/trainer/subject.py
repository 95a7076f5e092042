"""The state of a Trainer, as the engine saves it: recorded at each stage, and written by a stand-in of the trainer."""

import copy
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from holdfast.capture.boundary import Boundary
from holdfast.capture.chunks import Image
from holdfast.capture.copying import why_not_live
from holdfast.capture.replicas import Content, Replicas
from holdfast.capture.subject import LiveSubject
from holdfast.errors import UnsupportedError
from holdfast.integrations.trainer import writer
from holdfast.integrations.trainer.held_path import in_words
from holdfast.integrations.trainer.record import Recorder, TrainerRecord, Watched
from holdfast.layouts import transformers as layout
from holdfast.layouts.torch_zip import OptimizerFile
from holdfast.state.layered_optimizer import LayeredOptimizerPart
from holdfast.state.model import ModelPart
from holdfast.state.optimizer import OptimizerPart
from holdfast.state.optimizer_layers import layers_of, unwrapped, with_inner
from holdfast.state.registry import parts_of
from holdfast.state.sharding import is_distributed
from holdfast.state.stated_optimizer import StatedOptimizerPart
from holdfast.store.folder import Folder


class TrainerSubject(Recorder):
    """A trainer whose state is read from its live tensors.

    Args:
        watched: The trainer.
        protected: The checkpoint that was resumed from, if any.
        rank: The rank of this process.
        world_size: The number of processes that train together.
    """

    layout = layout.NAME

    def __init__(self, watched: Watched, protected: Sequence[Path], rank: int, world_size: int) -> None:
        super().__init__(watched, protected, rank, world_size)
        trainer, outside = watched.trainer, watched.outside
        self.replicas = Replicas("a Trainer's checkpoint has what rank 0 holds, and no place for the others'")
        self._optimizer = unwrapped(trainer.optimizer)
        self._optimizer_file = OptimizerFile()
        beside = {"beside": _module_of(outside.updated)} if outside.updated else {}
        parts = parts_of({"model": trainer.model, **beside, "optimizer": self._optimizer})
        self._model, self._moments = parts[0], parts[-1]
        _require_complete_state_dict(self._optimizer)

    def as_live(self) -> LiveSubject:
        """Returns itself: its tensors are read from live memory."""
        return self

    def parameters(self) -> list[torch.Tensor]:
        """Returns what the optimizer updates, and the frozen rest of the model."""
        return list(self._model.live().values())

    def optimizers(self) -> list[object]:
        """Returns the trainer's, wrappers and those inside of them too."""
        return with_inner(self._trainer.optimizer)

    def moved(self) -> Sequence[str]:
        """Returns nothing: what a trainer does between two updates is no epoch's body of a loop."""
        return ()

    def structure(self) -> Hashable:
        """Returns something that differs when `live` would return other tensors."""
        if isinstance(self._moments, OptimizerPart | LayeredOptimizerPart):
            self._moments.look()  # a record has no moments, and the trainer's own writer takes those that are there
        return self._model.structure(), self._moments.structure()

    def live(self) -> dict[str, torch.Tensor]:
        """Returns the parameters and the optimizer's moments."""
        return {**self._model.live(), **self._live_moments()}

    def to_be_finite(self) -> dict[str, torch.Tensor]:
        """Returns all of that but large buffers of the model."""
        return {**self._weights(), **self._live_moments()}

    def copied_buffers(self) -> dict[str, int]:
        """Returns the large buffers of the model that were seen to change, and what else is copied like them."""
        assert isinstance(self._model, ModelPart)
        return {**self._model.moving_buffers, **self._outside.copied}

    def unreadable(self) -> str:
        """Says why the state can be read only while training stands still; empty where it can be read live."""
        return why_not_live(self.live())

    def record(self) -> TrainerRecord:
        """Records the small state, as of now."""
        return replace(
            super().record(),
            groups=[_without_parameters(group) for group in self._optimizer.param_groups],
            optimizer=self._moments.record() if isinstance(self._moments, StatedOptimizerPart) else None,
            schedule={name: copy.copy(value) for name, value in self._trainer.lr_scheduler.state_dict().items()},
            scaler=_scaler_state(self._trainer),
            buffers=self._model.record(),
        )

    def file_images(self, boundary: Boundary, folder: Folder) -> Sequence[Image]:
        """Returns the large files-to-be; the small ones are written by the trainer's own writer right away."""
        record: TrainerRecord = boundary.recorded
        directory = folder.through
        assert record.outside is not None
        carried = self._outside.images(record.outside)
        weights_only = self.is_weights_only(boundary)
        if self._rank:
            own = [] if weights_only else [writer.random_image(record.random, self._rank, self._world_size)]
            return [*own, *carried]
        buffers = self._model.encode(record.buffers).tensors
        named = dict(self._trainer.model.named_buffers())
        replaced = {named[name].data_ptr(): tensor for name, tensor in buffers.items() if name in named}
        with in_words(folder), self.output_dir(directory) as output_dir:
            written = writer.write(
                self._trainer,
                self._optimizer,
                record,
                replaced,
                output_dir.path,
                folder,
                self._optimizer_file,
                self._world_size,
                weights_only=weights_only,
            )
            self._not_left = output_dir.leave()
        return [*written, *carried]

    def not_carried(self) -> Sequence[str]:
        """Returns what the last save should have and has not."""
        names = self._moments.attributes() if isinstance(self._moments, LayeredOptimizerPart) else []
        why = "its state_dict leaves them out, and a Trainer resumes by that alone"
        return [*super().not_carried(), *([f"optimizer: {', '.join(names)} ({why})"] if names else [])]

    def layout_pieces(self) -> Mapping[str, Any]:
        """Returns none: one process writes all of the model."""
        return {}

    def contents(self, boundary: Boundary) -> Mapping[str, Content]:
        """Returns what of the model and the optimizer is compared with the other ranks: not buffers."""
        live = {"model": self._weights(), "optimizer": self._moments.live()}
        plain = {
            part: {name: tensor for name, tensor in tensors.items() if not is_distributed(tensor)}
            for part, tensors in live.items()
        }
        return {part: Content(None, {}, tensors) for part, tensors in plain.items()}

    def estimated_bytes(self) -> int:
        """Returns the bytes of the weights that are written, and of the optimizer's state."""
        if self._rank:
            return 0
        written = list(self._model.live().values())
        if hasattr(self._trainer.model, "peft_config"):  # an adapter's base model is not written
            written = [parameter for parameter in self.parameters() if parameter.requires_grad]
        moments = self._moments.live().values()
        return sum(tensor.nbytes for tensor in [*written, *moments]) + self._outside.bytes

    def _weights(self) -> dict[str, torch.Tensor]:
        live = self._model.live().items()
        return {name: tensor for name, tensor in live if isinstance(tensor, torch.nn.Parameter)}

    def _live_moments(self) -> dict[str, torch.Tensor]:
        return {f"optimizer.{name}": tensor for name, tensor in self._moments.live().items()}


def _module_of(weights: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """Returns a module that names weights which no model has: an optimizer's state goes by the names of its weights."""
    module = torch.nn.Module()
    for name, weight in weights.items():
        assert isinstance(weight, torch.nn.Parameter)
        module.register_parameter(name.replace(".", "/"), weight)
    return module


def _without_parameters(group: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in group.items() if k != "params"}


def _require_complete_state_dict(optimizer: Any) -> None:
    """Refuses an optimizer with state that its own `state_dict` leaves out: a Trainer resumes by that alone."""
    outside = [layer for layer in layers_of(optimizer) if layer.path and layer.form != "attributes"]
    own = getattr(optimizer, "state", None)
    if any(layer.optimizer.state is not own for layer in outside):
        raise UnsupportedError(
            f"optimizer: the state_dict of {type(optimizer).__qualname__} leaves out what its {outside[0].path} keeps,"
            " and a Trainer resumes by that alone",
            hint="use an optimizer whose state_dict has all of its state",
        )


def _scaler_state(trainer: Trainer) -> dict[str, Any] | None:
    """Returns the gradient scaler's state, its tensors cloned where they are: to read them waits for the device."""
    scaler = getattr(trainer.accelerator, "scaler", None)
    if scaler is None:
        return None
    values = {name: getattr(scaler, name) for name in ("_scale", "_growth_tracker")}
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in values.items()}
