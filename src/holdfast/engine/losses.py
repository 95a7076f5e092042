"""The losses that a training gives: shown in its status, and left in the trace of a rehearsal."""

import time
from typing import Any

import torch

from holdfast.devices.device import Device
from holdfast.devices.late import LateNumbers, number_of
from holdfast.engine.rehearsing import Rehearsing
from holdfast.errors import ConfigError
from holdfast.run.status import StatusFile
from holdfast.state.sharding import is_distributed
from holdfast.text import quoted

# The status is written as often.
_SECONDS = 1.0


def require_loss(loss: object) -> None:
    """Refuses what is no loss: it would be shown once a second, and fail when it is. None is none that was given.

    Raises:
        ConfigError: It is no number, and no tensor or array of one.
    """
    if isinstance(loss, torch.Tensor):
        is_number, what = loss.numel() == 1 and not loss.is_complex(), f"a tensor of shape {list(loss.shape)}"
    else:
        is_number = loss is None or (hasattr(loss, "__float__") and getattr(loss, "size", 1) == 1)
        what = quoted(loss) if isinstance(loss, str | int | float | complex) else f"a {type(loss).__name__}"
    if not is_number:
        raise ConfigError([f"loss: {what} is no number; give a number, or a tensor of one element"])


class Losses:
    """Takes the losses of one training.

    Args:
        status: The status of the run.
        rehearsing: The rehearsal, where this is one.
    """

    def __init__(self, status: StatusFile, rehearsing: Rehearsing | None) -> None:
        self._status = status
        self._rehearsing = rehearsing
        self._shown_at = 0.0
        self.late: LateNumbers | None = None
        """For numbers of cards; None where there are none."""

    def begin(self, device: Device | None) -> None:
        """Takes in what training trains on."""
        if device is not None and (self.late is None or self.late.device is not device):
            self.late = LateNumbers(device)

    def take(self, loss: Any) -> None:
        """Takes the loss of the step whose boundary comes next, as the program gives it; None where it gives none."""
        if self._rehearsing is not None:
            self._rehearsing.take_loss(loss)

    def show(self, loss: Any, *, each_time: bool = False) -> None:
        """Shows a loss in the status, once a second. One on a card is shown when the card has come to it.

        Args:
            loss: A number, or a tensor of one element; None shows nothing.
            each_time: True where it comes seldom.
        """
        if loss is None or (not each_time and time.monotonic() - self._shown_at < _SECONDS):
            return
        self._shown_at = time.monotonic()
        if isinstance(loss, torch.Tensor) and is_distributed(loss):
            if not all(placement.is_replicate() for placement in loss.placements):
                return  # to add up its parts takes a collective, and the clocks of the ranks differ
            loss = loss.to_local()
        self._status.show_loss(number_of(loss, self.late))
