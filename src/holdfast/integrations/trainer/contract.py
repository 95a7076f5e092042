"""The names of transformers, accelerate, TRL and peft that no documentation promises, and that `attach` goes by.

Each with what it is for, in which versions it was seen, and what is lost without it. All are looked for before a
training begins: what is missing is said in a line where the training can do without, and is refused otherwise.
docs/design.md has what each buys. A name is there if its class or module has it, or the code of its class sets it:
some come to be when a training begins. Where something of ours is called in its place, its
parameters count as well.
"""

import dis
import functools
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from types import CodeType
from typing import Any

from packaging.version import Version

from holdfast.errors import UnsupportedError

SEEN = {"transformers": "5.14 to 5.24", "accelerate": "1.13 to 1.15", "trl": "1.8 to 1.16", "peft": "0.20 to 0.21"}
"""The versions that the tests are run with; each name was seen in all of them, unless it says otherwise."""

_TRAINER = "transformers.trainer.Trainer"
_HANDLER = "transformers.trainer_callback.CallbackHandler"
_LOADER = "accelerate.data_loader.DataLoaderShard"


@dataclass(frozen=True)
class Name:
    """One name.

    Args:
        owner: The module, or the class, that has it.
        name: The name.
        purpose: The reason why it is used.
        without: The loss where it is missing, in the words of the line.
        is_needed: True where no training is begun without it.
        since: The first version that has it, where older ones lose nothing without; empty otherwise.
        takes: The parameters that are handed on under these names.
    """

    owner: str
    name: str
    purpose: str
    without: str
    is_needed: bool = False
    since: str = ""
    takes: tuple[str, ...] = ()

    @property
    def package(self) -> str:
        """The package that has it."""
        return self.owner.partition(".")[0]

    @property
    def seen(self) -> str:
        """The versions in which it was seen."""
        first, _, last = SEEN[self.package].partition(" to ")
        return f"{self.since or first} to {last}"

    def __str__(self) -> str:
        return f"{self.owner.rpartition('.')[2]}.{self.name}"


def _needed(owner: str, name: str, purpose: str, without: str, *takes: str) -> Name:
    return Name(owner, name, purpose, without, is_needed=True, takes=takes)


_BOUNDARIES = "nothing would say when a step is whole"
_POSITION = "the position in the data could not be found again"
_LIVE = "a save would read what training is changing"
_LOADED_IN_WORDS = "an error of its loading comes in the words of transformers"
_SUMS = "the next logged loss after a resume, and that of the whole training, may differ"
_OF_PREPARED = "the position in a loader that accelerate has prepared may be another after a resume"

