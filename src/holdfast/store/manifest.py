"""The manifest: the last file of a checkpoint, which says what the others must be. Format: `docs/format.md`.

Standard library alone. What is read here may have been written by anybody, so everything is checked before it is used.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from holdfast.store import names

FORMAT = "holdfast-checkpoint"
VERSION = 1
MOST_BYTES = 64 << 20
_MOST_FILES = 100_000

_TAIL = re.compile(rb'\n  "sha256": "([0-9a-f]{64})"\n}\n\Z')
_DIGEST = re.compile(r"[0-9a-f]{32}")


class ManifestError(ValueError):
    """A manifest that is not one, or that this version does not read."""


@dataclass(frozen=True)
class File:
    """One file of a checkpoint: its path inside, its size in bytes, its xxh3_128."""

    path: str
    size: int
    xxh3_128: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is, and what it consists of."""

    layout: str
    run: str
    attempt: str
    parent: str | None
    sequence: int
    step: int
    world_size: int
    created: str
    reasons: tuple[Mapping[str, Any], ...]
    boundary: Mapping[str, Any]
    versions: Mapping[str, str]
    files: tuple[File, ...] = field(default=())

    @property
    def size(self) -> int:
        """The bytes of all files that the manifest lists."""
        return sum(file.size for file in self.files)

    @property
    def sha256(self) -> str:
        """The digest that ends the manifest file, of all lines before it."""
        return hashlib.sha256(self._body()).hexdigest()

    def encode(self) -> bytes:
        """The bytes of the manifest file. Its last line but one is the sha256 of all lines before it."""
        return self._body() + f'  "sha256": "{self.sha256}"\n}}\n'.encode()

    def _body(self) -> bytes:
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return json.dumps(content, indent=2, allow_nan=False).removesuffix("\n}").encode() + b",\n"


def decode(data: bytes) -> Manifest:
    """Reads a manifest file, and believes nothing that it does not prove.

    Raises:
        ManifestError: It is cut short, altered, of another format or version, or breaks a rule of the format.
    """
    tail = _TAIL.search(data)
    if tail is None:
        raise ManifestError("the manifest is cut short or is not one of ours")
    if hashlib.sha256(data[: tail.start() + 1]).hexdigest().encode() != tail[1]:
        raise ManifestError("the manifest was altered: its sha256 does not fit its content")
    try:
        content = strict_json(data)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"the manifest is not valid JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ManifestError(f"the manifest's format is not {FORMAT!r}")
    version = content.get("version")
    if type(version) is not int or version != VERSION:
        raise ManifestError(f"the manifest is of format version {version!r}, and this Holdfast reads version {VERSION}")
    return _checked(content)


def _checked(content: dict[str, Any]) -> Manifest:
    def take(key: str, kind: type) -> Any:
        value = content.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ManifestError(f"the manifest's {key!r} is missing or of the wrong kind")
        return value

    def count(key: str, least: int) -> int:
        value: int = take(key, int)
        if not least <= value < 2**63:
            raise ManifestError(f"the manifest's {key!r} is out of range")
        return value

    def token(key: str) -> str:
        value: str = take(key, str)
        if not names.is_token(value):
            raise ManifestError(f"the manifest's {key!r} is not an identity")
        return value

    reasons = take("reasons", list)
    if not all(isinstance(reason, dict) for reason in reasons):
        raise ManifestError("the manifest's 'reasons' are of the wrong kind")
    return Manifest(
        layout=take("layout", str),
        run=token("run"),
        attempt=token("attempt"),
        parent=None if content.get("parent") is None else token("parent"),
        sequence=count("sequence", 1),
        step=count("step", 0),
        world_size=count("world_size", 1),
        created=take("created", str),
        reasons=tuple(reasons),
        boundary=take("boundary", dict),
        versions=take("versions", dict),
        files=_files(take("files", list)),
    )


def _files(listed: list[Any]) -> tuple[File, ...]:
    if not 0 < len(listed) <= _MOST_FILES:
        raise ManifestError(f"the manifest lists {len(listed)} files")
    files = []
    for item in listed:
        if not isinstance(item, dict) or set(item) != {"path", "size", "xxh3_128"}:
            raise ManifestError("the manifest lists something that is no file")
        path, size, digest = item["path"], item["size"], item["xxh3_128"]
        if not isinstance(path, str) or not names.is_relative_path(path) or path == names.MANIFEST:
            raise ManifestError(f"the manifest lists a file under a name that is not allowed: {path!r}")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**63:
            raise ManifestError(f"the manifest gives {path} no size")
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise ManifestError(f"the manifest gives {path} no digest")
        files.append(File(path, size, digest))
    # Two names that differ in case alone are one file on some file systems.
    if len({file.path.casefold() for file in files}) != len(files):
        raise ManifestError("the manifest lists a file twice")
    return tuple(files)


def strict_json(data: bytes | str) -> Any:
    """Reads JSON that anybody may have written: no key twice, no `NaN`.

    Raises:
        ValueError: It is not that.
    """
    return json.loads(data, object_pairs_hook=_without_twins, parse_constant=_no_constant)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not a number")
