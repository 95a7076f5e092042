"""The record of a Trainer at each stage: the small state, which changes between a boundary and the next update."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import Trainer, TrainerControl, TrainerState

from holdfast.capture.boundary import Boundary
from holdfast.devices.late import LateNumbers
from holdfast.integrations.trainer import callbacks, counters, token_counts, trl_state
from holdfast.integrations.trainer.best import elsewhere
from holdfast.integrations.trainer.counters import Counters
from holdfast.integrations.trainer.data import PrefetchState, PrefetchTracker
from holdfast.integrations.trainer.epochs import EpochAccounting
from holdfast.integrations.trainer.output_dir import OutputDirectory
from holdfast.integrations.trainer.outside import OutsideOfTrainer, TrainerOutside
from holdfast.integrations.trainer.position import WORD, TrainerPosition
from holdfast.integrations.trainer.settings import TrainerSettings
from holdfast.state.rng import state as rng_state
from holdfast.store import names
from holdfast.store.folder import Folder

PENDING_CALLBACKS = "pending_callbacks"
"""The word of a manifest's `requires` for a checkpoint before the `on_step_end` callbacks of its step."""


@dataclass(frozen=True)
class Pending:
    """The part of a step that was still to be done at its boundary. A resume does it before the next step."""

    log: bool = False
    evaluate: bool = False
    save: bool = False
    epoch_end: bool = False
    grad_norm: "torch.Tensor | float | None" = None
    learning_rate: float | None = None
    epoch: float = 0.0
    callbacks: Mapping[str, bool] | None = None
    """The control flags before the `on_step_end` callbacks, where these are still to be called; otherwise None."""

    def encode(self) -> dict[str, Any]:
        """Returns it as JSON, floats in hexadecimal."""
        later = {} if self.callbacks is None else {"callbacks": dict(self.callbacks)}
        return {
            **later,
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
    callbacks: callbacks.Exported
    random: rng_state.RngRecord
    counters: Counters
    pending: Pending
    fetched: PrefetchState | None
    position: TrainerPosition | None = None
    is_beyond_division: bool = False
    """True where a Trainer that knows the number of steps alone would come to another place in the data."""
    groups: Sequence[dict[str, Any]] = ()
    optimizer: Any = None
    """The result of the optimizer's own `state_dict`, where that has not the form of torch's."""
    schedule: Mapping[str, Any] = field(default_factory=dict)
    scaler: Mapping[str, Any] | None = None
    buffers: Any = None
    outside: OutsideOfTrainer | None = None
    written: Mapping[str, Any] = field(default_factory=dict)
    """The attributes that the trainer's own writer writes."""


class Watched(NamedTuple):
    """A trainer, and what follows those of its things that change by themselves."""

    trainer: Trainer
    """Prepared for training."""
    prefetch: PrefetchTracker
    """Watches its loader."""
    outside: TrainerOutside
    """Has what changes outside of the files that it writes itself."""
    epochs: EpochAccounting
    """Keeps its position in the data."""
    root: Folder
    """The run directory."""


class Recorder:
    """Records the small state of a trainer.

    Args:
        watched: The trainer.
        protected: The checkpoint that was resumed from, if any.
        rank: The rank of this process.
        world_size: The number of processes that train together.
    """

    def __init__(self, watched: Watched, protected: Sequence[Path], rank: int, world_size: int) -> None:
        self._trainer, self._prefetch, self._outside, self._epochs, self._root = watched
        self._left_beside: set[str] = set()
        self._not_left: list[str] = []
        self._resumed_from = list(protected)
        self._rank = rank
        self._world_size = world_size
        self._requires: Sequence[str] = ()
        self.uncarried = callbacks.UncarriedNumbers(watched.trainer)
        self.pending = Pending()
        self.elapsed: Callable[[], float] = time.monotonic
        self.given: TrainerSettings | None = None
        """The settings that its user gave it."""

    def begin(self, late: LateNumbers | None) -> None:
        """Takes in that training begins, and how it reads numbers of cards."""
        self._outside.begin(late)

    def record(self) -> TrainerRecord:
        """Records the small state, as of now."""
        trainer, position = self._trainer, self._epochs.record()
        if position is not None and position.inner:
            position = position._replace(inner_ahead=self._prefetch.inner_before)
        return TrainerRecord(
            token_counts.detached(copy.copy(trainer.state)),
            len(trainer.state.log_history),
            # Of all processes together; a Trainer adds them up, which takes a collective. Their batches are alike.
            float(trainer.current_flos) * self._world_size,
            copy.copy(trainer.control),
            callbacks.exported(trainer),
            rng_state.record(),
            counters.record(trainer, self.elapsed()),
            self.pending,
            self._prefetch.record(),
            position,
            position is not None and self._epochs.is_beyond_division(position),
            outside=self._outside.record(),
            written=trl_state.written(trainer),
        )

    def renewed(self, recorded: TrainerRecord) -> TrainerRecord:
        """Returns what was recorded: nobody asks a Trainer for a save in the middle of its loop."""
        return recorded

    def manifest_entry(self, recorded: TrainerRecord) -> Mapping[str, Any]:
        """Returns what a Trainer forgets, what of the step is still to be done, what was drawn for the batch ahead."""
        fetched = None if recorded.fetched is None else recorded.fetched.encode(recorded.random)
        data = None if recorded.position is None else recorded.position.encode()
        beyond_division = (WORD,) if recorded.is_beyond_division else ()
        self._requires = (*beyond_division, *((PENDING_CALLBACKS,) if recorded.pending.callbacks is not None else ()))
        entry = {**recorded.counters.encode(), "pending": recorded.pending.encode(), "fetched": fetched, "data": data}
        return {**entry, "uncarried": uncarried} if (uncarried := self.uncarried.changed()) else entry

    def is_weights_only(self, boundary: Boundary) -> bool:
        """Returns whether a boundary's checkpoint is the model alone: what the user wants of the schedule's saves.

        A save that somebody asks for, by a stop above all, is there to be resumed from.
        """
        return self._trainer.args.save_only_model and not boundary.is_wanted

    def requires(self) -> Sequence[str]:
        """Returns a word for each thing that a reader of version 1 would go wrong with."""
        return [*self._outside.requires, *self._requires]

    def news(self, step: int) -> str:
        """Returns a line for the user on what was just seen at a boundary; empty where there is none."""
        return self._outside.news(step)

    def not_carried(self) -> Sequence[str]:
        """Returns a text for each thing that the last checkpoint should carry and does not."""
        best = elsewhere(self._trainer.state)
        return [*self._outside.not_carried, *self._not_left, *([best] if best else [])]

    def output_dir(self, place: Path) -> OutputDirectory:
        """Returns a new private directory that the trainer takes for its `output_dir` while it writes.

        Args:
            place: The empty directory that it is made in.
        """
        return OutputDirectory(self._root, place, self._left_beside)

    def settings(self) -> Mapping[str, Any]:
        """Returns the settings that its user gave it."""
        return self.given.record() if self.given is not None else {}

    def protected(self, recorded: TrainerRecord) -> Sequence[Path]:
        """Returns what was resumed from, and the best as of the boundary that is saved.

        The path that the trainer's state has for the best is that of a save that it knows of, and may be an older one.
        """
        step = recorded.state.best_global_step
        best = [Path(self._trainer.args.output_dir, names.checkpoint(step))] if step else []
        return [*self._resumed_from, *best]