CONTRACT = (
    # The end of a step, of an epoch, of a training: the boundaries.
    _needed(
        _TRAINER, "_maybe_log_save_evaluate", "the stages at the end of a step", _BOUNDARIES,
        "tr_loss", "grad_norm", "model", "trial", "epoch", "ignore_keys_for_eval", "start_time", "learning_rate",
    ),
    _needed(_TRAINER, "_finalize_training", "the end, and that a training that was stopped has no summary", _BOUNDARIES,
            "trial", "num_train_samples", "start_time"),
    _needed(_HANDLER, "on_step_end", "the state before the callbacks of a step", _BOUNDARIES,
            "args", "state", "control"),
    _needed(_HANDLER, "on_save", "callbacks that learn of a save after its commit", _BOUNDARIES,
            "args", "state", "control"),
    _needed(_HANDLER, "callbacks", "their state", "the state of callbacks would be lost"),
    # The trainer's own writer, on the stand-in.
    _needed(_TRAINER, "_save_checkpoint", "the checkpoint's own form, a subclass's too", _LIVE, "model", "trial"),
    _needed(_TRAINER, "_save_optimizer_and_scheduler", "both as of the boundary", _LIVE, "output_dir"),
    _needed(_TRAINER, "_save_scaler", "it as of the boundary", _LIVE, "output_dir"),
    _needed(_TRAINER, "_save_rng_state", "it as of the boundary", _LIVE, "output_dir"),
    _needed(_TRAINER, "_get_output_dir", "the directory that is staged", "a save would not be committed", "trial"),
    _needed(_TRAINER, "store_flos", "no collective in the thread that saves", "a save could wait for other ranks"),
    _needed(_TRAINER, "current_flos", "the count of operations", "it would be lost"),
    _needed("transformers.modeling_utils", "safe_save_file", "weights that stream", _LIVE),
    _needed("peft.peft_model", "safe_save_file", "adapters that stream", _LIVE),
    _needed("transformers.trainer_pt_utils", "safe_globals", "the check that rng_state.pth can be loaded", _LIVE),
    _needed(_TRAINER, "is_deepspeed_enabled", "who can read the state", _LIVE),
    _needed(_TRAINER, "is_fsdp_enabled", "who can read the state", _LIVE),
    # The position in the data, and the random state.
    _needed(_TRAINER, "set_initial_training_values", "how many steps and epochs there are", _POSITION,
            "args", "dataloader"),
    _needed(_TRAINER, "_init_training_state", "the epoch that a resume begins with", _POSITION),
    _needed(
        _TRAINER, "_run_epoch", "what is left of that epoch, and that a training that has ended takes no step",
        _POSITION, "epoch", "epochs_trained", "steps_in_epoch", "num_update_steps_per_epoch",
        "steps_trained_in_current_epoch", "resume_from_checkpoint",
    ),
    _needed(_TRAINER, "_load_rng_state", "the moment at which a resume has come to its boundary", _POSITION,
            "checkpoint"),
    _needed(_HANDLER, "train_dataloader", "the loader that training goes through", _POSITION),
    Name(_LOADER, "base_dataloader", "the loader beneath", _OF_PREPARED),
    Name("accelerate.data_loader", "BatchSamplerShard", "what each process takes of a batch", _OF_PREPARED),
    Name("accelerate.data_loader", "SeedableRandomSampler", "an order that can be computed again", _OF_PREPARED),
    Name("accelerate.data_loader", "DataLoaderDispatcher", "a loader that one process reads", _OF_PREPARED),
    # What a trainer forgets at a resume.
    Name(_TRAINER, "_tr_loss", "the sum since the last line of the log", _SUMS),
    Name(_TRAINER, "_total_loss_scalar", "the sum of the whole training", _SUMS),
    Name(_TRAINER, "_globalstep_last_logged", "the step of the last line of the log", _SUMS),
    Name(_TRAINER, "_initial_global_step", "the steps that the loss of the whole training is divided by",
         "the loss of the whole training may differ after a resume", since="5.19"),
    Name(_TRAINER, "_get_grad_norm", "the norm, for a step whose callbacks raise or outlast a stop",
         "the log of a step that was broken off in its callbacks lacks its grad_norm after a resume"),
    # Loading: what the user has changed, errors in words.
    _needed(_TRAINER, "_load_optimizer_and_scheduler", "settings that follow the user",
            "a learning rate or a schedule that you change would not hold after a resume", "checkpoint"),
    Name(_TRAINER, "_train_batch_size", "a batch size that is kept with resume_settings: keep",
         "resume_settings: keep does not keep the batch size"),
    Name(_TRAINER, "_load_from_checkpoint", "errors in words", _LOADED_IN_WORDS),
    Name(_TRAINER, "_load_scaler", "errors in words", _LOADED_IN_WORDS),
    Name(_TRAINER, "_load_callback_state", "errors in words", _LOADED_IN_WORDS),
    Name(_TRAINER, "_load_best_model", "the best model from the directory that was verified",
         "the best model is loaded by its path at the end: somebody may exchange it after it was verified"),
    Name("transformers.modeling_utils.PreTrainedModel", "_keys_to_ignore_on_save", "weights that no checkpoint has",
         "a checkpoint may be refused for weights that no checkpoint has: attach(trainer, strict=False) takes it"),
    # `holdfast train`.
    Name("transformers.configuration_utils.PreTrainedConfig", "_attn_implementation", "packed rows of `holdfast train`",
         "packing goes row by row"),
    Name("transformers.modeling_utils.PreTrainedModel", "_is_stateful", "packed rows of `holdfast train`",
         "packing goes row by row"),
    # The hub.
    Name(_TRAINER, "_push_from_checkpoint", "pushes of finished checkpoints", "no checkpoint is pushed to the hub"),
    Name(_TRAINER, "push_in_progress", "what became of a push", "no checkpoint is pushed to the hub"),
    Name("transformers.trainer", "hf_api", "uploads without what Holdfast keeps beside",
         "what is pushed to the hub has files of Holdfast's in it"),
    # Speed alone.
    Name("peft.peft_model", "ModelCard", "a card that is rendered once", "each save of adapters takes twice as long"),
    # TRL's own state.
    Name("trl.trainer.sft_trainer.SFTTrainer", "_metrics", "metrics since the last line of the log",
         "the metrics of the next line of the log after a resume may differ"),
    Name("trl.trainer.sft_trainer.SFTTrainer", "_total_train_tokens", "the count of tokens",
         "num_tokens in the log begins anew after a resume"),
    Name("trl.trainer.grpo_trainer.GRPOTrainer", "_step", "the place in what was generated",
         "what was generated and not yet trained on is generated anew after a resume"),
    Name("trl.trainer.grpo_trainer.GRPOTrainer", "_buffered_inputs", "what was generated",
         "what was generated and not yet trained on is generated anew after a resume"),
    Name("trl.trainer.grpo_trainer.GRPOTrainer", "_logs", "the texts of the last generation, with log_completions",
         "the table of log_completions is empty until the next generation after a resume"),
    Name("trl.trainer.grpo_trainer.GRPOTrainer", "_last_world_entropy", "use_adaptive_entropy as of the boundary",
         "the coefficient of use_adaptive_entropy may be that of the next step after a resume"),
    Name("trl.experimental.orpo.orpo_trainer.ORPOTrainer", "_stored_metrics", "metrics since the last line of the log",
         "the metrics of the next line of the log after a resume may differ"),
)  # fmt: skip
"""All of them."""


