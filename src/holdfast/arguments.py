"""The arguments of a call from Python, checked before anything is done: what is wrong is one line, by its name."""

import inspect
import math
import os
import re
from contextlib import suppress
from pathlib import Path

from holdfast.errors import ConfigError
from holdfast.text import quoted

AUTO, LOCAL = "auto", "local"
"""The words for the newest good checkpoint that is here or in the mirror, and for the newest good one that is here."""


_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_address(text: str) -> bool:
    """Tells whether a text is meant as an address, be it a good one, and not as a path."""
    return _SCHEME.match(text) is not None


def checked_directory(name: str, value: object) -> Path:
    """Returns the path of a directory.

    Raises:
        ConfigError: It is no path, an address, or an empty one, which would be whichever directory the process is in.
    """
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str):
        raise ConfigError([f"{name}: {quoted(value)} is no path of a directory"])
    if not path:
        raise ConfigError([f"{name}: is empty; name a directory, or '.' for the one that this process is in"])
    if is_address(path):
        scheme = path.partition("://")[0]  # and no more of it: there may be a secret in it
        raise ConfigError(
            [f"{name}: an address ({scheme}://...) is given, and a directory of this machine is meant"],
            hint=f"train in a directory, and have its checkpoints sent there: mirror='{scheme}://...' (YAML: mirror:);"
            " a start in an empty directory goes on from what is there",
        )
    return Path(path)


def require_count(name: str, value: object, of: str = "steps", *, least: int = 1) -> None:
    """Refuses what is no whole number from `least` up. None is none that was given.

    Raises:
        ConfigError: It is something else.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise ConfigError([f"{name}: {quoted(value)} is no number of {of}; give {least} or more"])


def require_seconds(name: str, value: object) -> None:
    """Refuses what is no time to wait for. None is none that was given.

    Raises:
        ConfigError: It is something else.
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value < 0:
        raise ConfigError([f"{name}: {quoted(value)} is no number of seconds; give 0 or more, or None"])


def require_function(name: str, value: object, of: str) -> None:
    """Refuses what cannot be called with one argument. None is none that was given.

    Args:
        name: The name by which it was given.
        value: The function.
        of: What it is called with, in words.

    Raises:
        ConfigError: It is something else.
    """
    if value is None:
        return
    if not callable(value):
        raise ConfigError([f"{name}: a {type(value).__name__} is no function"])
    with suppress(ValueError):  # of some that are written in C nobody knows
        try:
            inspect.signature(value).bind(None)
        except TypeError as error:
            raise ConfigError([f"{name}: it is called with {of} alone: {error}"]) from None


def require_on_stop(value: object) -> None:
    """Refuses what is no end of a training after a stop.

    Raises:
        ConfigError: It is neither of the two that there are.
    """
    if value not in ("exit", "return"):
        raise ConfigError([f"on_stop: {quoted(value)} is neither exit nor return"])


def require_resume(name: str, value: object) -> None:
    """Refuses what names no checkpoint to go on from. None is none that was given.

    Raises:
        ConfigError: It is something else.
    """
    if value is not None and not isinstance(value, str | bool | os.PathLike):
        raise ConfigError([f'{name}: {quoted(value)} is no checkpoint; give "auto", "local", True, False, or a path'])
