"""Lightning's StochasticWeightAveraging, which exchanges the trainer's schedule in the middle of a training."""

from collections.abc import Mapping
from typing import Any

_SWA = "StochasticWeightAveraging"


class Schedules:
    """The schedules that a trainer has at the moment, as one part: they are exchanged while it trains.

    Args:
        trainer: The trainer.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of each, by its number."""
        return {str(number): schedule.state_dict() for number, schedule in enumerate(self._now())}

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        """Has each that is there load its own."""
        for number, schedule in enumerate(self._now()):
            if (state := states.get(str(number))) is not None:
                schedule.load_state_dict(state)

    def _now(self) -> list[Any]:
        return [config.scheduler for config in self._trainer.lr_scheduler_configs]


def averaging_of(trainer: Any) -> Any:
    """Returns the trainer's callback that averages weights from some epoch on; None where it has none."""
    for callback in trainer.callbacks:
        if any(kind.__name__ == _SWA for kind in type(callback).__mro__):
            return callback
    return None


def exchange_schedule(trainer: Any) -> None:
    """Has the callback exchange the schedule as it had, where a resume goes on after that.

    It would do so at the beginning of the next epoch, and change the rates of the optimizer that was restored by then.
    """
    callback = averaging_of(trainer)
    if callback is None or callback._scheduler_state is None or trainer.current_epoch > callback.swa_end:
        return
    averaged = callback._latest_update_epoch
    callback._latest_update_epoch = trainer.current_epoch  # nothing is averaged now
    callback.on_train_epoch_start(trainer, trainer.lightning_module)
    callback._latest_update_epoch = averaged
