"""The files of the native layout that hold each rank's own, and the note that says what is in them."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from holdfast.errors import CheckpointError
from holdfast.layouts.image import json_image
from holdfast.layouts.safetensors import writing

if TYPE_CHECKING:
    import torch

    from holdfast.layouts.image import Image

OWN_MODELS, OWN_OPTIMIZERS, OWN_OBJECTS = "own_models", "own_optimizers", "own_objects"
"""The manifest's words for parts of each kind of which ranks have more of their own than buffers."""
_TENSORS, _REST = ".safetensors", ".json"
_OWN_FILE = re.compile(r"(?P<part>[^.]+)\.own-(?P<rank>[0-9]{5,})(?P<ending>\.safetensors|\.json)")
_KEY = "own"


class Own(NamedTuple):
    """The content of a part that a rank writes for itself."""

    tensors: "Mapping[str, torch.Tensor]"
    rest: Any
    """The part's JSON; None where that of rank 0 is this rank's too."""
    aliases: Mapping[str, str]


@dataclass(frozen=True)
class Note:
    """The note in a part's JSON on what is each rank's own.

    Args:
        differing: Tensors that all ranks have, and not all alike, buffers of a model excepted.
        partial: Tensors that only some ranks have.
        rest: True where the JSON differs.
    """

    differing: frozenset[str] = frozenset()
    partial: frozenset[str] = frozenset()
    rest: bool = False

    @property
    def tensors(self) -> list[str]:
        """The names of all tensors that ranks do not hold alike."""
        return sorted(self.differing | self.partial)


def note(differing: Collection[str], partial: Collection[str], *, rest: bool) -> dict[str, Any]:
    """Returns the JSON of a note; empty where there is nothing to say."""
    said = {"differing": sorted(differing), "partial": sorted(partial), "rest": rest}
    return {key: value for key, value in said.items() if value}


def note_of(part: str, rest: Any) -> Note:
    """Returns the note in a part's JSON, which anybody may have written; an empty one where there is none.

    Raises:
        CheckpointError: It cannot be read.
    """
    said = rest.get(_KEY, {}) if isinstance(rest, dict) else {}
    try:
        differing, partial = (frozenset(map(str, said.get(key, []))) for key in ("differing", "partial"))
        return Note(differing, partial, said.get("rest") is True)
    except (TypeError, AttributeError) as error:
        raise CheckpointError(f"{part}: what the checkpoint says of each rank's own cannot be read") from error


def with_note(rest: Mapping[str, Any], said: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a part's JSON with a note, if there is something to say."""
    return {**rest, _KEY: said} if said else rest


def images(part: str, rank: int, own: Own) -> "list[Image]":
    """Returns the files of what is a rank's own of a part."""
    file_images = []
    if own.tensors:
        file_images.append(writing.image(tensors_path(part, rank), own.tensors, {**own.aliases, "format": "pt"}))
    if own.rest is not None:
        file_images.append(json_image(rest_path(part, rank), own.rest))
    return file_images


def tensors_path(part: str, rank: int) -> str:
    """Returns the file of a rank's own tensors of a part."""
    return f"{part}.own-{rank:05}{_TENSORS}"


def rest_path(part: str, rank: int) -> str:
    """Returns the file of a rank's own JSON of a part."""
    return f"{part}.own-{rank:05}{_REST}"


def own_rests(listed: Iterable[str]) -> dict[str, dict[int, str]]:
    """Returns the files of JSON that are a rank's own: by part and rank, from the paths of a checkpoint's files."""
    return _own_files(listed, _REST)


def own_tensors(listed: Iterable[str]) -> dict[str, dict[int, str]]:
    """Returns the files of tensors that are a rank's own: by part and rank, from the paths of a checkpoint's files."""
    return _own_files(listed, _TENSORS)


def _own_files(listed: Iterable[str], ending: str) -> dict[str, dict[int, str]]:
    files: dict[str, dict[int, str]] = {}
    for path in sorted(listed):
        if (match := _OWN_FILE.fullmatch(path)) and match["ending"] == ending:
            files.setdefault(match["part"], {})[int(match["rank"])] = path
    return files
