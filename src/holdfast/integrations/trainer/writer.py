"""A Trainer's checkpoint, exactly as its own writer makes it, of a boundary that training has left.

The trainer's `_save_checkpoint`, a subclass's included, runs on a stand-in: a shallow copy of the trainer that shows
the state that was recorded. The small files are written by it; the large ones are intercepted, and become files to be
that the engine fills from the live tensors.
"""

import copy
import io
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from holdfast.errors import SaveError
from holdfast.integrations.trainer.secrets import SaveWithoutSecrets, pickled_blank
from holdfast.layouts import torch_zip as torch_file
from holdfast.layouts import transformers as layout
from holdfast.layouts.image import Image
from holdfast.layouts.safetensors import writing as tensor_file
from holdfast.state.rng import state as random_state
from holdfast.store import names

if TYPE_CHECKING:
    from holdfast.integrations.trainer.record import TrainerRecord

# What `StepHooks` puts in the trainer's own place; the stand-in has the trainer's own again.
REPLACED = ("train", "_maybe_log_save_evaluate", "_save_checkpoint", "_finalize_training", "_load_rng_state")

_intercepting = threading.local()


def write(
    trainer: Trainer,
    optimizer: torch.optim.Optimizer,
    recorded: "TrainerRecord",
    instead: Mapping[int, torch.Tensor],
    directory: Path,
    optimizer_file: torch_file.OptimizerFile,
    world_size: int = 1,
) -> Sequence[Image]:
    """Fills `directory` with the small files, and gives the large ones.

    Args:
        trainer: The trainer.
        optimizer: Its optimizer, unwrapped.
        recorded: The small state of the boundary.
        instead: Tensors that stand for others, by the data pointers of those: buffers, as they were.
        directory: An empty directory.
        optimizer_file: Knows the optimizer's file from the last save.
        world_size: How many processes train together. This one, the first, writes what they have alike.

    Raises:
        SaveError: The trainer left out something that a resume needs.
    """
    stand_in = stand_in_for(trainer, recorded, directory)
    images: list[Image] = []

    def save_optimizer_and_scheduler(output_dir: str) -> None:
        content = optimizer.state_dict()
        content["param_groups"] = [
            {**group, **then} for group, then in zip(content["param_groups"], recorded.groups, strict=True)
        ]
        images.append(optimizer_file.image("optimizer.pt", content, Path(output_dir, "optimizer.pt")))
        torch.save(recorded.schedule, Path(output_dir, "scheduler.pt"))

    def save_scaler(output_dir: str) -> None:
        if recorded.scaler is not None:
            torch.save(_scaler(trainer, recorded.scaler), Path(output_dir, "scaler.pt"))

    stand_in._save_optimizer_and_scheduler = save_optimizer_and_scheduler
    stand_in._save_scaler = save_scaler
    random, *others = layout.random_files(world_size)
    stand_in._save_rng_state = lambda output_dir: torch.save(
        recorded.random.as_transformers(every_device=world_size > 1), Path(output_dir, random)
    )
    with quietly(stand_in), _intercepted(images, instead, directory / names.checkpoint(recorded.state.global_step)):
        type(trainer)._save_checkpoint(stand_in, trainer.model_wrapped, None)
    (written,) = (path for path in directory.iterdir() if path.is_dir())
    name_the_best(stand_in, written)
    for path in list(written.iterdir()):
        path.rename(directory / path.name)
    written.rmdir()
    found = [path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()]
    found += [*(image.path for image in images), *others]
    if lacking := layout.missing(found, weights_only=trainer.args.save_only_model, world_size=world_size):
        raise SaveError(f"the trainer did not write {', '.join(lacking)}")
    return images


def random_image(random: random_state.RngRecord, rank: int, world_size: int) -> Image:
    """The file of a process that is its own alone: its random state."""
    content = io.BytesIO()
    torch.save(random.as_transformers(every_device=world_size > 1), content)
    return Image(layout.random_files(world_size)[rank], (content.getvalue(),))


@contextmanager
def quietly(stand_in: Any) -> Iterator[None]:
    """The trainer's log names the checkpoint that is to be, and not where it is staged."""
    final = Path(stand_in.args.output_dir, names.checkpoint(stand_in.state.global_step))
    if stand_in.args.should_save:
        logging.getLogger("transformers.trainer").info(f"Saving model checkpoint to {final}")
    _intercepting.quiet = True
    try:
        yield
    finally:
        _intercepting.quiet = False


