"""The best checkpoint of a Trainer: which one its state may name, and which one is loaded at the end.

A state that somebody else wrote can name any directory, so of a recorded path the name alone counts. Read against
transformers 5.23.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from transformers import Trainer, TrainerState

from holdfast.engine.engine import Engine
from holdfast.integrations.trainer.held_path import named
from holdfast.resume.choose import ResumePoint
from holdfast.store import catalog, names
from holdfast.store.folder import Folder
from holdfast.store.references import step_of_best
from holdfast.store.verify import verify
from holdfast.text import quoted


def elsewhere(state: TrainerState) -> str:
    """Returns what of a state no checkpoint may name: a best that is no checkpoint of a run. Empty where it may."""
    best = state.best_model_checkpoint
    if best is None or state.best_global_step or step_of_best(best) is not None:
        return ""
    return f"state.best_model_checkpoint ({quoted(best)} is no checkpoint of this run)"


def find(trainer: Trainer, engine: Engine, chosen: ResumePoint) -> None:
    """Gives the best checkpoint the path that it has now: beside the one that is resumed, wherever both were before.

    Args:
        trainer: The trainer, which has loaded the checkpoint.
        engine: The open engine.
        chosen: The checkpoint.
    """
    state = trainer.state
    step = state.best_global_step or step_of_best(state.best_model_checkpoint)
    state.best_model_checkpoint = None
    if not step:
        return
    here = chosen.path.parent.resolve() == Path(trainer.args.output_dir).resolve()
    folder = Path(trainer.args.output_dir) if here else chosen.path.parent
    path = folder / names.checkpoint(step)
    with ExitStack() as opening:
        why = _why_not(_opened(path, opening), engine, chosen)
    if not why:
        state.best_model_checkpoint = str(path)
    elif trainer.args.load_best_model_at_end:
        _tell(engine, path, why)


@contextmanager
def loading(trainer: Trainer, engine: Engine) -> Iterator[None]:
    """Encloses a trainer's end: it loads the best checkpoint from the directory that was verified.

    Where that is not what this run has saved, it is left out, and a line says so.

    Args:
        trainer: The trainer. A best that is no checkpoint of a run is its user's own.
        engine: The open engine.
    """
    best = trainer.state.best_model_checkpoint
    if not trainer.args.load_best_model_at_end or step_of_best(best) is None:
        yield
        return
    with ExitStack() as opening:
        folder = _opened(Path(best), opening)
        # Of several ranks each would read all of it, and they must not come to different ends.
        if why := _why_not(folder, engine, engine.origin.chosen, full=engine.world_size == 1):
            trainer.state.best_model_checkpoint = None
            _tell(engine, Path(best), why)
            yield
            return
        assert folder is not None
        own = getattr(trainer, "_load_best_model", None)
        trainer._load_best_model = partial(_load, trainer, ResumePoint(folder, None), own)
        try:
            yield
        finally:
            del trainer._load_best_model


def _load(trainer: Trainer, best: ResumePoint, own: Callable[[], None] | None) -> None:
    """Has a trainer load its best checkpoint from an open directory."""
    recorded = trainer.state.best_model_checkpoint
    try:
        with named(best.folder) as path:
            trainer.state.best_model_checkpoint = str(path)
            assert own is not None
            own()
    finally:
        trainer.state.best_model_checkpoint = recorded
    best.require_in_place()


def _opened(path: Path, opening: ExitStack) -> Folder | None:
    try:
        return opening.enter_context(Folder.open(path))
    except OSError:
        return None


def _why_not(folder: Folder | None, engine: Engine, chosen: ResumePoint | None, *, full: bool = False) -> str:
    """Returns the reason why a directory is not taken for the best checkpoint; empty where it is."""
    if folder is None:
        return "is not here"
    entry = catalog.read(folder)
    if entry.doubt is not None:
        return f"is {entry.doubt}"
    if chosen is not None and chosen.manifest is None and entry.foreign and folder.path.parent == chosen.path.parent:
        return ""  # both are of plain transformers
    problems = [entry.problem] if entry.manifest is None else verify(folder, full=full).problems
    if problems:
        return f"is damaged: {problems[0]}"
    runs = {engine.run.identity, *([chosen.manifest.run] if chosen is not None and chosen.manifest is not None else [])}
    return "" if entry.manifest is not None and entry.manifest.run in runs else "is of another run"


def _tell(engine: Engine, path: Path, why: str) -> None:
    engine.log.announce(f"{path.name}, the best so far, {why}: it cannot be loaded at the end", logging.WARNING)
