"""Lines for the user: through `logging.getLogger("holdfast")`, and printed where no handler would take them."""

import logging
from collections.abc import Callable
from contextlib import suppress

LOGGER = logging.getLogger("holdfast")
"""Everything that Holdfast logs. Its level is INFO unless the application has set one."""

if LOGGER.level == logging.NOTSET:
    LOGGER.setLevel(logging.INFO)


class RunLog(logging.Logger):
    """The logger of one training in one process.

    Each line goes to `say` where that is given, and to the application's handlers where one would take it. Where
    neither is so it is printed: a library's words must not depend on whether somebody has configured logging. A failing
    output stops nothing: whoever read it may be gone, and training goes on.

    Saved and resumed are INFO, what costs the user something is WARNING, a save that failed is ERROR.

    Args:
        say: Takes each line as well, whatever the application's handlers do.
    """

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        # Not registered: a process may have many trainings, and registered loggers are kept for ever.
        super().__init__(LOGGER.name)
        self.parent = LOGGER
        self._say = say
        self.rank = 0
        """The rank of this process; lines of others than rank 0 begin with it."""

    def isEnabledFor(self, level: int) -> bool:
        """Returns whether lines of a level are wanted, as of now: the level may change at any time."""
        return level >= LOGGER.getEffectiveLevel() and level > self.manager.disable

    def callHandlers(self, record: logging.LogRecord) -> None:
        """Hands a line to whoever takes it."""
        if self.rank:
            record.msg, record.args = f"rank {self.rank}: {record.getMessage()}", None
        taken = _is_taken(record)
        if self._say is not None or not taken:
            with suppress(OSError):
                (self._say or _print)(record.getMessage())
        if taken:
            super().callHandlers(record)

    def announce(self, text: str, level: int = logging.INFO) -> None:
        """Logs a line that is the same in all ranks, once."""
        if not self.rank:
            self.log(level, text)


def _is_taken(record: logging.LogRecord) -> bool:
    """Returns whether a handler of the application would take a line, asked at each line: handlers come and go."""
    logger: logging.Logger | None = LOGGER
    while logger is not None:
        takers = (handler for handler in logger.handlers if not isinstance(handler, logging.NullHandler))
        if any(record.levelno >= handler.level for handler in takers):
            return True
        logger = logger.parent if logger.propagate else None
    return False


def _print(text: str) -> None:
    print(text, flush=True)
