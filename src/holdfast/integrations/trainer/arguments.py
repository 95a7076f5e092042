"""The arguments of a Trainer that training depends on, and those of them that a resume can take from a checkpoint.

Read against transformers 5.23 and TRL 1.16.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import SchedulerType

from holdfast.errors import CheckpointError
from holdfast.integrations.trainer.secrets import pickled_blank
from holdfast.state.recorded_settings import Change, readable
from holdfast.text import quoted

# Read anew when training begins, so that what is put there holds. Of a Trainer whose batches are made of others
# (`generation_batch_size`), the sizes were worked out before.
_OF_OPTIMIZER = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")
_OF_SCHEDULE = (
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "warmup_ratio",
    "num_train_epochs",
    "max_steps",
)
_OF_BATCHES = ("per_device_train_batch_size", "gradient_accumulation_steps")
_KEPT = (*_OF_OPTIMIZER, *_OF_SCHEDULE, *_OF_BATCHES, "max_grad_norm")

_RECORDED = (
    *_KEPT,
    # transformers
    "optim",
    "optim_args",
    "optim_target_modules",
    "label_smoothing_factor",
    "neftune_noise_alpha",
    "seed",
    "data_seed",
    "bf16",
    "fp16",
    "tf32",
    "torch_compile",
    "use_liger_kernel",
    "full_determinism",
    "auto_find_batch_size",
    "train_sampling_strategy",
    "group_by_length",
    "dataloader_drop_last",
    "dataloader_num_workers",
    "ignore_data_skip",
    "metric_for_best_model",
    "greater_is_better",
    # TRL
    "max_length",
    "truncation_mode",
    "shuffle_dataset",
    "packing",
    "packing_strategy",
    "padding_free",
    "completion_only_loss",
    "assistant_only_loss",
    "disable_dropout",
    "router_aux_loss_coef",
    "loss_type",
    "loss_weights",
    "beta",
    "label_smoothing",
    "ld_alpha",
    "f_divergence_type",
    "f_alpha_divergence_coef",
    "use_weighting",
    "discopop_tau",
    "desirable_weight",
    "undesirable_weight",
    "center_rewards_coefficient",
    "sync_ref_model",
    "ref_model_mixup_alpha",
    "ref_model_sync_steps",
    "num_generations",
    "max_completion_length",
    "generation_batch_size",
    "steps_per_generation",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "num_iterations",
    "epsilon",
    "epsilon_high",
    "delta",
    "importance_sampling_level",
    "reward_weights",
    "scale_rewards",
    "mask_truncated_completions",
    "top_entropy_quantile",
    "entropy_coef",
)

DATA = "train_dataset"
"""The name of what is no argument, and gives the number of steps all the same."""

# The arguments that the keys of an optimizer's groups, and a schedule's numbers, come from.
_SOURCES = {
    "lr": ("learning_rate",),
    "weight_decay": ("weight_decay",),
    "betas": ("adam_beta1", "adam_beta2"),
    "eps": ("adam_epsilon",),
}


def record(args: TrainingArguments) -> dict[str, Any]:
    """Returns the arguments that training depends on, as JSON."""
    return readable({name: getattr(args, name) for name in _RECORDED if hasattr(args, name)})


def can_be_kept(args: TrainingArguments, name: str) -> bool:
    """Tells if an argument can be taken from a checkpoint: it is read when training begins."""
    return name in _KEPT and not (name in _OF_BATCHES and hasattr(args, "generation_batch_size"))


def as_recorded(args: TrainingArguments, changed: Iterable[Change]) -> TrainingArguments:
    """Returns arguments with the values that a checkpoint has for them.

    Raises:
        CheckpointError: One is no value for its argument.
    """
    kept = copy.copy(pickled_blank(args))
    for change in changed:
        name, value = change.path[0], change.before
        if None not in (value, change.now) and _kind(value) is not _kind(change.now):
            raise CheckpointError(f"the checkpoint's {name} cannot be kept: {quoted(value)} is no value for it")
        try:
            setattr(kept, name, SchedulerType(value) if name == "lr_scheduler_type" else value)
        except ValueError as error:
            raise CheckpointError(f"the checkpoint's {name} cannot be kept: {error}") from error
    return kept


def _kind(value: Any) -> type:
    return float if isinstance(value, int | float) else type(value)


def is_of_optimizer(name: str) -> bool:
    """Tells if an argument is one of the optimizer or of its schedule."""
    return name in (*_OF_OPTIMIZER, *_OF_SCHEDULE)


def explain(changed: Iterable[str], path: Sequence[str]) -> bool:
    """Tells if arguments that were changed, and are named, are what changed a hyperparameter.

    Args:
        changed: The names of the arguments.
        path: Where the hyperparameter is: `optimizer.lr`, `optimizer.groups.1.lr`, `scheduler.function...`.
    """
    if path[0] == "scheduler":
        sources: tuple[str, ...] = (*_OF_SCHEDULE, *_OF_BATCHES, "learning_rate", DATA)
    else:
        sources = _SOURCES.get(path[3] if path[1] == "groups" else path[1], ())
    return not set(sources).isdisjoint(changed)
