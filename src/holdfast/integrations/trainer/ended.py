"""A training that has come to its end, and is started again: nothing is left to do, and nothing is changed.

New epochs or steps make it one that has not ended; so does more patience for early stopping.
"""

import copy
from collections.abc import Callable
from typing import Any

from transformers import EarlyStoppingCallback, Trainer
from transformers.trainer_utils import TrainOutput

_RUNS_EPOCH = "_run_epoch"


def has_ended(trainer: Trainer) -> bool:
    """Returns whether a resumed trainer has taken all its steps: those that it is to take, or those that were enough.

    Args:
        trainer: The trainer, whose state and callbacks are as they were.
    """
    state = trainer.state
    if state.global_step >= state.max_steps:
        return True
    control = state.stateful_callbacks.get("TrainerControl", {})
    if not (isinstance(control, dict) and control.get("args", {}).get("should_training_stop")):
        return False
    # Of other callbacks that have ended it nobody knows what they would say now: a limit of time begins anew.
    stopping = [cb for cb in trainer.callback_handler.callbacks if isinstance(cb, EarlyStoppingCallback)]
    return any(cb.early_stopping_patience_counter >= cb.early_stopping_patience for cb in stopping)


class Skipping:
    """Has a trainer that has ended take no step: it would begin an epoch all the same, and evaluate at the start.

    Args:
        trainer: The trainer.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._before: dict[str, Any] = {}
        self._evaluates = False
        self._skips = False

    def begin(self) -> None:
        """Begins, before the first step."""
        self._skips = True
        self._before = {name: value for name, value in vars(self._trainer).items() if name == _RUNS_EPOCH}
        setattr(self._trainer, _RUNS_EPOCH, self._skip)
        self._evaluates, self._trainer.args.eval_on_start = self._trainer.args.eval_on_start, False

    def end(self) -> None:
        """Gives the trainer its methods back, if it has begun."""
        if self._skips:
            self._skips = False
            delattr(self._trainer, _RUNS_EPOCH)
            vars(self._trainer).update(self._before)
            self._trainer.args.eval_on_start = self._evaluates

    def _skip(self, *args: Any, **kwargs: Any) -> None:
        self._trainer.control.should_training_stop = True


def finalize(trainer: Trainer, own: Callable[[], TrainOutput]) -> TrainOutput:
    """Runs a trainer's own end, but for its deleting of checkpoints, asked for or not: they are kept by our rules.

    Args:
        trainer: The trainer.
        own: Its own end.
    """
    args = trainer.args
    trainer.args = copy.copy(args)
    trainer.args.save_total_limit = None
    try:
        return own()
    finally:
        trainer.args = args
