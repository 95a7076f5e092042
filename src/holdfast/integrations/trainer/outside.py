"""The state that a Trainer's own files leave out: tensors that move outside of the model, a generation buffer.

Read against transformers 5.23 and TRL 1.16.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from transformers import Trainer

from holdfast.devices.late import LateNumbers
from holdfast.engine.engine import Engine
from holdfast.errors import UnsupportedError
from holdfast.integrations.trainer import loss_components, trl_state
from holdfast.layouts import native
from holdfast.layouts.image import Image
from holdfast.layouts.native_reading import NativeReading
from holdfast.resume.choose import ResumePoint
from holdfast.state import values
from holdfast.state.gradients import Gradients, gradients_rest
from holdfast.state.module_tensors import identity, slots_of
from holdfast.state.outside import Carried, Outside, OutsideRecord, carried_rest, put_back
from holdfast.state.part import CARRIED, GRADIENTS, Stored
from holdfast.state.reachable import MOST_OBJECTS, known_of
from holdfast.store.folder import Folder
from holdfast.store.manifest import Manifest

_OF_STATE = "state/"
# Attributes that have a file of their own, are recorded as counters, hold samples, or are the training's machinery.
_PASSED_OVER = (
    "accelerator", "args", "callback_handler", "control", "eval_dataset", "lr_scheduler", "state", "train_dataset",
    "_tr_loss", trl_state.GENERATED, loss_components.NAME,
)  # fmt: skip

_OF_DEEPSPEED = ("deepspeed", "model_wrapped")


class OutsideOfTrainer(NamedTuple):
    """The state that is in no file of a Trainer's own, as it was at one boundary."""

    tensors: OutsideRecord | None
    state: Mapping[str, Any]
    gradients: Mapping[str, torch.Tensor] | None
    """Those of the weights that the optimizer updates beside the model's: a Trainer zeroes the model's alone."""


