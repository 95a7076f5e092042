"""Lines for the user: through `logging.getLogger("holdfast")`, and printed where no handler takes them."""

import logging
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from holdfast.text import MOST_LINE, encodable, shown

LOGGER = logging.getLogger("holdfast")
"""Everything that Holdfast logs. Its level is INFO unless the application has set one."""

if LOGGER.level == logging.NOTSET:
    LOGGER.setLevel(logging.INFO)


class RunLog(logging.Logger):
    """The logger of one training in one process.

    Each line goes to `say` where that is given, whatever is wanted of logging, and to the application's handlers. A
    line that is wanted and that no handler has taken is printed, unless `say` has it: a library's words must not depend
    on whether somebody has configured logging. An output that fails stops nothing: whoever read it may be gone, and
    training goes on.

    Saved and resumed are INFO, what costs the user something is WARNING, a save that failed is ERROR.

    Args:
        say: Takes each line.
    """

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        # Not registered: a process may have many trainings, and registered loggers are kept for ever.
        super().__init__(LOGGER.name)
        self.parent = LOGGER
        self._say = say
        self.rank = 0
        """The rank of this process; lines of others than rank 0 begin with it."""

    def isEnabledFor(self, level: int) -> bool:
        """Returns whether somebody takes lines of a level, as of now: levels may change at any time."""
        return self._say is not None or self._is_wanted(level)

    def callHandlers(self, record: logging.LogRecord) -> None:
        """Hands a line to whoever takes it, escaped: it may quote what anybody has written, and stays one line."""
        line = shown(record.getMessage(), MOST_LINE)
        record.msg, record.args = f"rank {self.rank}: {line}" if self.rank else line, None
        if self._say is not None:
            _guarded(self._say, record.getMessage())
        if self._is_wanted(record.levelno) and LOGGER.filter(record):
            is_taken = _hand_to_handlers(record)
            if self._say is None and not is_taken:
                _guarded(_print, record.getMessage())

    def announce(self, text: str, level: int = logging.INFO, *, stacklevel: int = 1) -> None:
        """Logs a line that is the same in all ranks, once."""
        if not self.rank:
            self.log(level, text, stacklevel=stacklevel + 1)

    def _is_wanted(self, level: int) -> bool:
        return level >= LOGGER.getEffectiveLevel() and level > self.manager.disable


def _hand_to_handlers(record: logging.LogRecord) -> bool:
    """Hands a line to the application's handlers; returns whether one took it, which a filter may have kept it from."""
    is_taken = False
    logger: logging.Logger | None = LOGGER
    while logger is not None:
        for handler in logger.handlers:
            if record.levelno >= handler.level:
                is_taken = bool(_guarded(handler.handle, record)) or is_taken
        logger = logger.parent if logger.propagate else None
    return is_taken


def _guarded(output: Callable[[Any], Any], line: Any) -> Any:
    """Calls somebody's output. An error of it is shown as logging shows those of handlers, and goes no further."""
    try:
        return output(line)
    except OSError:
        return None  # whoever read it is gone
    except Exception:  # noqa: BLE001 - it is not ours, and a save must not fail by it
        if logging.raiseExceptions:
            with suppress(OSError):
                traceback.print_exc()
        return None


def _print(text: str) -> None:
    print(encodable(text, sys.stdout), flush=True)
