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
from holdfast.integrations.trainer.held_path import in_words
from holdfast.integrations.trainer.interception import quietly
from holdfast.integrations.trainer.record import Recorder, TrainerRecord, Watched
from holdfast.integrations.trainer.stand_in import name_the_best, stand_in_for
from holdfast.integrations.trainer.writer import random_image, require_complete
from holdfast.layouts import transformers as layout
from holdfast.state.rng.evaluation import evaluation
from holdfast.store import files, names
from holdfast.store.folder import Folder, walk

# AdamW's two moments of a parameter, in float32.
_MOMENTS_BYTES = 8


def form_of(trainer: Trainer) -> str:
    """Returns the form of the checkpoints that a trainer reads and writes, as `layouts.transformers.form` has it."""
    if trainer.is_deepspeed_enabled:
        return layout.DEEPSPEED
    return layout.FSDP if trainer.is_fsdp_enabled else layout.PLAIN


def why_own_writer(trainer: Trainer) -> str:
    """Says why only the trainer's own writer can read its state; empty where it can be read live."""
    form = form_of(trainer)
    return "" if form == layout.PLAIN else f"{form} keeps the state where its own collectives alone read it"


class OwnWriterSubject(Recorder):
    """The state of such a trainer: the small state, and a writer for the rest.

    Args:
        watched: The trainer.
        protected: The checkpoint that was resumed from, if any.
        rank: The rank of this process.
        world_size: The number of processes that train together.
        why: The reason why only its own writer can read its state.
        run_on_training_thread: Has the training thread run something where it stands, and waits for that.
    """

    layout = layout.NAME

    def __init__(
        self,
        watched: Watched,
        protected: Sequence[Path],
        rank: int,
        world_size: int,
        why: str,
        run_on_training_thread: Callable[[Callable[[], None]], None],
    ) -> None:
        super().__init__(watched, protected, rank, world_size)
        self._why = why
        self._run_on_training_thread = run_on_training_thread

    def as_live(self) -> None:
        """Returns None: only the trainer's own writer reads its tensors."""

    def unreadable(self) -> str:
        """Returns why the state can be read only while training stands still."""
        return self._why

    def file_images(self, boundary: Boundary, folder: Folder) -> Sequence[Image]:
        """Returns the random state's file. All else is written by the trainer when this returns."""
        record: TrainerRecord = boundary.recorded
        weights_only = self.is_weights_only(boundary)
        directory = folder.through
        with in_words(folder):
            self._run_on_training_thread(lambda: self._write(record, directory, weights_only=weights_only))
        if self._rank:
            _sync(folder)
        else:
            # The writer's own collectives let no rank end before what it needs of the others is there.
            to_come = layout.random_files(self._world_size)
            require_complete(folder, to_come, self._world_size, weights_only=weights_only)
        if weights_only:
            return []
        assert record.outside is not None
        carried = self._outside.images(record.outside)
        return [random_image(record.random, self._rank, self._world_size), *carried]

    def estimated_bytes(self) -> int:
        """Returns what all ranks write together: the weights, and an optimizer's state as AdamW has it."""
        if self._rank:
            return 0
        parameters: list[torch.Tensor] = list(self._trainer.model.parameters())
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        weights = sum(_elements(parameter) * parameter.itemsize for parameter in parameters)
        return weights + sum(map(_elements, trained)) * _MOMENTS_BYTES

    def _write(self, record: TrainerRecord, directory: Path, *, weights_only: bool) -> None:
        """Runs in the training thread. Whatever the writer draws at random, training draws as if it had not."""
        trainer = self._trainer
        # The trainer joins its folder and the checkpoint's name itself. Other ranks may still be writing when this one
        # is done, so that nothing could be moved up afterwards.
        root = Path(trainer.args.output_dir)
        with TemporaryDirectory(prefix="holdfast-") as folder, self.output_dir(Path(folder)) as output_dir:
            stand_in = stand_in_for(trainer, record, output_dir.path, weights_only=weights_only)
            stand_in._save_rng_state = lambda output_dir: None  # it may be further by now; the recorded one is written
            staged = output_dir.path / names.checkpoint(record.state.global_step)
            staged.symlink_to(directory, target_is_directory=True)
            with evaluation(), quietly(stand_in, root):
                type(trainer)._save_checkpoint(stand_in, trainer.model_wrapped, None)
            if not self._rank:
                name_the_best(stand_in, staged, root)
            staged.unlink()
            self._not_left = output_dir.leave()


def _elements(parameter: torch.Tensor) -> int:
    """Counts the elements of a parameter in all ranks together; under ZeRO-3 it is empty itself."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _sync(folder: Folder) -> None:
    """Syncs what this host still holds back of a shared file system: rank 0 can sync only what it sees."""
    for level in walk(folder):
        for name in level.others:
            # Other ranks may still be writing, and rename.
            with suppress(FileNotFoundError), files.open_regular(level.folder / name) as fd:
                os.fsync(fd)
        files.sync_directory(level.folder)
