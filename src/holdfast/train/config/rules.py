"""The rules between keys: which contradict, which need another, which have no effect beside another."""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from holdfast.arguments import AUTO, LOCAL
from holdfast.train.config import choices
from holdfast.train.config.fields import TrainConfig
from holdfast.train.config.schedule import DEFAULT_STEPS


@dataclass(frozen=True)
class Finding:
    """Something to say about several keys at once.

    Args:
        keys: The keys it follows from. It is said of the first.
        text: The line about it.
    """

    keys: tuple[str, ...]
    text: str


def contradictions(config: TrainConfig, keys: AbstractSet[str]) -> Iterator[Finding]:
    """Finds what keeps keys from being used together.

    Args:
        config: The configuration.
        keys: The keys that were given a value; the others have their defaults.
    """
    yield from _excluded(keys)
    yield from _saving(config)
    yield from _evaluation(config)
    yield from _adapter(config)
    yield from _quantization(config)
    if config.bf16 is True and config.fp16:
        yield Finding(("fp16", "bf16"), "cannot be true together with bf16: true")
    if config.auto_resume_from_checkpoints and config.resume_from_checkpoint not in (None, True, AUTO, LOCAL):
        yield Finding(
            ("resume_from_checkpoint", "auto_resume_from_checkpoints"),
            "contradicts auto_resume_from_checkpoints: true, which resumes the newest checkpoint",
        )


def notices(config: TrainConfig, keys: AbstractSet[str]) -> Iterator[Finding]:
    """Finds the keys that do not do what they seem to, for a user to know."""
    if "dynamic_checkpoint" in keys and not config.dynamic_checkpoint.enabled:
        yield Finding(
            ("dynamic_checkpoint",),
            "there but not enabled: the trigger file is not looked at; 'enabled: true' turns it on",
        )
    for prefix, per_epoch in (("save", "saves_per_epoch"), ("eval", "evals_per_epoch")):
        counted = keys & {f"{prefix}_steps", per_epoch}
        if getattr(config, f"{prefix}_strategy") == "steps" and not counted:
            yield Finding((f"{prefix}_strategy",), f"acts every {DEFAULT_STEPS} steps: {prefix}_steps is not given")
    if config.save_schedule.strategy == "no" and not config.save_minutes and "save_total_limit" in keys:
        yield Finding(("save_total_limit",), "no effect: nothing is saved on schedule with save_strategy: no")
    if config.evals_per_epoch and not config.val_set_size:
        yield Finding(("evals_per_epoch",), "no effect: val_set_size is 0, so there is nothing to evaluate on")
    if config.max_steps and "num_epochs" in keys:
        yield Finding(
            ("num_epochs",),
            "max_steps decides when the run ends; num_epochs only scales saves_per_epoch, evals_per_epoch",
        )
    if config.warmup and config.lr_scheduler in choices.SCHEDULERS_WITHOUT_WARMUP:
        key = "warmup_steps" if config.warmup_steps else "warmup_ratio"
        yield Finding((key,), f"no effect: the scheduler {config.lr_scheduler!r} has no warm-up")
    yield from _idle_lora(config)


def _excluded(keys: AbstractSet[str]) -> Iterator[Finding]:
    for key, other in (
        ("save_steps", "saves_per_epoch"),
        ("eval_steps", "evals_per_epoch"),
        ("warmup_ratio", "warmup_steps"),
    ):
        if {key, other} <= keys:
            yield Finding((key, other), f"cannot be given together with {other}")


def _saving(config: TrainConfig) -> Iterator[Finding]:
    for key, value in (("save_steps", config.save_steps), ("saves_per_epoch", config.saves_per_epoch)):
        if value and config.save_strategy in ("no", "epoch"):
            yield Finding((key, "save_strategy"), f"needs save_strategy: steps, which is {config.save_strategy!r}")


def _evaluation(config: TrainConfig) -> Iterator[Finding]:
    for key, value in (("eval_steps", config.eval_steps), ("evals_per_epoch", config.evals_per_epoch)):
        if value and config.eval_strategy in ("no", "epoch"):
            yield Finding((key, "eval_strategy"), f"needs eval_strategy: steps, which is {config.eval_strategy!r}")
    if config.evals_per_epoch == 0 and config.eval_strategy in ("steps", "epoch"):
        yield Finding(("evals_per_epoch", "eval_strategy"), f"0 contradicts eval_strategy: {config.eval_strategy}")
    if not config.val_set_size:
        nothing = "needs a val_set_size greater than 0: there is nothing to evaluate on"
        if config.eval_steps:
            yield Finding(("eval_steps", "val_set_size"), nothing)
        if config.eval_strategy in ("steps", "epoch"):
            yield Finding(("eval_strategy", "val_set_size"), nothing)
    if config.lr_scheduler in choices.SCHEDULERS_THAT_WATCH_THE_LOSS and config.eval_schedule.strategy == "no":
        yield Finding(
            ("lr_scheduler", "val_set_size", "eval_strategy", "eval_steps", "evals_per_epoch"),
            f"{config.lr_scheduler!r} follows the loss of evaluations, and there are none",
        )


def _adapter(config: TrainConfig) -> Iterator[Finding]:
    if config.adapter is None:
        if config.lora_model_dir:
            yield Finding(("lora_model_dir", "adapter"), "needs adapter: lora")
        return
    if config.lora_model_dir:  # it brings its own
        return
    for key, value in (("lora_r", config.lora_r), ("lora_alpha", config.lora_alpha)):
        if not value:
            yield Finding(("adapter", key), f"{config.adapter!r} needs {key}")
    if not config.lora_target_modules and not config.lora_target_linear:
        yield Finding(
            ("adapter", "lora_target_modules", "lora_target_linear"),
            f"{config.adapter!r} needs lora_target_modules, or lora_target_linear: true",
        )


def _quantization(config: TrainConfig) -> Iterator[Finding]:
    if config.adapter == "qlora" and not config.load_in_4bit:
        yield Finding(("adapter", "load_in_4bit"), "'qlora' needs load_in_4bit: true")
    if config.adapter == "qlora" and config.load_in_8bit:
        yield Finding(("load_in_8bit", "adapter"), "contradicts adapter: qlora, which is in 4 bits")
    elif config.load_in_4bit and config.load_in_8bit:
        yield Finding(("load_in_8bit", "load_in_4bit"), "cannot be true together with load_in_4bit: true")
    asked = [key for key in ("load_in_4bit", "load_in_8bit") if getattr(config, key)]
    obstacle = _no_quantization_here() if asked else None
    for key in asked:
        if config.adapter is None:
            yield Finding((key, "adapter"), "needs an adapter: weights in so few bits cannot be trained themselves")
        if obstacle:
            yield Finding((key,), obstacle)


def _no_quantization_here() -> str | None:
    if not choices.has_bitsandbytes():
        return "needs the package bitsandbytes, which is not installed"
    import torch  # takes seconds, which only those pay who ask for this

    return None if torch.cuda.is_available() else "needs a CUDA device, and there is none"


def _idle_lora(config: TrainConfig) -> Iterator[Finding]:
    lora = [key for key in TrainConfig.model_fields if key.startswith("lora_") and getattr(config, key)]
    if config.adapter is None:
        why = "adapter is not set, and all weights are trained"
    elif config.lora_model_dir:
        lora.remove("lora_model_dir")
        why = "the adapter in lora_model_dir brings its own"
    else:
        return
    if lora:
        yield Finding(tuple(lora), f"no effect{_and_neither(lora[1:])}: {why}")


def _and_neither(others: list[str]) -> str:
    return f" (nor {', '.join(others)})" if others else ""
