"""The manifest: the last file of a checkpoint, which says what the others must be. Format: `docs/format.md`.

Standard library alone. What is read here may have been written by anybody, so everything is checked before it is used.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from holdfast.store import digest, grid, names
from holdfast.text import quoted

FORMAT = "holdfast-checkpoint"
KNOWN: frozenset[str] = frozenset(
    (
        "carried",
        "data",
        "epochs",
        "gradients",
        "own_models",
        "own_objects",
        "own_optimizers",
        "pending_callbacks",
        "term",
        "trainer_data",
    )
)
"""The words of `requires` that this reader knows."""
_PLAIN, _REQUIRING = 1, 2
MOST_BYTES = 64 << 20
_MOST_FILES = 100_000
MOST_NAMED = 20
MOST_REASONS = 1000
_MOST_LEVELS = 50  # what is read may be written again, and Python's own limit is a crash by then

_CONTAINERS = (dict, list, tuple)

_TAIL = re.compile(rb'\n  "sha256": "([0-9a-f]{64})"\n}\n\Z')


class ManifestError(ValueError):
    """A manifest that is not one, or that this version does not read."""


@dataclass(frozen=True)
class File:
    """One file of a checkpoint: its path inside, its size in bytes, and its digests."""

    path: str
    size: int
    digests: str
    """The digests of all blocks, one after the other: a part can be read and proved. Without bytes it has one."""

    def as_json(self) -> dict[str, Any]:
        """Returns the manifest's entry for the file."""
        return {"path": self.path, "size": self.size, digest.NAME: self.digests}


