"""The paths by which a trainer loads and writes what is held open, kept out of everything that people read.

A trainer, peft and torch load and write by a path, and give it to their logs, warnings and errors. That of a descriptor
means nothing to anybody else, so these have the directory's own path in its place.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from holdfast.store import files
from holdfast.store.folder import Folder

_given: list[Folder] = []  # those whose paths code of others has now; loggers and warnings are the process's as well


@contextmanager
def rewording() -> Iterator[None]:
    """Has all that is logged and warned of in the process say the own path of a directory, as long as it is open."""
    make_record, show = logging.getLogRecordFactory(), warnings.showwarning

    def record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        made = make_record(*args, **kwargs)
        for folder in tuple(_given):
            _reword_record(made, folder)
        return made

    def show_warning(message: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(message, BaseException):
            for folder in tuple(_given):
                _reword_one(message, folder)
        show(message, *args, **kwargs)

    logging.setLogRecordFactory(record)
    warnings.showwarning = show_warning
    try:
        yield
    finally:
        logging.setLogRecordFactory(make_record)
        warnings.showwarning = show


@contextmanager
def in_words(folder: Folder) -> Iterator[None]:
    """Encloses code of others that was given the path `folder.through`: its errors have the directory's own path.

    So has what it logs, and what it warns of, inside of `rewording`.
    """
    _given.append(folder)
    try:
        yield
    except BaseException as error:
        _reword(error, folder)
        raise
    finally:
        _given.remove(folder)


@contextmanager
def named(folder: Folder) -> Iterator[Path]:
    """Yields a path by which code of others loads from a directory, and encloses it as `in_words` does.

    Its last component is the directory's own name: some trainers read the step in it.
    """
    with ExitStack() as opened:
        opened.enter_context(in_words(folder))
        path = folder.through
        if path != folder.path:
            with suppress(OSError):  # there is no place for it; the path of the descriptor does as well
                place = opened.enter_context(TemporaryDirectory(prefix="holdfast-", ignore_cleanup_errors=True))
                above = opened.enter_context(Folder.open(Path(place)))
                above.path = folder.path.parent
                opened.enter_context(in_words(above))
                status = above.status()
                if status.st_uid == os.geteuid() and not status.st_mode & 0o077:
                    files.replace_by_link(above / folder.path.name, str(path))
                    path = above.through / folder.path.name
        yield path


def _reword_record(record: logging.LogRecord, folder: Folder) -> None:
    try:
        text = record.getMessage()
    except Exception:  # noqa: BLE001 - its message and its arguments do not fit: logging itself reports that
        return
    if (words := folder.in_words(text)) != text:
        record.msg, record.args = words, None
    if record.exc_info and record.exc_info[1] is not None:
        _reword(record.exc_info[1], folder)


def _reword(error: BaseException, folder: Folder) -> None:
    """Rewords an error, and those that led to it."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            _reword_one(each, folder)
            waiting += [each.__cause__, each.__context__]


def _reword_one(error: BaseException, folder: Folder) -> None:
    def reworded(value: Any) -> Any:
        return folder.in_words(value) if isinstance(value, str) else value

    # What does not name that path is not touched: an OSError whose filename is set, if to None, has another text.
    args = tuple(map(reworded, error.args))
    if any(new is not old for new, old in zip(args, error.args, strict=True)):
        error.args = args
    attributes = dict(vars(error))
    if isinstance(error, OSError):
        attributes |= {"filename": error.filename, "filename2": error.filename2}
    for name, value in attributes.items():
        if isinstance(value, list):
            value[:] = map(reworded, value)
        elif (words := reworded(value)) is not value:
            setattr(error, name, words)
