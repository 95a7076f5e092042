"""The evaluation at the start of a training (`eval_on_start`), which a resume does not make again.

A Trainer makes it at each `train`. The log of a resumed training would have one more, and so would the search for the
best checkpoint; a run that was never interrupted has none there.
"""

from typing import Any

from transformers import Trainer, TrainerCallback


class EvaluatedAtStart(TrainerCallback):  # type: ignore[misc]
    """Has a trainer that goes on behind its start pass over that evaluation. Use it as a context manager.

    Args:
        trainer: The trainer. It asks its arguments right after `on_train_begin`.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._changed: Any = None

    def __enter__(self) -> "EvaluatedAtStart":
        self._trainer.add_callback(self)
        return self

    def __exit__(self, *exception: object) -> None:
        self._trainer.remove_callback(self)
        self._put_back()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leaves the evaluation out where training is beyond its start."""
        if state.global_step and args.eval_on_start:
            self._changed, args.eval_on_start = args, False

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Puts the argument back, once the trainer has asked for it."""
        self._put_back()

    def _put_back(self) -> None:
        if self._changed is not None:
            self._changed.eval_on_start, self._changed = True, None
