"""The record of a Trainer at each stage: the small state, which changes between a boundary and the next update."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerControl, TrainerState
from transformers.trainer_callback import ExportableState

from holdfast.integrations.trainer import counters as trainer_counters
from holdfast.integrations.trainer.counters import Counters
from holdfast.integrations.trainer.data import PrefetchState, PrefetchTracker
from holdfast.state.rng import state as random_state
from holdfast.store import names


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
class TrainerRecord:
    """The small state of a trainer at one stage."""

    state: TrainerState
    logged: int
    flos: float
    control: TrainerControl
    callbacks: tuple[tuple[str, dict[str, Any]], ...]
    random: random_state.RngRecord
    counters: Counters
    pending: Pending
    fetched: PrefetchState | None
    groups: Sequence[dict[str, Any]] = ()
    schedule: Mapping[str, Any] = field(default_factory=dict)
    scaler: Mapping[str, Any] | None = None
    buffers: Any = None


class Recorder:
    """Records the small state of a trainer.

    Args:
        trainer: The trainer, prepared for training.
        fetching: Its loader, watched.
        protected: The checkpoint that was resumed from, if any.
        world_size: How many processes train together.
    """

    def __init__(self, trainer: Trainer, fetching: PrefetchTracker, protected: Sequence[Path], world_size: int) -> None:
        self._trainer = trainer
        self._fetching = fetching
        self._spared = list(protected)
        self._world_size = world_size
        self._exported = [cb for cb in trainer.callback_handler.callbacks if isinstance(cb, ExportableState)]
        self.pending = Pending()
        self.elapsed: Callable[[], float] = time.monotonic

    def record(self) -> TrainerRecord:
        """The small state, as of now."""
        trainer = self._trainer
        return TrainerRecord(
            copy.copy(trainer.state),
            len(trainer.state.log_history),
            # Of all processes together; a Trainer adds them up, which takes a collective. Their batches are alike.
            float(trainer.current_flos) * self._world_size,
            copy.copy(trainer.control),
            tuple((type(callback).__name__, callback.state()) for callback in self._exported),
            random_state.record(),
            trainer_counters.record(trainer, self.elapsed()),
            self.pending,
            self._fetching.record(),
        )

    def manifest_entry(self, recorded: TrainerRecord) -> Mapping[str, Any]:
        """What a Trainer forgets, what of the step is still to be done, and what was drawn for the batch ahead."""
        fetched = None if recorded.fetched is None else recorded.fetched.encode(recorded.random)
        return {**recorded.counters.encode(), "pending": recorded.pending.encode(), "fetched": fetched}

    def protected(self, recorded: TrainerRecord) -> Sequence[Path]:
        """What was resumed from, and the best as of the boundary that is saved.

        The path that the trainer's state has for the best is that of a save it was told of, and may be an older one.
        """
        best = recorded.state.best_global_step
        found = [Path(self._trainer.args.output_dir, names.checkpoint(best))] if best else []
        return [*self._spared, *found]
