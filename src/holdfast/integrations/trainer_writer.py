"""Has a Trainer write its own checkpoint files, exactly those, into a staging directory."""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainingArguments

from holdfast.errors import SaveError
from holdfast.layouts import transformers as layout
from holdfast.store import names

Write = Callable[[Any, Any], None]


def write(trainer: Trainer, save_checkpoint: Write, directory: Path) -> None:
    """Fills `directory` with what the trainer's own `_save_checkpoint` writes.

    Args:
        trainer: The trainer, at a boundary.
        save_checkpoint: Its `_save_checkpoint`, a subclass's included.
        directory: An empty directory.

    Raises:
        SaveError: The trainer left out something that a resume needs.
    """
    with _redirected(trainer, directory):
        save_checkpoint(trainer.model_wrapped, None)
    (written,) = directory.iterdir()
    _name_the_best(trainer, written)
    for path in list(written.iterdir()):
        path.rename(directory / path.name)
    written.rmdir()
    found = [path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()]
    if lacking := layout.missing(found, weights_only=trainer.args.save_only_model):
        raise SaveError(f"the trainer did not write {', '.join(lacking)}")


def estimate(trainer: Trainer) -> int:
    """About how many bytes the files will take: the weights, and AdamW's two moments of those that are trained."""
    parameters = list(trainer.model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    # An adapter's base model is not written.
    written = trained if hasattr(trainer.model, "peft_config") else parameters
    return int(sum(p.nbytes for p in written) + 2 * sum(p.nbytes for p in trained))


@contextmanager
def _redirected(trainer: Trainer, directory: Path) -> Iterator[None]:
    args = trainer.args
    log = logging.getLogger("transformers.trainer")
    level = log.level
    log.info(f"Saving model checkpoint to {Path(args.output_dir, names.checkpoint(trainer.state.global_step))}")
    trainer.args = _without_secrets(args)
    trainer._get_output_dir = lambda trial=None: str(directory)
    log.setLevel(logging.WARNING)  # it would say the same of the staging directory
    try:
        yield
    finally:
        log.setLevel(level)
        del trainer._get_output_dir
        trainer.args = args


def _without_secrets(args: TrainingArguments) -> TrainingArguments:
    """The trainer pickles its arguments into `training_args.bin`, tokens and all. Nothing reads them from there."""
    safe = copy.copy(args)
    for name in vars(args):
        if "token" in name:
            setattr(safe, name, None)
    return safe


def _name_the_best(trainer: Trainer, written: Path) -> None:
    """The best checkpoint goes by its final name, not by the staging one that the trainer saw."""
    state = trainer.state
    if not state.best_global_step:
        return
    final = Path(trainer.args.output_dir, names.checkpoint(state.best_global_step))
    if state.best_global_step == state.global_step or final.is_dir():
        state.best_model_checkpoint = str(final)
        state.save_to_json(str(written / "trainer_state.json"))
