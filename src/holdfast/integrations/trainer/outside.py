"""The state that a Trainer's own files leave out: tensors that move outside of the model, a generation buffer.

Read against transformers 5.23 and TRL 1.16.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import Trainer

from holdfast.engine.engine import Engine
from holdfast.errors import UnsupportedError
from holdfast.integrations.trainer import trl_state
from holdfast.layouts import native
from holdfast.layouts.image import Image
from holdfast.layouts.native_reading import NativeReading, open_checkpoint
from holdfast.resume.choose import ResumePoint
from holdfast.state import values
from holdfast.state.module_tensors import identity, slots_of
from holdfast.state.outside import Carried, Outside, OutsideRecord, carried_rest, put_back
from holdfast.state.part import CARRIED, Stored
from holdfast.state.reachable import MOST_OBJECTS, known_of
from holdfast.store.manifest import Manifest

_OF_STATE = "state/"
# Attributes that have a file of their own, are recorded as counters, hold samples, or are the training's machinery.
_PASSED_OVER = (
    "accelerator", "args", "callback_handler", "control", "eval_dataset", "lr_scheduler", "state", "train_dataset",
    "_tr_loss", *trl_state.ATTRIBUTES,
)  # fmt: skip


class OutsideOfTrainer(NamedTuple):
    """The state that is in no file of a Trainer's own, as it was at one boundary."""

    tensors: OutsideRecord | None
    state: Mapping[str, Any]


class TrainerOutside:
    """The state that changes outside of the files that a Trainer writes itself.

    Args:
        trainer: The trainer, prepared for training.
        rank: The rank of this process. The tensors are carried by rank 0, for all; a generation buffer by each.
    """

    def __init__(self, trainer: Trainer, rank: int) -> None:
        self._trainer = trainer
        self._rank = rank
        self._tensors = Outside(self._roots, self._known, _PASSED_OVER)
        self._tensors.begin()
        self.not_carried: Sequence[str] = ()
        """A text for each thing that the last checkpoint should carry and does not."""
        self.is_carried = False
        """True if the last checkpoint carries something."""

    @property
    def copied(self) -> Mapping[str, int]:
        """Large tensors that are copied at every boundary, and the bytes that each takes."""
        return self._tensors.copied

    def record(self) -> OutsideOfTrainer:
        """Records what changes, as of now. Called by training at every boundary."""
        return OutsideOfTrainer(
            self._tensors.record() if self._rank == 0 else None,
            trl_state.record(self._trainer),
        )

    def images(self, recorded: OutsideOfTrainer) -> list[Image]:
        """Returns the files-to-be of this process; none where nothing has changed."""
        carried = Carried() if recorded.tensors is None else self._tensors.at_save(recorded.tensors)
        tensors, self.not_carried = dict(carried.tensors), list(carried.left_out)
        of_state: dict[str, torch.Tensor] = {}
        state: Any = {}
        try:
            state = values.encode(dict(recorded.state), "state", of_state)
        except UnsupportedError as error:
            self.not_carried.append(f"{', '.join(recorded.state)}: {error}")
        else:
            tensors |= of_state
        self.is_carried = bool(tensors or state)
        if not self.is_carried:
            return []
        return native.images([(_stem(self._rank), tensors, Stored({}, carried_rest(state)))], {})

    def restore(self, engine: Engine, chosen: ResumePoint | None) -> None:
        """Puts back what a checkpoint carries, and says in a line what finds no place here.

        Args:
            engine: The open engine.
            chosen: The checkpoint that the training goes on from, if any.

        Raises:
            CheckpointError: What it carries cannot be read.
        """
        if not self._tensors.complete:
            engine.log.announce(
                f"{MOST_OBJECTS:,} objects and more can be reached: tensors in the rest are not watched",
                logging.WARNING,
            )
        if chosen is None or chosen.manifest is None:
            return
        for notice in self._put_back(chosen.path, chosen.manifest, engine.world_size):
            engine.log.announce(notice, logging.WARNING)

    def _put_back(self, checkpoint: Path, manifest: Manifest, world_size: int) -> list[str]:
        notices = []
        beside = _read(checkpoint, manifest, CARRIED)
        if beside is None:
            return []
        in_places = {name: t for name, t in beside.tensors.items() if not name.startswith(_OF_STATE)}
        notices += put_back(self._tensors, {CARRIED: Stored(in_places, beside.rest)})
        own = beside if self._rank == 0 else _read(checkpoint, manifest, _stem(self._rank))
        state = {} if own is None or not isinstance(own.rest, dict) else own.rest.get("state")
        if not state:
            return notices
        if manifest.world_size != world_size:
            return [*notices, f"{', '.join(state)}: belongs to a process among {manifest.world_size}, and begins anew"]
        trl_state.restore(self._trainer, values.decode(state, own.tensors if own is not None else {}))
        return notices

    @property
    def _optimizer(self) -> object:
        return getattr(self._trainer.optimizer, "optimizer", self._trainer.optimizer)

    def _roots(self) -> dict[str, object]:
        callbacks = self._trainer.callback_handler.callbacks
        return {
            "": self._trainer,
            "optimizer": self._optimizer,
            "callbacks": {type(callback).__name__: callback for callback in callbacks},
        }

    def _known(self) -> dict[Any, str]:
        """Returns what a Trainer's own files hold."""
        known, model = known_of({"optimizer": self._optimizer}), self._trainer.model
        if hasattr(model, "peft_config"):  # its base model is not written
            from peft import get_peft_model_state_dict

            adapters = get_peft_model_state_dict(model, save_embedding_layers=False)
            written = {identity(tensor) for tensor in adapters.values()}
        else:
            written = {identity(slot.tensor) for slot in slots_of(model) if slot.kind != "cache"}
        named = {identity(slot.tensor): f"model.{slot.name}" for slot in slots_of(model)}
        return {**known, **{tensor: named.get(tensor, "model") for tensor in written}}


def _stem(rank: int) -> str:
    return f"{CARRIED}-{rank:05}" if rank else CARRIED


def _read(checkpoint: Path, manifest: Manifest, stem: str) -> Stored | None:
    """Reads what one process carried; None where it carried nothing."""
    files = [file for file in manifest.files if file.path in (stem + native.REST, stem + native.TENSORS)]
    if not files:
        return None
    with open_checkpoint(checkpoint) as folder:
        reading = NativeReading(checkpoint, folder, files, {})
        reading.read()
    return {**reading.stored, **reading.beside}.get(stem)
