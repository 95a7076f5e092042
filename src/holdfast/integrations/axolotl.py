"""Axolotl's plugin: `plugins: [holdfast.integrations.axolotl.HoldfastPlugin]` in its configuration.

Its trainers are Trainers, which `attach` takes. Here is what Axolotl has around them: its keys, its callbacks, its
handler of Ctrl+C, and its choice of a checkpoint. Read against axolotl 0.19.

Axolotl takes an ImportError of this file for a plugin that it can do without, and trains on. So nothing is imported
here that may be missing beside Axolotl: `attach` imports what it needs when it is called, where an error is the end.
"""

import copy
import functools
import logging
import signal
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel, Field

from holdfast.errors import UnsupportedError
from holdfast.integrations.attach import attach
from holdfast.log import LOGGER
from holdfast.run import rehearsal
from holdfast.settings import DynamicCheckpoint, SaveSettings, checked

_BLOCK = "holdfast"
_TRIGGER = "dynamic_checkpoint"

# The one looks for the trigger file itself, and deletes it before anything is saved. The other takes the evaluation of
# the step that is resumed from for one that was made already, and there it is still to be made.
_REPLACED = ("DynamicCheckpointCallback", "SkipEvalOnResumeCallback")
# Of a rehearsal nobody is told.
_TELLING = ("hub_model_id", "use_comet", "use_mlflow", "use_otel_metrics", "use_trackio", "use_wandb")


class AxolotlSettings(SaveSettings):
    """The settings under `holdfast:`."""

    keep_every: Annotated[int, Field(ge=1)] | None = None
    """Keeps the checkpoints whose step is a multiple of this, whatever `save_total_limit` says."""

    strict: bool = True
    """Refuses a checkpoint that does not fit model and optimizer; otherwise what does not fit begins anew."""


class AxolotlTrigger(DynamicCheckpoint):
    """Axolotl's `dynamic_checkpoint:`, with the defaults of its schema. Its documentation has 100 for the interval."""

    check_interval: int = Field(default=10, ge=0)


class HoldfastArgs(BaseModel):
    """The key that Axolotl's schema has of the plugin."""

    holdfast: AxolotlSettings | None = Field(
        default=None, json_schema_extra={"description": "The settings of Holdfast: docs/axolotl.md."}
    )


class _Keys(BaseModel):
    """The keys of a configuration that are read here."""

    holdfast: AxolotlSettings = AxolotlSettings()
    dynamic_checkpoint: AxolotlTrigger = AxolotlTrigger()


class HoldfastPlugin(BasePlugin):  # type: ignore[misc]
    """Has Axolotl's trainings saved on demand and resumed exactly."""

    def __init__(self) -> None:
        super().__init__()
        self._keys: _Keys | None = None

    def register(self, cfg: Any) -> None:
        """Reads the settings, as they were written: what Axolotl's schema does not know it drops.

        Args:
            cfg: The configuration before it is validated.

        Raises:
            ConfigError: One line for each setting that is wrong.
            UnsupportedError: Axolotl is to train in a way that cannot be saved.
        """
        if cfg.get("use_ray"):
            raise UnsupportedError(
                "use_ray: true trains in workers of Ray, where this version was never run",
                hint="leave it out, and train with --launcher torchrun; or leave out the plugin",
            )
        _log_as_axolotl_does()
        self._keys = _read(cfg)
        if self._keys.dynamic_checkpoint.check_interval == 0:
            cfg[_TRIGGER]["check_interval"] = 1  # the least that Axolotl's schema takes
        if (plan := rehearsal.current()) is not None:
            # Before Axolotl opens its log there, and writes its tokenizer.
            cfg["output_dir"] = plan.output_dir
            for key in _TELLING:
                cfg[key] = None

    def get_input_args(self) -> str:
        """Returns the class that Axolotl merges into its schema."""
        return f"{__name__}.{HoldfastArgs.__name__}"

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Attaches the trainer, before Axolotl sets its handler of Ctrl+C and chooses a checkpoint.

        Args:
            cfg: The configuration.
            trainer: The trainer that was made of it.
        """
        keys = self._keys or _read(cfg)
        for callback in list(trainer.callback_handler.callbacks):
            if type(callback).__name__ in _REPLACED:
                trainer.remove_callback(callback)
        attach(trainer, dynamic_checkpoint=keys.dynamic_checkpoint.model_dump(), **keys.holdfast.model_dump())
        trainer.train = _with_handler(trainer.train, signal.getsignal(signal.SIGINT))
        if not cfg.resume_from_checkpoint and (cfg.auto_resume_from_checkpoints or rehearsal.current()):
            cfg.resume_from_checkpoint = "auto"  # which Axolotl passes on as it is


def _read(cfg: Mapping[str, Any]) -> _Keys:
    """Returns what a configuration says.

    Raises:
        ConfigError: One line for each setting that is wrong.
    """
    written = {key: cfg[key] for key in (_BLOCK, _TRIGGER) if cfg.get(key) is not None}
    # Axolotl takes a key without a value, and an empty name of a file, for one that is not there.
    return checked(
        _Keys,
        {
            key: {name: value for name, value in block.items() if value not in (None, "")}
            if isinstance(block, Mapping)
            else block
            for key, block in written.items()
        },
    )


def _log_as_axolotl_does() -> None:
    """Has our lines written where Axolotl writes its own: of other loggers it drops what is no warning."""
    theirs = logging.getLogger("axolotl").handlers
    if not theirs or LOGGER.handlers:
        return
    for handler in theirs:
        unfiltered = copy.copy(handler)
        unfiltered.filters = []
        LOGGER.addHandler(unfiltered)
    LOGGER.filters = [drops for drops in LOGGER.filters if not _is_of_axolotl(drops)]
    LOGGER.propagate = False


def _with_handler(train: Callable[..., Any], handler: Any) -> Callable[..., Any]:
    """Returns a `train` that begins with the handler of Ctrl+C that was there before Axolotl's.

    Axolotl's writes the weights and exits with 0, at once, and would be called after a save as a user's own is.
    """

    @functools.wraps(train)
    def with_handler(*args: Any, **kwargs: Any) -> Any:
        if _is_of_axolotl(signal.getsignal(signal.SIGINT)):
            signal.signal(signal.SIGINT, signal.SIG_DFL if handler is None else handler)
        return train(*args, **kwargs)

    return with_handler


def _is_of_axolotl(thing: Any) -> bool:
    """Tells whether a function, or the class of an object, is of Axolotl's source."""
    return str(getattr(thing, "__module__", "")).partition(".")[0] == "axolotl"
