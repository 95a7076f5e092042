"""The state of a Trainer, as the engine saves it: recorded at each face, and written by a stand-in of the trainer."""

import copy
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerControl, TrainerState
from transformers.trainer_callback import ExportableState

from holdfast.capture import random_state, readable
from holdfast.capture.boundary import Boundary
from holdfast.capture.model_part import ModelPart
from holdfast.capture.state import parts_of
from holdfast.capture.stream import Image
from holdfast.integrations import trainer_counters, trainer_writer
from holdfast.integrations.trainer_counters import Counters
from holdfast.integrations.trainer_data import Fetched, Fetching
from holdfast.layouts import transformers as layout


@dataclass(frozen=True)
class Pending:
    """What of a step was still to be done at its boundary. A resume does it before the next step."""

    log: bool = False
    evaluate: bool = False
    save: bool = False
    epoch_end: bool = False
    grad_norm: "torch.Tensor | float | None" = None
    learning_rate: float | None = None
    epoch: float = 0.0

    def encode(self) -> dict[str, Any]:
        """As JSON, floats in hexadecimal."""
        return {
            "log": self.log,
            "evaluate": self.evaluate,
            "save": self.save,
            "epoch_end": self.epoch_end,
            "grad_norm": None if self.grad_norm is None else float(self.grad_norm).hex(),
            "learning_rate": None if self.learning_rate is None else float(self.learning_rate).hex(),
            "epoch": self.epoch,
        }


@dataclass(frozen=True)
class Recorded:
    """The small state of a trainer at one face."""

    state: TrainerState
    logged: int
    flos: float
    control: TrainerControl
    callbacks: tuple[tuple[str, dict[str, Any]], ...]
    groups: list[dict[str, Any]]
    schedule: dict[str, Any]
    scaler: dict[str, Any] | None
    random: random_state.Recorded
    buffers: Any
    counters: Counters
    pending: Pending
    fetched: Fetched | None


class TrainerSubject:
    """What a trainer consists of.

    Args:
        trainer: The trainer, prepared for training.
        fetching: Its loader, watched.
        spared: The checkpoint that was resumed from, if any.
        rank: Which of the processes that train together this is.
        world_size: How many there are.
    """

    layout = layout.NAME

    def __init__(
        self, trainer: Trainer, fetching: Fetching, spared: Sequence[Path], rank: int = 0, world_size: int = 1
    ) -> None:
        self._trainer = trainer
        self._fetching = fetching
        self._spared = list(spared)
        self._rank = rank
        self._world_size = world_size
        self._optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        self._model, self._moments = parts_of({"model": trainer.model, "optimizer": self._optimizer})
        self._exported = [cb for cb in trainer.callback_handler.callbacks if isinstance(cb, ExportableState)]
        self.pending = Pending()
        self.elapsed: Callable[[], float] = time.monotonic

    def parameters(self) -> list[torch.Tensor]:
        """What the optimizer updates, and the frozen rest of the model."""
        return list(self._model.live().values())

    def structure(self) -> Hashable:
        """Differs when `live` would give other tensors."""
        return self._model.structure(), self._moments.structure()

    def live(self) -> dict[str, torch.Tensor]:
        """The parameters and the optimizer's moments."""
        moments = {f"optimizer.{name}": tensor for name, tensor in self._moments.live().items()}
        return {**self._model.live(), **moments}

    def copied_buffers(self) -> dict[str, int]:
        """Large buffers of the model that were seen to change."""
        assert isinstance(self._model, ModelPart)
        return self._model.moving_buffers

    def unreadable(self) -> str:
        """Why the state can be read only while training stands still."""
        return readable.why_not(self.live())

    def record(self) -> Recorded:
        """The small state, as of now."""
        trainer = self._trainer
        return Recorded(
            copy.copy(trainer.state),
            len(trainer.state.log_history),
            # Of all processes together; a Trainer adds them up, which takes a collective. Their batches are alike.
            float(trainer.current_flos) * self._world_size,
            copy.copy(trainer.control),
            tuple((type(callback).__name__, callback.state()) for callback in self._exported),
            [_without_parameters(group) for group in self._optimizer.param_groups],
            {name: copy.copy(value) for name, value in trainer.lr_scheduler.state_dict().items()},
            _scaler_state(trainer),
            random_state.record(),
            self._model.record(),
            trainer_counters.record(trainer, self.elapsed()),
            self.pending,
            self._fetching.record(),
        )

    def small(self, recorded: Recorded) -> Mapping[str, Any]:
        """What a Trainer forgets, what of the step is still to be done, and what was drawn for the batch ahead."""
        fetched = None if recorded.fetched is None else recorded.fetched.encode(recorded.random)
        return {**recorded.counters.encode(), "pending": recorded.pending.encode(), "fetched": fetched}

    def images(self, boundary: Boundary, directory: Path) -> Sequence[Image]:
        """The large files to be; the small ones are written by the trainer's own writer right away."""
        recorded: Recorded = boundary.recorded
        if self._rank:
            return [trainer_writer.random_image(recorded.random, self._rank)]
        buffers = self._model.encode(recorded.buffers).tensors
        named = dict(self._trainer.model.named_buffers())
        instead = {named[name].data_ptr(): tensor for name, tensor in buffers.items() if name in named}
        return trainer_writer.write(self._trainer, self._optimizer, recorded, instead, directory, self._world_size)

    def pieces(self) -> Mapping[str, Any]:
        """None: one process writes all of the model."""
        return {}

    def estimate(self) -> int:
        """The weights that are written, and the optimizer's state."""
        if self._rank:
            return 0
        written = list(self._model.live().values())
        if hasattr(self._trainer.model, "peft_config"):  # an adapter's base model is not written
            written = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return sum(t.nbytes for t in written) + sum(t.nbytes for t in self._moments.live().values())

    def spared(self) -> Sequence[Path]:
        """What was resumed from, and the best."""
        best = self._trainer.state.best_model_checkpoint
        return [*self._spared, *([Path(best)] if best else [])]


def _without_parameters(group: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in group.items() if k != "params"}


def _scaler_state(trainer: Trainer) -> dict[str, Any] | None:
    """The gradient scaler's state, its tensors cloned where they are: asking for their values waits for the device."""
    scaler = getattr(trainer.accelerator, "scaler", None)
    if scaler is None:
        return None
    values = {name: getattr(scaler, name) for name in ("_scale", "_growth_tracker")}
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in values.items()}