class TrainerOutside:
    """The state that changes outside of the files that a Trainer writes itself.

    Args:
        trainer: The trainer, prepared for training.
        rank: The rank of this process. The tensors are carried by rank 0, for all; a generation buffer by each.
    """

    def __init__(self, trainer: Trainer, rank: int) -> None:
        self._trainer = trainer
        self._rank = rank
        # DeepSpeed's engine has all that it needs in its own files, and its optimizer has flat copies of the weights.
        self._is_deepspeed = trainer.is_deepspeed_enabled
        passed_over = (*_PASSED_OVER, *_OF_DEEPSPEED) if self._is_deepspeed else _PASSED_OVER
        self._tensors = Outside(self._roots, self._known, passed_over)
        self._tensors.begin()
        self.updated = self._updated_by_optimizer()
        """The weights beside the model's that the optimizer updates, by the names of their places: those of a loss."""
        self._tensors.carry(self.updated)
        self._gradients = Gradients(others=self.updated)
        self.not_carried: Sequence[str] = ()
        """A text for each thing that the last checkpoint should carry and does not."""
        self.requires: Sequence[str] = ()
        """The words for what the last checkpoint carries."""

    @property
    def bytes(self) -> int:
        """The size of what a checkpoint would carry now."""
        return self._tensors.bytes if self._rank == 0 else 0

    @property
    def copied(self) -> Mapping[str, int]:
        """Large tensors that are copied at every boundary, and the bytes that each takes."""
        return self._tensors.copied

    def begin(self, late: LateNumbers | None) -> None:
        """Takes in how numbers of cards are read without waiting for them."""
        self._gradients.begin(late)

    def record(self) -> OutsideOfTrainer:
        """Records what changes, as of now. Called by training at every boundary."""
        return OutsideOfTrainer(
            self._tensors.record() if self._rank == 0 else None,
            {**trl_state.record(self._trainer), **loss_components.record(self._trainer)},
            self._gradients.record() if self._rank == 0 else None,
        )

    def news(self, step: int) -> str:
        """Returns a line for the user when gradients have just been seen to go over an update; empty otherwise."""
        return self._gradients.news(step)

    def images(self, recorded: OutsideOfTrainer) -> list[Image]:
        """Returns the files-to-be of this process; none where nothing has changed."""
        carried = Carried() if recorded.tensors is None else self._tensors.at_save(recorded.tensors)
        tensors, self.not_carried = dict(carried.tensors), list(carried.left_out)
        state: dict[str, Any] = {}
        for name, value in recorded.state.items():
            of_state: dict[str, torch.Tensor] = {}
            try:
                state[name] = values.encode(value, f"{_OF_STATE}{name}", of_state)
            except UnsupportedError as error:
                self.not_carried.append(f"{name}: {error}")
            else:
                tensors |= of_state
        written: list[tuple[str, Mapping[str, torch.Tensor], Stored]] = []
        if tensors or state:
            written.append((_stem(self._rank), tensors, Stored({}, carried_rest(state))))
        if recorded.gradients is None and self.updated:
            self._gradients.saved_without(self._trainer.state.global_step)
        elif recorded.gradients:
            written.append((GRADIENTS, recorded.gradients, Stored({}, gradients_rest())))
        self.requires = [name.partition("-")[0] for name, *_ in written]
        return native.images(written, {})

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
        for notice in self._put_back(chosen.folder, chosen.manifest, engine.world_size):
            engine.log.announce(notice, logging.WARNING)

    def _put_back(self, checkpoint: Folder, manifest: Manifest, world_size: int) -> list[str]:
        notices = self._gradients.restore(_read(checkpoint, manifest, GRADIENTS))
        beside = _read(checkpoint, manifest, CARRIED)
        if beside is None:
            return notices
        in_places = {name: t for name, t in beside.tensors.items() if not name.startswith(_OF_STATE)}
        notices += put_back(self._tensors, {CARRIED: Stored(in_places, beside.rest)})
        own = beside if self._rank == 0 else _read(checkpoint, manifest, _stem(self._rank))
        state = {} if own is None or not isinstance(own.rest, dict) else own.rest.get("state")
        if not state:
            return notices
        if manifest.world_size != world_size:
            return [*notices, f"{', '.join(state)}: belongs to a process among {manifest.world_size}, and begins anew"]
        recorded = values.decode(state, own.tensors if own is not None else {})
        trl_state.restore(self._trainer, recorded)
        loss_components.restore(self._trainer, recorded)
        return notices

    def _updated_by_optimizer(self) -> dict[str, torch.Tensor]:
        """Returns the weights that the optimizer updates and the model does not have.

        Raises:
            UnsupportedError: Some can be reached from nowhere, so that no checkpoint can carry them.
        """
        if self._is_deepspeed:
            return {}
        of_model = {id(weight) for weight in self._trainer.model.parameters()}
        groups: Any = getattr(self._optimizer, "param_groups", ())
        others = [weight for group in groups for weight in group["params"] if id(weight) not in of_model]
        places = self._tensors.places_of(others)
        lost = {id(weight): weight for weight in others} | {id(weight): None for weight in places.values()}
        if unreachable := [weight for weight in lost.values() if weight is not None]:
            raise UnsupportedError(
                f"the optimizer updates {len(unreachable)} weights (the first: {list(unreachable[0].shape)}) that are"
                " neither the model's nor an attribute of the trainer or a callback, so no checkpoint can carry them",
                hint="make the module that has them an attribute of the trainer (trainer.loss = loss) before train()",
            )
        return places

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

            adapters = [
                get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
                for name in model.peft_config
            ]
            written = {identity(tensor) for adapter in adapters for tensor in adapter.values()}
        else:
            written = {identity(slot.tensor) for slot in slots_of(model) if slot.kind != "cache"}
        named = {identity(slot.tensor): f"model.{slot.name}" for slot in slots_of(model)}
        return {**known, **{tensor: named.get(tensor, "model") for tensor in written}}


def _stem(rank: int) -> str:
    return f"{CARRIED}-{rank:05}" if rank else CARRIED


def _read(checkpoint: Folder, manifest: Manifest, stem: str) -> Stored | None:
    """Reads what one process carried; None where it carried nothing."""
    files = [file for file in manifest.files if file.path in (stem + native.REST, stem + native.TENSORS)]
    if not files:
        return None
    reading = NativeReading(checkpoint, files, {})
    reading.read()
    return {**reading.stored, **reading.beside}.get(stem)
