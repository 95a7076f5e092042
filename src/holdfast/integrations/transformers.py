"""`attach(trainer)`: saves on demand, and commits, for `transformers.Trainer` and its subclasses."""

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from holdfast.checkpointer import Checkpointer
from holdfast.config import DynamicCheckpoint
from holdfast.errors import Stopped, UnsupportedError
from holdfast.integrations.trainer_faces import Faces
from holdfast.store.retention import Keep

# Where nothing is said, the trigger file is on and served at once; `holdfast train` has its own documented defaults.
AT_ONCE = DynamicCheckpoint(enabled=True, check_interval=0)


def attach(
    trainer: Trainer,
    *,
    dynamic_checkpoint: DynamicCheckpoint | Mapping[str, Any] = AT_ONCE,
    on_stop: Literal["exit", "return"] = "exit",
    checkpointer: Checkpointer | None = None,
) -> Trainer:
    """Makes a trainer save on demand, commit its checkpoints, and resume from verified ones.

    `trainer.train(resume_from_checkpoint=...)` then also takes `"auto"`.

    Args:
        trainer: A `transformers.Trainer` or a subclass, before `train`.
        dynamic_checkpoint: The trigger file's settings, as `docs/configuration.md` has them.
        on_stop: What `train` does after a stop was asked for and saved: `exit` raises `Stopped`, a `SystemExit` with
            the documented exit code, so that the code after it does not take the training for finished; `return`
            returns.
        checkpointer: One that is open already; its settings hold.

    Returns:
        The same trainer.

    Raises:
        UnsupportedError: This trainer saves in a way that this version cannot commit.
    """
    _require_supported(trainer)
    settings = DynamicCheckpoint.model_validate(dynamic_checkpoint)
    inner = trainer.train

    @functools.wraps(inner)
    def train(
        resume_from_checkpoint: str | bool | None = None, trial: Any = None, *args: Any, **kwargs: Any
    ) -> TrainOutput:
        if trial is not None:
            raise UnsupportedError("a hyperparameter search trains many runs, and this version saves one")
        with (
            _opened(trainer, settings, resume_from_checkpoint, checkpointer) as opened,
            Faces(trainer, opened),
        ):
            chosen = opened.chosen
            output: TrainOutput = inner(None if chosen is None else str(chosen.path), None, *args, **kwargs)
        if opened.stop_requested and on_stop == "exit":
            raise Stopped(opened.exit_code)
        return output

    trainer.train = train
    return trainer


@contextmanager
def _opened(
    trainer: Trainer, settings: DynamicCheckpoint, resume: str | bool | None, given: Checkpointer | None
) -> Iterator[Checkpointer]:
    if given is not None:
        yield given
        return
    keep = Keep(trainer.args.save_total_limit, settings.keep)
    with Checkpointer(Path(trainer.args.output_dir), settings, keep, resume, _print) as opened:
        yield opened


def _print(text: str) -> None:
    with suppress(OSError):  # whoever read our output may be gone, and training goes on
        print(text, flush=True)


def _require_supported(trainer: Trainer) -> None:
    """Refuses what this version cannot commit, before anything is written."""
    args = trainer.args
    in_use = {
        "several processes": args.world_size > 1,
        "DeepSpeed": trainer.is_deepspeed_enabled,
        "FSDP": trainer.is_fsdp_enabled,
        "enable_jit_checkpoint (Holdfast does its work)": args.enable_jit_checkpoint,
        "push_to_hub": args.push_to_hub,
    }
    if refused := [name for name, used in in_use.items() if used]:
        raise UnsupportedError(
            f"this trainer uses {', '.join(refused)}, and this version of Holdfast cannot save that",
            hint="train one process without it, or train without Holdfast",
        )
