"""A Trainer's checkpoint, exactly as its own writer makes it, of a boundary that training has left.

The small files are written by the trainer's `_save_checkpoint`, on its stand-in; the large ones are intercepted, and
become files-to-be that the engine fills from the live tensors.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, trainer_pt_utils

from holdfast.errors import SaveError
from holdfast.integrations.trainer.interception import intercepted, quietly
from holdfast.integrations.trainer.record import TrainerRecord
from holdfast.integrations.trainer.stand_in import name_the_best, stand_in_for
from holdfast.layouts import transformers as layout
from holdfast.layouts.image import Image
from holdfast.layouts.loadable import require_loadable
from holdfast.layouts.torch_zip import OptimizerFile
from holdfast.state.rng.state import RngRecord
from holdfast.store import names
from holdfast.store.folder import Folder, files_below


def write(
    trainer: Trainer,
    optimizer: torch.optim.Optimizer,
    record: TrainerRecord,
    replaced: Mapping[int, torch.Tensor],
    output_dir: Path,
    folder: Folder,
    optimizer_file: OptimizerFile,
    world_size: int = 1,
    *,
    weights_only: bool,
) -> Sequence[Image]:
    """Fills a directory with the small files, and returns the large ones.

    Args:
        trainer: The trainer.
        optimizer: Its optimizer, unwrapped.
        record: The small state of the boundary.
        replaced: Tensors that stand for others, by the data pointers of those: buffers, as they were.
        output_dir: The directory that the trainer takes for its `output_dir`.
        folder: The staging directory.
        optimizer_file: Knows the optimizer's file from the last save.
        world_size: The number of processes that train together. This one, the first, writes what they have alike.
        weights_only: True where the model alone is written.

    Raises:
        SaveError: The trainer left out something that a resume needs.
    """
    images: list[Image] = []
    stand_in = stand_in_for(trainer, record, output_dir, weights_only=weights_only)
    _take_over_the_rest(stand_in, optimizer, record, images, optimizer_file, world_size)
    root, written = Path(trainer.args.output_dir), output_dir / names.checkpoint(record.state.global_step)
    with quietly(stand_in, root), intercepted(images, replaced, written):
        type(trainer)._save_checkpoint(stand_in, trainer.model_wrapped, None)
    name_the_best(stand_in, written, root)
    for path in list(written.iterdir()):
        path.rename(folder.through / path.name)
    written.rmdir()
    to_come = [*(image.path for image in images), *layout.random_files(world_size)[1:]]
    require_complete(folder, to_come, world_size, weights_only=weights_only)
    return images


def random_image(random: RngRecord, rank: int, world_size: int) -> Image:
    """Returns the file of a process that is its own alone: its random state."""
    content = io.BytesIO()
    torch.save(random.as_transformers(every_device=world_size > 1), content)
    return Image(layout.random_files(world_size)[rank], (content.getvalue(),))


def require_complete(folder: Folder, to_come: Sequence[str], world_size: int, *, weights_only: bool) -> None:
    """Checks that a checkpoint has everything that a resume needs.

    Args:
        folder: The staging directory.
        to_come: The paths of files that are not there yet.
        world_size: The number of processes that train together.
        weights_only: True where it is the model alone.

    Raises:
        SaveError: Something is missing.
    """
    present = [*files_below(folder), *to_come]
    if missing := layout.missing(present, weights_only=weights_only, world_size=world_size):
        raise SaveError(f"the trainer did not write {', '.join(missing)}")


def _take_over_the_rest(
    stand_in: Any,
    optimizer: torch.optim.Optimizer,
    record: TrainerRecord,
    images: list[Image],
    optimizer_file: OptimizerFile,
    world_size: int,
) -> None:
    """Has the stand-in write optimizer, schedule, scaler and random state as they were recorded."""

    def save_optimizer_and_scheduler(output_dir: str) -> None:
        content = record.optimizer
        if content is None:
            content = optimizer.state_dict()
            content["param_groups"] = [
                {**group, **recorded} for group, recorded in zip(content["param_groups"], record.groups, strict=True)
            ]
        images.append(optimizer_file.image("optimizer.pt", content, Path(output_dir, "optimizer.pt")))
        _save(record.schedule, Path(output_dir, "scheduler.pt"))

    def save_scaler(output_dir: str) -> None:
        if record.scaler is not None:
            _save(_scaler_content(stand_in, record.scaler), Path(output_dir, "scaler.pt"))

    def save_random_state(output_dir: str) -> None:
        path = Path(output_dir, layout.random_files(world_size)[0])
        _save(record.random.as_transformers(every_device=world_size > 1), path, trainer_pt_utils.safe_globals)

    stand_in._save_optimizer_and_scheduler = save_optimizer_and_scheduler
    stand_in._save_scaler = save_scaler
    stand_in._save_rng_state = save_random_state


def _save(content: Any, path: Path, allowing: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
    torch.save(content, path)
    require_loadable(path, path.name, allowing)


def _scaler_content(trainer: Any, recorded: Mapping[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = dict(trainer.accelerator.scaler.state_dict())
    if recorded["_scale"] is not None:
        content["scale"] = float(recorded["_scale"])
        content["_growth_tracker"] = int(recorded["_growth_tracker"])
    return content
