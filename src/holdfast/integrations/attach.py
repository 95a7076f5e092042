"""`holdfast.attach(trainer)`: the one verb for every trainer, each with what it takes to save and resume it."""

from typing import Any, Literal, TypeVar, Unpack

from holdfast.engine.on_published import Hook
from holdfast.errors import ConfigError
from holdfast.integrations.strangers import refusal_of
from holdfast.settings import SettingsKwargs

_Trainer = TypeVar("_Trainer")

TRANSFORMERS = ("transformers",)
LIGHTNING = ("lightning", "pytorch_lightning")


def attach(
    trainer: _Trainer,
    *,
    keep_every: int | None = None,
    save_steps: int | None = None,
    save_total_limit: int | None = None,
    strict: bool = True,
    on_stop: Literal["exit", "return"] = "exit",
    on_saved: Hook | None = None,
    on_saved_all_ranks: bool = False,
    **settings: Unpack[SettingsKwargs],
) -> _Trainer:
    """Makes a trainer save on demand without stopping, commit its checkpoints, and resume from verified ones.

    `trainer.train(resume_from_checkpoint=...)` of a transformers Trainer, and `trainer.fit(ckpt_path=...)` of a
    Lightning one, then also take `"auto"`: the newest checkpoint that verifies, or a start from zero where there is
    none.

    Args:
        trainer: A `transformers.Trainer` or a subclass (TRL, sentence-transformers), or a `lightning.Trainer`, before
            it trains.
        keep_every: Keep the checkpoints whose step is a multiple of this, whatever retention says.
        save_steps: Saves every so many optimizer steps. For a Lightning trainer; the arguments of one of transformers
            have it.
        save_total_limit: The number of such checkpoints that are kept, likewise.
        strict: Refuses a checkpoint that does not fit model and optimizer. Otherwise what does not fit begins anew, and
            is named in a line.
        on_stop: The end of training after a stop was asked for and saved: `exit` raises `Stopped`, a `SystemExit` with
            the documented exit code, so that the code after it does not take the training for finished; `return`
            returns.
        on_saved: Called with the answer of each save that has succeeded (`path`, `step`, `bytes`, `labels`, ...), once
            the checkpoint is durable: in the thread that trains, at its next boundary or its end. An error of it is
            logged, and training goes on.
        on_saved_all_ranks: Calls it in every rank, and not in rank 0 alone.
        **settings: As `holdfast.settings.Settings` describes them.

    Returns:
        The same trainer.

    Raises:
        ConfigError: A setting is wrong.
        UnsupportedError: This is no trainer that is known, or one that saves in a way that this version cannot commit.
    """
    # Neither is imported for the other: a machine may have one alone.
    if _is_trainer_of(TRANSFORMERS, trainer):
        for_lightning = {"save_steps": save_steps, "save_total_limit": save_total_limit}
        if wrong := [name for name, value in for_lightning.items() if value is not None]:
            raise ConfigError([f"{name}: a transformers Trainer has it in its TrainingArguments" for name in wrong])
        from holdfast.integrations.trainer.attach import attach_trainer

        attach_trainer(
            trainer,
            keep_every=keep_every,
            strict=strict,
            on_stop=on_stop,
            on_saved=on_saved,
            on_saved_all_ranks=on_saved_all_ranks,
            **settings,
        )
        return trainer
    if _is_trainer_of(LIGHTNING, trainer):
        from holdfast.integrations.lightning.attach import attach_lightning

        attach_lightning(
            trainer,
            keep_every=keep_every,
            save_steps=save_steps,
            save_total_limit=save_total_limit,
            strict=strict,
            on_stop=on_stop,
            on_saved=on_saved,
            on_saved_all_ranks=on_saved_all_ranks,
            **settings,
        )
        return trainer
    raise refusal_of(trainer)


def _is_trainer_of(packages: tuple[str, ...], trainer: Any) -> bool:
    """Tells whether something is an instance of a package's own class `Trainer`, which is not imported for that."""
    return any(
        kind.__name__ == "Trainer" and kind.__module__.partition(".")[0] in packages for kind in type(trainer).__mro__
    )
