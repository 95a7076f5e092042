"""`holdfast.attach(trainer)`: the one verb for every trainer, each with what it takes to save and resume it."""

from collections.abc import Collection, Mapping
from inspect import signature
from typing import Any, Literal, TypeVar, Unpack, get_type_hints

from holdfast.arguments import require_on_stop
from holdfast.engine.on_published import Hook
from holdfast.errors import ConfigError
from holdfast.integrations.strangers import refusal_of
from holdfast.settings import SettingsKwargs
from holdfast.text import quoted
from holdfast.wording import did_you_mean

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
    none; and `"local"`: the newest in the run directory, whatever its mirror has.

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
        ConfigError: An argument is wrong, or is the trainer's own.
        UnsupportedError: This is no trainer that is known, or one that saves in a way that this version cannot commit.
    """
    require_on_stop(on_stop)
    # Neither is imported for the other: a machine may have one alone.
    if _is_trainer_of(TRANSFORMERS, trainer):
        for_lightning = {"save_steps": save_steps, "save_total_limit": save_total_limit}
        theirs = {name: value for name, value in for_lightning.items() if value is not None}
        _require_keywords({**settings, **theirs}, theirs, "train(resume_from_checkpoint=...)", trainer)
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
        _require_keywords(settings, (), "fit(ckpt_path=...)", trainer)
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


def _require_keywords(keywords: Mapping[str, Any], theirs: Collection[str], resumes: str, trainer: Any) -> None:
    """Refuses keyword arguments that are not those of `attach`, and says whose they are.

    Args:
        keywords: What was given.
        theirs: Those that are the trainer's, though `attach` has them for another.
        resumes: The call that takes the checkpoint to go on from.
        trainer: The trainer. One of transformers has arguments of its own.

    Raises:
        ConfigError: One line for each of them.
    """
    known = [name for name, each in signature(attach).parameters.items() if each.kind is each.KEYWORD_ONLY]
    known += get_type_hints(SettingsKwargs)
    problems = []
    for name, value in keywords.items():
        if name in known and name not in theirs:
            continue
        if name in ("resume", "resume_from_checkpoint", "ckpt_path"):
            problems.append(f"{name}: attach takes none; {resumes} does")
        elif hasattr(getattr(trainer, "args", None), name):
            problems.append(f"{name}: that is the Trainer's own: TrainingArguments({name}={quoted(value)})")
        else:
            problems.append(f"{name}: unknown key{did_you_mean(name, known)}")
    if problems:
        raise ConfigError(problems, hint="docs/configuration.md describes each setting, docs/api.md each argument")


def _is_trainer_of(packages: tuple[str, ...], trainer: Any) -> bool:
    """Tells whether something is an instance of a package's own class `Trainer`, which is not imported for that."""
    return any(
        kind.__name__ == "Trainer" and kind.__module__.partition(".")[0] in packages for kind in type(trainer).__mro__
    )
