"""`attach` for `transformers.Trainer` and its subclasses: saves on demand, and commits."""

import functools
import logging
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, Unpack

from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from holdfast.arguments import checked_directory, require_resume
from holdfast.engine.engine import Engine
from holdfast.engine.on_published import Hook, require_hook
from holdfast.errors import Stopped, UnsupportedError
from holdfast.integrations.trainer import contract
from holdfast.integrations.trainer.epochs import EpochAccounting
from holdfast.integrations.trainer.eval_on_start import EvaluatedAtStart
from holdfast.integrations.trainer.fit import loading
from holdfast.integrations.trainer.held_path import named, rewording
from holdfast.integrations.trainer.hooks import StepHooks
from holdfast.integrations.trainer.hub import uploads_without_ours
from holdfast.integrations.trainer.interception import interceptors
from holdfast.integrations.trainer.own_writer import why_own_writer
from holdfast.integrations.trainer.readable import require_readable_files
from holdfast.integrations.trainer.rehearsed import rehearse
from holdfast.integrations.trainer.secrets import pickled_blank
from holdfast.integrations.trainer.settings import TrainerSettings
from holdfast.integrations.trainer.supported import ATTACHED, require_readable, require_supported, unsharded
from holdfast.layouts import transformers as layout
from holdfast.layouts.layout import TRANSFORMERS
from holdfast.settings import Settings, SettingsKwargs, validated
from holdfast.store.retention import RetentionPolicy


def attach_trainer(
    trainer: Trainer,
    *,
    keep_every: int | None = None,
    strict: bool = True,
    on_stop: Literal["exit", "return"] = "exit",
    on_saved: Hook | None = None,
    on_saved_all_ranks: bool = False,
    engine: Engine | None = None,
    **settings: Unpack[SettingsKwargs],
) -> Trainer:
    """Attaches a Trainer. The arguments are those of `holdfast.attach`, and one more.

    Args:
        trainer: A `transformers.Trainer` or a subclass, before `train`.
        keep_every: As there.
        strict: As there.
        on_stop: As there.
        on_saved: As there.
        on_saved_all_ranks: As there.
        engine: One that is open already; its settings hold.
        **settings: As there.

    Returns:
        The same trainer.
    """
    require_supported(trainer)
    rehearse(trainer)
    require_hook(on_saved)
    checked_directory("output_dir", trainer.args.output_dir)
    checked = validated(**settings)
    retention = RetentionPolicy(trainer.args.save_total_limit, checked.dynamic_checkpoint.keep, every=keep_every)
    trainer.train = _saving_train(
        trainer, checked, retention, engine, on_stop, strict=strict, on_saved=on_saved, all_ranks=on_saved_all_ranks
    )
    trainer.push_to_hub = _push_without_ours(trainer)
    trainer.args = pickled_blank(trainer.args)
    return trainer


def _saving_train(
    trainer: Trainer,
    settings: Settings,
    retention: RetentionPolicy,
    engine: Engine | None,
    on_stop: Literal["exit", "return"],
    *,
    strict: bool,
    on_saved: Hook | None,
    all_ranks: bool,
) -> Callable[..., TrainOutput]:
    own = trainer.train

    @functools.wraps(own)
    def train(
        resume_from_checkpoint: str | bool | None = None, trial: Any = None, *args: Any, **kwargs: Any
    ) -> TrainOutput:
        if trial is not None:
            raise UnsupportedError("a hyperparameter search trains many runs, and this version saves one")
        require_resume("resume_from_checkpoint", resume_from_checkpoint)
        output = TrainOutput(0, float("nan"), {})
        with (
            rewording(),  # until the engine has made its last save
            # No context of a generator: a handler of the user's could leave that before the engine hears of the end.
            (
                Engine(Path(trainer.args.output_dir), settings, retention, resume_from_checkpoint, TRANSFORMERS)
                if engine is None
                else nullcontext(engine)
            ) as running,
            interceptors(),
            TrainerSettings(trainer, running) as given_settings,
            EpochAccounting(trainer, running) as epochs,
            StepHooks(trainer, running, given_settings, epochs),
            EvaluatedAtStart(trainer),
        ):
            if on_saved is not None and (all_ranks or not running.rank):
                running.on_published(on_saved)
            for line in [*contract.lesser_promises(trainer), *unsharded(trainer)]:
                running.log.announce(line, logging.WARNING)
            chosen = running.origin.chosen
            require_readable(trainer, chosen)
            if chosen is None:
                output = own(None, None, *args, **kwargs)
            else:
                with named(chosen.folder) as path:
                    require_readable_files(trainer, chosen)
                    with loading(trainer, chosen, running.log, strict=strict):
                        output = own(str(path), None, *args, **kwargs)
            _leave_model(trainer, running)
        if running.stop_requested and on_stop == "exit":
            raise Stopped(running.exit_code)
        return output

    setattr(train, ATTACHED, True)
    return train


def _leave_model(trainer: Trainer, engine: Engine) -> None:
    """Leaves the model in `output_dir` itself after Ctrl+C, from the checkpoint: training may be a step further."""
    last, root = engine.last_answer, engine.run.root
    if not engine.interrupted or engine.rank or last is None or not last.saved or why_own_writer(trainer):
        return
    layout.copy_saved_model(Path(last.path), last.digest, engine.run.folder)
    engine.log.info(f"the model can be loaded from {root}")


def _push_without_ours(trainer: Trainer) -> Callable[..., Any]:
    own = trainer.push_to_hub

    @functools.wraps(own)
    def push_to_hub(*args: Any, **kwargs: Any) -> Any:
        with uploads_without_ours():
            return own(*args, **kwargs)

    return push_to_hub
