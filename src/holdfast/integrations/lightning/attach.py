"""`attach` for Lightning's Trainer: its `fit` saves on demand, commits, and resumes from verified checkpoints."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, Unpack

from holdfast.arguments import require_count
from holdfast.engine.on_published import Hook, require_hook
from holdfast.errors import Stopped
from holdfast.integrations.lightning import supported
from holdfast.integrations.lightning.fit import Attachment, Fit, rehearse
from holdfast.settings import SettingsKwargs, validated
from holdfast.store.retention import RetentionPolicy


def attach_lightning(
    trainer: Any,
    *,
    keep_every: int | None = None,
    save_steps: int | None = None,
    save_total_limit: int | None = None,
    strict: bool = True,
    on_stop: Literal["exit", "return"] = "exit",
    on_saved: Hook | None = None,
    on_saved_all_ranks: bool = False,
    **settings: Unpack[SettingsKwargs],
) -> None:
    """Does for a Lightning trainer what `holdfast.attach` says. The run directory is its `default_root_dir`.

    Raises:
        ConfigError: A setting is wrong.
        UnsupportedError: It is attached already, or saves in a way that this version cannot commit.
    """
    lines = supported.require_supported(trainer)
    require_hook(on_saved)
    require_count("save_steps", save_steps)
    require_count("save_total_limit", save_total_limit, "checkpoints")
    checked = validated(**settings)
    rehearse(trainer)
    policy = RetentionPolicy(save_total_limit, checked.dynamic_checkpoint.keep, every=keep_every)
    trainer.fit = _saving_fit(
        trainer, Attachment(checked, policy, save_steps, strict, on_saved, on_saved_all_ranks, lines), on_stop
    )


def _saving_fit(trainer: Any, attachment: Attachment, on_stop: Literal["exit", "return"]) -> Callable[..., None]:
    own = trainer.fit
    signature = inspect.signature(own)

    @functools.wraps(own)
    def fit(*args: Any, **kwargs: Any) -> None:
        arguments = signature.bind(*args, **kwargs).arguments
        ckpt_path = arguments.get("ckpt_path")
        is_ours = supported.is_ours(ckpt_path)
        if is_ours:
            arguments["ckpt_path"] = None
        if supported.is_left_alone(trainer):
            own(**arguments)
            return
        running = Fit(trainer, attachment, str(ckpt_path) if is_ours else None)
        with running:
            own(**arguments)
        engine = running.engine
        if engine is not None and engine.stop_requested and on_stop == "exit":
            raise Stopped(0 if supported.is_started_by_lightning(trainer) else engine.exit_code)

    setattr(fit, supported.ATTACHED, True)
    return fit