@contextmanager
def interceptors() -> Iterator[None]:
    """As long as this is open, the writers of safetensors can be intercepted in the thread that saves.

    Where peft is there, its model card is rendered once.
    """
    import safetensors.torch
    from transformers import modeling_utils

    replaced: list[tuple[Any, str, Callable[[Any], Any]]] = [
        (safetensors.torch, "save_file", _diverting),
        (modeling_utils, "safe_save_file", _diverting),
    ]
    try:
        from peft import peft_model
    except ImportError:
        pass
    else:
        from holdfast.integrations.trainer.peft_card import BlankCard

        replaced += [(peft_model, "safe_save_file", _diverting), (peft_model, "ModelCard", lambda own: BlankCard)]
    before = [(place, name, getattr(place, name)) for place, name, _ in replaced]
    for place, name, replacement in replaced:
        setattr(place, name, replacement(getattr(place, name)))
    quiet = _Quiet()
    log = logging.getLogger("transformers.trainer")
    log.addFilter(quiet)
    try:
        yield
    finally:
        log.removeFilter(quiet)
        for place, name, own in before:
            setattr(place, name, own)


def _diverting(own: Any) -> Any:
    def save_file(tensors: dict[str, torch.Tensor], filename: Any, metadata: dict[str, str] | None = None) -> None:
        taken = getattr(_intercepting, "taken", None)
        if taken is None:
            own(tensors, filename, metadata)
            return
        images, instead, written = taken
        content = {name: instead.get(tensor.data_ptr(), tensor) for name, tensor in tensors.items()}
        path = Path(filename).relative_to(written).as_posix()
        images.append(tensor_file.image(path, content, metadata or {}))

    return save_file


@contextmanager
def _intercepted(images: list[Image], instead: Mapping[int, torch.Tensor], written: Path) -> Iterator[None]:
    _intercepting.taken = (images, instead, written)
    try:
        yield
    finally:
        _intercepting.taken = None


class _Quiet(logging.Filter):
    """Keeps the staging directory's name out of the log; the final one is said when the checkpoint is there."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(_intercepting, "quiet", False)


def stand_in_for(trainer: Trainer, recorded: "TrainerRecord", folder: Path) -> Any:
    """A trainer to all appearances, whose state is what was recorded, and whose checkpoints go into another folder."""
    stand_in = copy.copy(trainer)
    for name in REPLACED:
        stand_in.__dict__.pop(name, None)
    if isinstance(vars(stand_in).get("_save"), SaveWithoutSecrets):
        del stand_in._save  # the arguments below are to be pickled already
    state = copy.copy(recorded.state)
    state.log_history = state.log_history[: recorded.logged]
    state.total_flos += recorded.flos
    state.stateful_callbacks = copy.deepcopy(state.stateful_callbacks)
    for name, exported in recorded.callbacks:
        if isinstance(state.stateful_callbacks.get(name), list):
            state.stateful_callbacks[name].append(exported)
        else:
            state.stateful_callbacks[name] = exported
    stand_in.state = state
    stand_in.control = recorded.control
    stand_in.callback_handler = copy.copy(trainer.callback_handler)
    stand_in.callback_handler.callbacks = []  # their states are recorded above
    stand_in.args = _without_what_comes_after(trainer.args)
    stand_in.store_flos = lambda: None
    stand_in._get_output_dir = lambda trial=None: str(folder)

    def save_model(*args: Any, **kwargs: Any) -> None:
        type(trainer).save_model(stand_in, *args, **kwargs)
        # The search for the best checkpoint, which would come next, begins with a collective. It is `name_the_best`'s.
        stand_in.args.save_strategy = SaveStrategy.NO

    stand_in.save_model = save_model
    return stand_in


def _without_what_comes_after(args: TrainingArguments) -> TrainingArguments:
    """What is done with a finished checkpoint, pushing and rotating, is not the writer's business."""
    only_written = pickled_blank(args)
    only_written.push_to_hub = False
    only_written.save_total_limit = None
    return only_written


def name_the_best(stand_in: Any, written: Path) -> None:
    """In the state that was written, the best checkpoint goes by its final name."""
    state, args = stand_in.state, stand_in.args
    if state.best_global_step:
        final = Path(args.output_dir, names.checkpoint(state.best_global_step))
        if state.best_global_step == state.global_step or final.is_dir():
            state.best_model_checkpoint = str(final)
            state.save_to_json(str(written / "trainer_state.json"))


def _scaler(trainer: Trainer, recorded: Mapping[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = dict(trainer.accelerator.scaler.state_dict())
    if recorded["_scale"] is not None:
        content["scale"] = float(recorded["_scale"])
        content["_growth_tracker"] = int(recorded["_growth_tracker"])
    return content
