"""The lines that a resume has for settings that are no longer as the checkpoint records them."""

import logging
from collections.abc import Iterable

from holdfast.log import RunLog
from holdfast.state.recorded_settings import Change

_MOST_LINES = 20


def announce(log: RunLog, changes: Iterable[Change]) -> None:
    """Names each setting that was changed in one line: a notice where the change holds, a warning where it does not."""
    levels = {str(change): logging.WARNING if change.stays else logging.INFO for change in changes}
    for line in list(levels)[:_MOST_LINES]:
        log.announce(line, levels[line])
    if (more := len(levels) - _MOST_LINES) > 0:
        log.announce(f"and {more} more settings are others than in the checkpoint")


def announce_unrecorded(log: RunLog) -> None:
    """Says of a checkpoint without recorded settings that changes cannot be seen."""
    log.announce(
        "settings: the checkpoint records none; what you changed since cannot be seen, and what it holds is kept",
        logging.WARNING,
    )