@dataclass(frozen=True)
class Manifest:
    """The content of a manifest: the identity of a checkpoint, its history and its files."""

    layout: str
    run: str
    attempt: str
    parent: str | None
    sequence: int
    step: int
    world_size: int
    created: str
    reasons: tuple[Mapping[str, Any], ...]
    """Those who asked; of more than `MOST_REASONS` those first that gave a label."""
    boundary: Mapping[str, Any]
    versions: Mapping[str, str]
    files: tuple[File, ...] = field(default=())
    tensors: Mapping[str, Any] = field(default_factory=dict)
    not_finite: tuple[str, ...] = ()
    """Tensors that hold NaN or infinity and should not; of more than `MOST_NAMED` the first."""
    requires: tuple[str, ...] = ()
    """The words for all that a reader must know beyond version 1, sorted."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The settings of the training as its user gave them."""
    more_reasons: int = 0
    """The number of requests that `reasons` does not name."""
    term: int = 0
    """The term that it counts for (`store/terms.py`); 0 where it names none."""

    @property
    def version(self) -> int:
        """The format's version: 2 where a reader of version 1 would get something wrong."""
        return _REQUIRING if self.requires else _PLAIN

    @property
    def size(self) -> int:
        """The size of all files that the manifest lists, in bytes."""
        return sum(file.size for file in self.files)

    @property
    def sha256(self) -> str:
        """The digest that ends the manifest file, of all lines before it."""
        return hashlib.sha256(self._body()).hexdigest()

    def encode(self) -> bytes:
        """Returns the bytes of the manifest file. Its last line but one is the sha256 of all lines before it.

        Raises:
            ManifestError: They are more than any reader takes.
        """
        body = self._body()
        data = body + f'  "sha256": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode()
        if len(data) > MOST_BYTES:
            raise ManifestError(f"the manifest would have {len(data):,} bytes, and one has at most {MOST_BYTES:,}")
        return data

    def _body(self) -> bytes:
        content = {"format": FORMAT, "version": self.version, **asdict(replace(self, files=(), tensors={}))}
        content["files"] = [file.as_json() for file in self.files]
        del content["tensors"]
        for name in ("not_finite", "requires", "settings", "more_reasons", "term"):
            if not content[name]:
                del content[name]
        text = json.dumps(content, indent=2, allow_nan=False).removesuffix("\n}")
        if self.tensors:
            text += f',\n  "tensors": {_one_a_line(self.tensors)}'
        return text.encode() + b",\n"


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
    except ValueError as error:
        raise ManifestError(f"the manifest is not valid JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ManifestError(f"the manifest's format is not {FORMAT!r}")
    version = content.get("version")
    if type(version) is not int or version not in (_PLAIN, _REQUIRING):
        raise ManifestError(
            f"the manifest is of format version {quoted(version)}, and this Holdfast reads versions"
            f" {_PLAIN} and {_REQUIRING}"
        )
    return _checked(content)


def _checked(content: dict[str, Any]) -> Manifest:
    def take(key: str, kind: type) -> Any:
        value = content.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ManifestError(f"the manifest's {key!r} is missing or of the wrong kind")
        return value

    def count(key: str, least: int, end: int = names.NUMBERS_END) -> int:
        value: int = take(key, int)
        if not least <= value < end:
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
    boundary, versions = take("boundary", dict), take("versions", dict)
    if not all(isinstance(version, str) for version in versions.values()):
        raise ManifestError("the manifest's 'versions' are of the wrong kind")
    settings = take("settings", dict) if "settings" in content else {}
    if is_deep((reasons, boundary, settings), _MOST_LEVELS):
        raise ManifestError(f"the manifest is nested more than {_MOST_LEVELS} levels deep")
    files = _files(take("files", list))
    requires = _requires(take("requires", list)) if content["version"] == _REQUIRING else ()
    term = count("term", 1) if "term" in content else 0
    if "term" in requires and not term:
        raise ManifestError("the manifest is wrong: it requires 'term', and has none")
    return Manifest(
        layout=take("layout", str),
        run=token("run"),
        attempt=token("attempt"),
        parent=None if content.get("parent") is None else token("parent"),
        sequence=count("sequence", 1),
        step=count("step", 0),
        world_size=count("world_size", 1, 2**63),
        created=take("created", str),
        reasons=tuple(reasons),
        boundary=boundary,
        versions=versions,
        files=files,
        tensors=_tensors(content.get("tensors", {}), {file.path for file in files}),
        not_finite=_not_finite(take("not_finite", list)) if "not_finite" in content else (),
        requires=requires,
        settings=settings,
        more_reasons=count("more_reasons", 1) if "more_reasons" in content else 0,
        term=term,
    )


def _requires(listed: list[Any]) -> tuple[str, ...]:
    if not listed or not all(isinstance(word, str) for word in listed) or sorted(set(listed)) != listed:
        raise ManifestError("the manifest's 'requires' is no sorted list of words")
    if unknown := [word for word in listed if word not in KNOWN]:
        raise ManifestError(
            f"the checkpoint needs a newer Holdfast: it has {', '.join(quoted(word) for word in unknown)}"
        )
    return tuple(listed)


def _not_finite(listed: list[Any]) -> tuple[str, ...]:
    if not 0 < len(listed) <= MOST_NAMED:
        raise ManifestError(f"the manifest's 'not_finite' names {len(listed)} tensors")
    if not all(isinstance(name, str) for name in listed) or sorted(set(listed)) != listed:
        raise ManifestError("the manifest's 'not_finite' is no sorted list of names")
    return tuple(listed)


def _files(listed: list[Any]) -> tuple[File, ...]:
    if not 0 < len(listed) <= _MOST_FILES:
        raise ManifestError(f"the manifest lists {len(listed)} files")
    files = []
    for item in listed:
        if not isinstance(item, dict) or set(item) != {"path", "size", digest.NAME}:
            raise ManifestError("the manifest lists something that is no file")
        path, size, digests = item["path"], item["size"], item[digest.NAME]
        if not isinstance(path, str) or not names.is_relative_path(path) or path == names.MANIFEST:
            raise ManifestError(f"the manifest lists a file under a name that is not allowed: {quoted(path)}")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**63:
            raise ManifestError(f"the manifest gives {path} no size")
        if not digest.fit(digests, size):
            block = f"{digest.BLOCK_BYTES / 2**20:g} MiB"
            raise ManifestError(f"the manifest does not give {path} a digest for each {block} of it")
        files.append(File(path, size, digests))
    # Two names that differ in case alone are one file on some file systems.
    if len({file.path.casefold() for file in files}) != len(files):
        raise ManifestError("the manifest lists a file twice")
    return tuple(files)


def _tensors(parts: Any, paths: set[str]) -> dict[str, Any]:
    if not isinstance(parts, dict) or not all(isinstance(tensors, dict) for tensors in parts.values()):
        raise ManifestError("the manifest's 'tensors' are of the wrong kind")
    for part, tensors in parts.items():
        for name, entry in tensors.items():
            if problem := grid.problem(entry, paths):
                raise ManifestError(
                    f"the manifest's 'tensors' are wrong about {quoted(name)} of {quoted(part)}: {problem}"
                )
    return parts


def is_deep(value: Any, most: int) -> bool:
    """Tells whether JSON is nested in more than `most` levels. Goes level by level: it could be very deep."""
    level = [value] if isinstance(value, _CONTAINERS) else []
    for _ in range(most):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, _CONTAINERS)
        ]
        if not level:
            return False
    return True


def _one_a_line(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns JSON with a line for each tensor: with one for each number it would be three times as long."""
    lines = []
    for part, tensors in parts.items():
        inner = [f"      {json.dumps(name)}: {json.dumps(entry, allow_nan=False)}" for name, entry in tensors.items()]
        lines.append(f"    {json.dumps(part)}: {{\n" + ",\n".join(inner) + "\n    }")
    return "{\n" + ",\n".join(lines) + "\n  }"


def in_short(not_finite: Sequence[str]) -> str:
    """Returns a manifest's `not_finite` for people: the first name, and the number of others."""
    first, *others = not_finite
    if not others:
        return first
    return f"{first} and {'at least ' if len(not_finite) == MOST_NAMED else ''}{len(others)} more"


def strict_json(data: bytes | str, *, finite: bool = True) -> Any:
    """Reads JSON that anybody may have written: UTF-8, no key twice.

    Args:
        data: The JSON.
        finite: True refuses `NaN` and infinity, which Python and transformers write.

    Raises:
        ValueError: It is not that, or is nested deeper than Python can read.
    """
    # Bytes are decoded here: `json` would guess their encoding, and other readers of the same file would not.
    text = data if isinstance(data, str) else data.decode()
    constant = _no_constant if finite else None
    try:
        return json.loads(text, object_pairs_hook=_reject_duplicate_keys, parse_constant=constant)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Builds a JSON object from its pairs, for `json.loads`.

    Raises:
        ValueError: A key appears twice.
    """
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key appears twice")
    return content


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not a number")
