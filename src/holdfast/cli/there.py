"""The options of the verbs that open a mirror, and lines while bytes are on their way."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from holdfast.arguments import is_address
from holdfast.cli.output import size, tell
from holdfast.errors import ConfigError, MirrorUnavailableError
from holdfast.text import quoted

Endpoint = Annotated[
    str | None, typer.Option("--endpoint", metavar="URL", help="The server of a mirror: its mirror_endpoint.")
]
Region = Annotated[
    str | None, typer.Option("--region", metavar="NAME", help="The region of a mirror's bucket: its mirror_region.")
]

_TELL_SECONDS = 5.0


def require_address(text: str) -> None:
    """Checks that a mirror is meant, and no path."""
    if not is_address(text):
        raise ConfigError(
            [f"{quoted(text)} is no address of a mirror"],
            hint="such as s3://bucket/run1, gs://bucket/run1, az://container/run1 or file:///other/disk/run1",
        )


def local_path(text: str, endpoint: str | None, region: str | None) -> Path:
    """Returns the path of a directory that was given where a mirror could have been."""
    require_no_address_options(endpoint, region)
    with suppress(OSError):  # one in a directory that may not be entered is not there, as far as anybody can tell
        if Path(text).exists() and not os.access(text, os.R_OK):
            raise typer.BadParameter(f"Path '{text}' is not readable.")  # as typer says of every other path
    return Path(text)


def require_no_address_options(endpoint: str | None, region: str | None) -> None:
    """Refuses the options of a mirror where none is meant."""
    if endpoint is not None or region is not None:
        raise ConfigError(["--endpoint, --region: have no meaning without a mirror"])


@contextmanager
def moving_again() -> Iterator[None]:
    """Has a mirror that does not answer end what is moved there or here with what to do."""
    try:
        yield
    except MirrorUnavailableError as error:
        raise MirrorUnavailableError(
            str(error), hint=error.hint or "do the same again when it answers: what is there already is not moved again"
        ) from error


class Moving:
    """Bytes of one checkpoint on their way: a line each few seconds, on the error output.

    Args:
        name: The checkpoint.
        of: The number of its bytes.
        quiet: Says nothing.
    """

    def __init__(self, name: str, of: int, *, quiet: bool) -> None:
        self._name, self._of, self._quiet = name, of, quiet
        self._moved = 0
        self._told_at = time.monotonic()

    def __call__(self, count: int) -> None:
        """Takes in that so many more have moved."""
        self._moved = min(self._moved + count, self._of)
        if not self._quiet and (now := time.monotonic()) - self._told_at >= _TELL_SECONDS:
            self._told_at = now
            tell(f"{self._name}: {size(self._moved)} of {size(self._of)}", as_error=True)