def require(trainer: Any) -> None:
    """Refuses a trainer whose libraries lack what no training can be saved without.

    Args:
        trainer: The trainer.

    Raises:
        UnsupportedError: They do.
    """
    lacking = [name for name in missing(trainer) if name.is_needed]
    if not lacking:
        return
    first = lacking[0]
    more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
    raise UnsupportedError(
        f"{_lack(first, type(trainer))}{more}: {first.without}",
        hint=f"Holdfast was run with {first.package} {SEEN[first.package]}: install one of these, or a newer Holdfast",
    )


def lesser_promises(trainer: Any) -> list[str]:
    """Returns a line for each loss where names are missing that the training can do without."""
    lines: dict[str, str] = {}
    for name in missing(trainer):
        lines.setdefault(name.without, f"{_lack(name, type(trainer))}: {name.without}")
    return list(lines.values())


def missing(trainer: Any) -> list[Name]:
    """Returns the names that the libraries of a trainer lack.

    Args:
        trainer: The trainer. Libraries that this process has not loaded are not asked, nor are trainers of others.
    """
    return [name for name in CONTRACT if _is_asked(name, type(trainer)) and not is_there(name, type(trainer))]


def lacks(trainer: Any, *names: str) -> bool:
    """Tells whether one of these names of a Trainer's own is missing."""
    return any(name.name in names and name.owner == _TRAINER for name in missing(trainer))


def is_there(name: Name, kind: type = object) -> bool:
    """Tells whether the installed version has a name, or is one that loses nothing without it.

    Args:
        name: The name.
        kind: The class of the trainer that is asked for.
    """
    if name.since and Version(metadata.version(name.package)) < Version(name.since):
        return True
    owner = _owner(name, kind)
    if not hasattr(owner, name.name):
        return isinstance(owner, type) and _is_set_by(owner, name.name)
    return not name.takes or set(name.takes) <= inspect.signature(getattr(owner, name.name)).parameters.keys()


def _is_asked(name: Name, kind: type) -> bool:
    if name.package == "trl":
        return _base(name, kind) is not None
    return name.package in sys.modules


def _owner(name: Name, kind: type) -> Any:
    """Returns the module or the class that should have a name; None where it is gone itself."""
    module, _, last = name.owner.rpartition(".")
    if (base := _base(name, kind)) is not None:
        return base
    return sys.modules.get(name.owner) or getattr(sys.modules.get(module), last, None)


def _base(name: Name, kind: type) -> type | None:
    """Returns the class among those of a trainer that should have a name: packages move them between modules."""
    last = name.owner.rpartition(".")[2]
    theirs = [base for base in kind.__mro__ if base.__module__.partition(".")[0] == name.package]
    return next((base for base in theirs if base.__name__ == last), None)


def _lack(name: Name, kind: type) -> str:
    lacks = "has another" if hasattr(_owner(name, kind), name.name) else "has no"
    return f"{name.package} {metadata.version(name.package)} {lacks} {name}"


def _is_set_by(kind: type, name: str) -> bool:
    """Tells whether the code of a class sets an attribute."""
    return any(
        step.opname == "STORE_ATTR" and step.argval == name
        for code in _codes(kind)
        if name in code.co_names
        for step in dis.get_instructions(code)
    )


@functools.cache
def _codes(kind: type) -> tuple[CodeType, ...]:
    codes: list[CodeType] = []
    for base in kind.__mro__[:-1]:
        for value in vars(base).values():
            function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            if callable(function) and isinstance(code := getattr(inspect.unwrap(function), "__code__", None), CodeType):
                codes += _with_inner(code)
    return tuple(codes)


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_inner(constant)
