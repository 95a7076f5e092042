"""Passes what a trainer does on to the screen."""

from typing import Any

from transformers import TrainerCallback

from holdfast.run.status import StatusFile
from holdfast.train.screen import Screen


class Progress(TrainerCallback):  # type: ignore[misc]
    """Shows steps and logs. The trainer's own printing is turned off when it is built.

    Args:
        status: The status of the run, as it is now.
        screen: The screen to show it on.
    """

    def __init__(self, status: StatusFile, screen: Screen) -> None:
        self._status = status
        self._screen = screen

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the progress bar."""
        self._screen.begin(state.global_step, state.max_steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Shows the step before as done, saves included."""
        self._screen.step(self._status.now)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Shows what the trainer logs."""
        self._screen.log({**(logs or {}), "step": state.global_step}, self._status.now)
