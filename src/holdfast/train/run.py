"""Runs `holdfast train`, from the configuration's file to the process's exit code."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from holdfast.engine.engine import Engine
from holdfast.errors import FAILED, UnsupportedError
from holdfast.integrations.trainer.held_path import in_words, rewording
from holdfast.layouts import transformers as layout
from holdfast.layouts.layout import TRANSFORMERS
from holdfast.ranks import launcher
from holdfast.run import rehearsal
from holdfast.run.run import Run
from holdfast.store.folder import files_below
from holdfast.store.retention import RetentionPolicy
from holdfast.train.config.load import TrainConfig, load
from holdfast.train.screen import LogToScreen, Screen


def run(path: Path, overrides: list[str], resume: str | None) -> int:
    """Trains, and returns the exit code that `docs/cli.md` promises.

    Args:
        path: The configuration's file.
        overrides: `KEY=VALUE` for keys that the command line sets.
        resume: The checkpoint to resume: `auto`, `true`, `local` or a path. None leaves it to the configuration.

    Raises:
        HoldfastError: The configuration is wrong, the run is busy, or there is nothing to resume from.
    """
    loaded = load(path, overrides)
    config = loaded.config
    config = config.model_copy(update={"output_dir": str(rehearsal.output_dir_for(config.output_dir))})
    if find_spec("trl") is None:
        raise UnsupportedError("holdfast train needs TRL", hint="pip install 'holdfast-torch[trl]'")
    rank = _join() if launcher.world_size() > 1 else 0
    with Screen() as screen:
        for notice in () if rank else loaded.notices:
            screen.say(notice)
        policy = RetentionPolicy(config.scheduled_kept, config.dynamic_checkpoint.keep, every=config.keep_every)
        wanted = config.resume if resume is None else True if resume == "true" else resume
        root = Path(config.output_dir)
        with rewording(), Engine(root, config, policy, wanted, TRANSFORMERS, screen.say) as engine:
            trainer = _trainer(config, engine, screen)
            trainer.train()
            screen.step(engine.run.status.now)
            screen.end()
            if not rank:
                _leave_model(trainer, engine, screen)
        if engine.stop_requested and not rank:
            saved = engine.exit_code != FAILED
            screen.say("stopped after a good save" if saved else "stopped, and the last save FAILED: see above")
            again = f"holdfast train {path}" if engine.world_size == 1 else "the same command,"
            screen.say(f"to go on: {again} --resume auto")
        return engine.exit_code


def _join() -> int:
    """Joins the processes that the launcher started, for the trainer too, and returns the rank of this one."""
    import torch
    from accelerate import PartialState

    rank: int = PartialState(cpu=not torch.cuda.is_available()).process_index
    return rank


def _trainer(config: TrainConfig, engine: Engine, screen: Screen) -> Any:
    from transformers.utils import logging as transformers_logging

    from holdfast.integrations.trainer.attach import attach_trainer
    from holdfast.train.progress import Progress
    from holdfast.train.trainer import build

    if not engine.rank:
        logging.getLogger("transformers.trainer").setLevel(logging.INFO)  # "***** Running training *****" and its kin
    transformers_logging.disable_default_handler()
    transformers_logging.add_handler(LogToScreen(screen))
    transformers_logging.disable_progress_bar()
    with _rank_0_first(engine):  # the others find what it prepared of the data
        trainer = build(config, engine.log.announce)
    if not engine.rank:
        trainer.add_callback(Progress(engine.run.status, screen))
    return attach_trainer(trainer, engine=engine, on_stop="return")


@contextmanager
def _rank_0_first(engine: Engine) -> Iterator[None]:
    if engine.world_size == 1:
        yield
        return
    from accelerate import PartialState

    with PartialState().main_process_first():
        yield


def _leave_model(trainer: Any, engine: Engine, screen: Screen) -> None:
    """Leaves the model in `output_dir` itself when training has come to its end, as `attach` does after Ctrl+C."""
    root, last = engine.run.root, engine.last_answer
    if not engine.finished:
        return
    if engine.gate.boundary is None and layout.has_model(root):
        return  # it had ended before, and has left its model then
    if last is not None and last.saved and last.step == trainer.state.global_step:
        layout.copy_saved_model(Path(last.path), last.digest, engine.run.folder)
    else:
        _write_model(trainer, engine.run)
    screen.say(f"the model can be loaded from {root}")


def _write_model(trainer: Any, run: Run) -> None:
    from holdfast.store.commit import Attempt

    attempt = Attempt(run.folder, run.identity, trainer.state.global_step)
    try:
        with in_words(attempt.folder):
            trainer.save_model(str(attempt.folder.through))
        layout.copy_model(attempt.folder, run.folder, files_below(attempt.folder))
    finally:
        attempt.discard()
