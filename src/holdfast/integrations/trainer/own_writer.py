"""Trainers whose state nothing but their own collectives can read: DeepSpeed, and FSDP through accelerate.

Their own writer fills the staging directory, in the training threads of all ranks together, while training stands at a
boundary. It runs on the same stand-in as for other trainers; nothing is intercepted.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import Trainer

from holdfast.capture.boundary import Boundary
from holdfast.capture.chunks import Image
from holdfast.errors import SaveError
from holdfast.integrations.trainer import writer as trainer_writer
from holdfast.integrations.trainer.data import PrefetchTracker
from holdfast.integrations.trainer.record import Recorder, TrainerRecord
from holdfast.layouts import transformers as layout
from holdfast.state.rng.evaluation import evaluation
from holdfast.store import names

# AdamW's two moments of a parameter, in float32.
_MOMENTS_BYTES = 8


def form_of(trainer: Trainer) -> str:
    """The form of the checkpoints that a trainer reads and writes, as `layouts.transformers.form` has it."""
    if trainer.is_deepspeed_enabled:
        return layout.DEEPSPEED
    return layout.FSDP if trainer.is_fsdp_enabled else layout.PLAIN


def why(trainer: Trainer) -> str:
    """Why only the trainer's own writer can read its state; empty where it can be read live."""
    form = form_of(trainer)
    return "" if form == layout.PLAIN else f"{form} keeps the state where its own collectives alone read it"


class OwnWriterSubject(Recorder):
    """What such a trainer consists of: the small state, and a writer for the rest.

    Args:
        trainer: The trainer, prepared for training.
        fetching: Its loader, watched.
        protected: The checkpoint that was resumed from, if any.
        rank: Which of the processes that train together this is.
        world_size: How many there are.
        why: Why only its own writer can read its state.
        run_on_training_thread: Has the blocked training thread do something, and waits for that.
    """

    layout = layout.NAME

    def __init__(
        self,
        trainer: Trainer,
        fetching: PrefetchTracker,
        protected: Sequence[Path],
        rank: int,
        world_size: int,
        why: str,
        run_on_training_thread: Callable[[Callable[[], None]], None],
    ) -> None:
        super().__init__(trainer, fetching, protected, world_size)
        self._rank = rank
        self._why = why
        self._run_on_training_thread = run_on_training_thread

    def as_live(self) -> None:
        """Returns None: only the trainer's own writer reads its tensors."""

    def unreadable(self) -> str:
        """Returns why the state can be read only while training stands still."""
        return self._why

    def file_images(self, boundary: Boundary, directory: Path) -> Sequence[Image]:
        """The random state. All else is written by the trainer when this returns."""
        recorded: TrainerRecord = boundary.recorded
        self._run_on_training_thread(lambda: self._write(recorded, directory))
        if self._rank:
            _sync(directory)
        else:
            self._require_whole(directory)
        if self._trainer.args.save_only_model:
            return []
        return [trainer_writer.random_image(recorded.random, self._rank, self._world_size)]

    def estimated_bytes(self) -> int:
        """What all ranks write together: the weights, and an optimizer's state as AdamW has it."""
        if self._rank:
            return 0
        parameters: list[torch.Tensor] = list(self._trainer.model.parameters())
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        weights = sum(_count(parameter) * parameter.itemsize for parameter in parameters)
        return weights + sum(map(_count, trained)) * _MOMENTS_BYTES

    def _write(self, recorded: TrainerRecord, directory: Path) -> None:
        """Runs in the training thread. Whatever the writer draws at random, training draws as if it had not."""
        trainer = self._trainer
        # The trainer joins its folder and the checkpoint's name itself. Other ranks may still be writing when this one
        # is done, so that nothing could be moved up afterwards.
        with TemporaryDirectory(prefix="holdfast-") as folder:
            stand_in = trainer_writer.stand_in_for(trainer, recorded, Path(folder))
            stand_in._save_rng_state = lambda output_dir: None  # it may be further by now; the recorded one is written
            staged = Path(folder, names.checkpoint(recorded.state.global_step))
            staged.symlink_to(directory.absolute(), target_is_directory=True)
            with evaluation(), trainer_writer.quietly(stand_in):
                type(trainer)._save_checkpoint(stand_in, trainer.model_wrapped, None)
            if not self._rank:
                trainer_writer.name_the_best(stand_in, staged)

    def _require_whole(self, directory: Path) -> None:
        """The writer's own collectives let no rank end before what it needs of the others is there."""
        found = [path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()]
        found += layout.random_files(self._world_size)
        weights_only = self._trainer.args.save_only_model
        if lacking := layout.missing(found, weights_only=weights_only, world_size=self._world_size):
            raise SaveError(f"the trainer did not write {', '.join(lacking)}")


def _count(parameter: torch.Tensor) -> int:
    """How many elements a parameter has in all ranks together; under ZeRO-3 it is empty itself."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _sync(directory: Path) -> None:
    """What this host still holds back of a shared file system, rank 0, which syncs all it sees, cannot send off."""
    for path in directory.rglob("*"):
        with suppress(FileNotFoundError):  # other ranks may still be writing, and rename
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
