"""The stand-in of a trainer: a shallow copy that shows the state of a boundary that training has left.

The trainer's own `_save_checkpoint`, a subclass's included, runs on it, and writes what was recorded there.
"""

import copy
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from holdfast.integrations.trainer.callbacks import by_name
from holdfast.integrations.trainer.record import TrainerRecord
from holdfast.integrations.trainer.secrets import pickled_blank, with_values_of
from holdfast.state.secrets import blanked
from holdfast.store import names
from holdfast.store.references import step_of_best

REPLACED = (
    "_maybe_log_save_evaluate",
    "_save_checkpoint",
    "_finalize_training",
    "_load_rng_state",
    "_get_grad_norm",
)
"""The methods that `StepHooks` replaces; the stand-in has the trainer's own again."""


def stand_in_for(trainer: Trainer, record: TrainerRecord, folder: Path, *, weights_only: bool) -> Any:
    """Returns a trainer to all appearances, whose state is what was recorded.

    Args:
        trainer: The trainer.
        record: The small state of the boundary.
        folder: The directory that it takes for its `output_dir`.
        weights_only: True where it writes the model alone.
    """
    stand_in = copy.copy(trainer)
    for name in ("train", "_load_optimizer_and_scheduler", *REPLACED):
        stand_in.__dict__.pop(name, None)
    vars(stand_in).update(record.written)
    stand_in.state = _state(record)
    stand_in.control = record.control
    stand_in.callback_handler = copy.copy(trainer.callback_handler)
    stand_in.callback_handler.callbacks = []  # their states are recorded above
    stand_in.args = _arguments(trainer.args, folder, weights_only=weights_only)
    stand_in.store_flos = lambda: None
    stand_in._get_output_dir = lambda trial=None: str(folder)

    def save_model(*args: Any, **kwargs: Any) -> None:
        type(trainer).save_model(stand_in, *args, **kwargs)
        # The search for the best checkpoint, which would come next, begins with a collective. It is `name_the_best`'s.
        stand_in.args.save_strategy = SaveStrategy.NO

    stand_in.save_model = save_model
    return stand_in


def name_the_best(stand_in: Any, written: Path, root: Path) -> None:
    """Gives the best checkpoint its final name in the state that was written, which names no other directory.

    Args:
        stand_in: The trainer's stand-in, after it has written.
        written: The directory that it has written into.
        root: The run directory.
    """
    state = stand_in.state
    recorded = state.best_model_checkpoint
    if state.best_global_step:
        final = Path(root, names.checkpoint(state.best_global_step))
        if state.best_global_step == state.global_step or final.is_dir():
            state.best_model_checkpoint = str(final)
    if step_of_best(state.best_model_checkpoint) is None:
        state.best_model_checkpoint = None
    if state.best_model_checkpoint != recorded or state.best_global_step:
        state.save_to_json(str(written / "trainer_state.json"))


def _state(record: TrainerRecord) -> TrainerState:
    state = copy.copy(record.state)
    state.log_history = state.log_history[: record.logged]
    state.total_flos += record.flos
    state.stateful_callbacks = blanked({**state.stateful_callbacks, **by_name(record.callbacks)})
    return state


def _arguments(args: TrainingArguments, folder: Path, *, weights_only: bool) -> TrainingArguments:
    """Returns a copy that does nothing with a finished checkpoint: pushing and rotating are not the writer's business.

    Args:
        args: The user's.
        folder: The directory that is to be their `output_dir`; they are pickled with their own.
        weights_only: True where the model alone is written.
    """
    writing_only = _elsewhere(pickled_blank(args), str(folder))
    writing_only.push_to_hub = False
    writing_only.save_total_limit = None
    writing_only.save_only_model = weights_only
    return writing_only


def _elsewhere(args: TrainingArguments, folder: str) -> TrainingArguments:
    """Returns a copy of arguments that has another `output_dir` for all who ask it or set it.

    It is pickled, and shown as a text or a dictionary, with its own: whoever writes that writes it for later.
    """
    own_class, own = type(args), {name: value for name, value in vars(args).items() if name == "output_dir"}

    def as_own(self: TrainingArguments) -> Any:
        values = {name: value for name, value in vars(self).items() if name != "output_dir"}
        return with_values_of(self, own_class, values | own)

    def set_output_dir(self: TrainingArguments, path: str) -> None:
        vars(self)["output_dir"] = path

    changed = {
        "output_dir": property(lambda self: vars(self)["output_dir"], set_output_dir),
        "__reduce_ex__": lambda self, protocol: as_own(self).__reduce_ex__(protocol),
        "to_dict": lambda self: as_own(self).to_dict(),
        "__str__": lambda self: str(as_own(self)),
        "__repr__": lambda self: repr(as_own(self)),
    }
    kind = type(own_class.__name__, (own_class,), {**changed, "__module__": own_class.__module__})
    writing: TrainingArguments = with_values_of(args, kind, {**vars(args), "output_dir": folder})
    return writing
