"""The path by which a trainer loads a checkpoint that is held open, kept out of everything that people read.

A trainer, peft and torch load by a path, and give it to their logs, warnings and errors. That of a descriptor means
nothing to anybody else, so these have the checkpoint's own path in its place.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from holdfast.store.folder import Folder


@contextmanager
def in_words(checkpoint: Folder) -> Iterator[None]:
    """Encloses code of others that was given the path `checkpoint.through`: all it says has that of the checkpoint.

    Args:
        checkpoint: The open directory.
    """
    make_record, show = logging.getLogRecordFactory(), warnings.showwarning

    def record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        made = make_record(*args, **kwargs)
        _reword_record(made, checkpoint)
        return made

    def show_warning(message: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(message, BaseException):
            _reword_one(message, checkpoint)
        show(message, *args, **kwargs)

    logging.setLogRecordFactory(record)
    warnings.showwarning = show_warning
    try:
        yield
    except BaseException as error:
        _reword(error, checkpoint)
        raise
    finally:
        logging.setLogRecordFactory(make_record)
        warnings.showwarning = show


def _reword_record(record: logging.LogRecord, checkpoint: Folder) -> None:
    try:
        text = record.getMessage()
    except Exception:  # noqa: BLE001 - its message and its arguments do not fit: logging itself reports that
        return
    if (words := checkpoint.in_words(text)) != text:
        record.msg, record.args = words, None
    if record.exc_info and record.exc_info[1] is not None:
        _reword(record.exc_info[1], checkpoint)


def _reword(error: BaseException, checkpoint: Folder) -> None:
    """Rewords an error, and those that led to it."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            _reword_one(each, checkpoint)
            waiting += [each.__cause__, each.__context__]


def _reword_one(error: BaseException, checkpoint: Folder) -> None:
    def reworded(value: Any) -> Any:
        return checkpoint.in_words(value) if isinstance(value, str) else value

    error.args = tuple(map(reworded, error.args))
    for name, value in vars(error).items():
        if isinstance(value, list):
            value[:] = map(reworded, value)
        else:
            setattr(error, name, reworded(value))
    if isinstance(error, OSError):
        error.filename, error.filename2 = reworded(error.filename), reworded(error.filename2)
