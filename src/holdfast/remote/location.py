"""The address of a place beyond this disk: `s3://`, `gs://` and `az://` with a bucket, `file://` with a directory.

An address is shown, journalled and kept in files, so there is no secret in it: a user, a password or a query is
refused, and none of the lines here repeats one.
"""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import SplitResult, unquote, urlsplit

from holdfast.arguments import is_address
from holdfast.errors import ConfigError
from holdfast.text import quoted

DIRECTORY = "file"
"""The scheme of a directory."""
SCHEMES = ("s3", "gs", "az", DIRECTORY)

# What S3, GCS and Azure allow between them; each refuses by itself what it does not.
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,220}[A-Za-z0-9]")
_COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=+@-]{0,99}")
_ENDPOINT_PATH = re.compile(r"(/[A-Za-z0-9._-]+)*/?")
_MOST_CHARACTERS = 512

_NAME_HINT = "at least three letters, digits and . _ -, a letter or digit first and last"
_HINT = "such as s3://bucket/run1, gs://bucket/run1, az://container/run1 or file:///other/disk/run1"


@dataclass(frozen=True)
class Location:
    """A place beyond this disk.

    Args:
        scheme: One of `SCHEMES`.
        bucket: The bucket, or Azure's container; empty for a directory.
        path: The prefix in the bucket, without slashes around it; or the absolute path of the directory.
    """

    scheme: str
    bucket: str
    path: str

    @property
    def url(self) -> str:
        """The address, for people and for another process to read."""
        if self.scheme == DIRECTORY:
            return Path(self.path).as_uri()
        return f"{self.scheme}://{self.bucket}/{self.path}".rstrip("/")


def location_of(text: str) -> Location:
    """Reads an address.

    Raises:
        ConfigError: It is none.
    """
    if not is_address(text):
        raise _refused(f"{quoted(text)} is no address of a mirror", _HINT)
    _require_public(text, "a mirror's address")
    parts = _split(text)
    if parts.scheme not in SCHEMES:
        raise _refused(f"{quoted(text)}: {parts.scheme}:// is not known", _HINT)
    if len(text) > _MOST_CHARACTERS:
        raise _refused(f"{quoted(text)} is longer than {_MOST_CHARACTERS} characters")
    return _directory(text) if parts.scheme == DIRECTORY else _in_bucket(text)


def endpoint_of(text: str, source: str = "mirror_endpoint") -> str:
    """Reads the address of a server, and returns it without a slash at its end.

    Args:
        text: The address.
        source: The setting or the variable that it is from, for people to read.

    Raises:
        ConfigError: It is none.
    """
    _require_public(text, source)
    parts = _split(text)
    try:
        named = bool(parts.hostname) and parts.port != 0
    except ValueError:
        named = False
    if parts.scheme not in ("http", "https") or not named or not _ENDPOINT_PATH.fullmatch(parts.path):
        raise _refused(f"{source}: {quoted(text)} is no address of a server", "such as https://minio.example.org:9000")
    return text.rstrip("/")


def _in_bucket(text: str) -> Location:
    parts = _split(text)
    if not _BUCKET.fullmatch(parts.netloc):
        kind = "container" if parts.scheme == "az" else "bucket"
        raise _refused(f"{quoted(text)}: {quoted(parts.netloc)} is no name of a {kind}", f"{_NAME_HINT}; {_HINT}")
    path = parts.path.strip("/")
    for component in path.split("/") if path else ():
        if not _COMPONENT.fullmatch(component):
            raise _refused(
                f"{quoted(text)}: {quoted(component)} cannot be a part of it",
                "between slashes: letters, digits and . _ - = + @, a letter, a digit or _ first, at most 100",
            )
    return Location(parts.scheme, parts.netloc, path)


def _directory(text: str) -> Location:
    parts = _split(text)
    path = unquote(parts.path, errors="surrogateescape")
    if parts.netloc not in ("", "localhost"):
        raise _refused(
            f"{quoted(text)}: a directory is on this machine, and {quoted(parts.netloc)} would be a host",
            "with three slashes, such as file:///other/disk/run1",
        )
    if not path.isprintable() or ".." in path.split("/"):
        raise _refused(f"{quoted(text)}: its path has .. or a character that cannot be printed in it")
    plain = str(PurePosixPath("/", path.lstrip("/")))
    if plain == "/":
        raise _refused(f"{quoted(text)}: the root of this machine is no directory of a mirror", _HINT)
    return Location(DIRECTORY, "", plain)


def _split(text: str) -> SplitResult:
    if not text.isprintable():  # `urlsplit` passes over line breaks
        raise _refused(f"{quoted(text)} has a character that cannot be printed in it")
    try:
        return urlsplit(text)
    except ValueError as error:
        raise _refused(f"{quoted(text)} is no address") from error


def _require_public(text: str, what: str) -> None:
    """Refuses an address that could have a secret in it, without repeating it."""
    host = text.partition("://")[2].partition("/")[0]
    if "@" in host or "?" in text or "#" in text:
        raise _refused(
            f"{what} has no user, password, ? or # in it: it is shown and kept",
            "credentials come from the environment, a profile or the instance",
        )


def _refused(problem: str, hint: str | None = None) -> ConfigError:
    return ConfigError([problem], hint=hint)
