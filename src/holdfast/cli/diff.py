"""`holdfast diff A B`: what differs between two checkpoints, and by how much."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from holdfast.cli import naming
from holdfast.cli.output import as_json, columns
from holdfast.cli.tensor_distance import distance
from holdfast.errors import DIFFERENT, DamagedCheckpointError
from holdfast.layouts.safetensors import header as tensor_headers
from holdfast.layouts.safetensors.header import HeaderError
from holdfast.layouts.whole_tensors import SHARD, Whole, gather
from holdfast.store import files
from holdfast.store.verify import verify

_ENDING = ".safetensors"


def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="A checkpoint.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Tell which tensors of two checkpoints differ, and by how much, and which other files. Exit code 1 if any does."""
    with ExitStack() as opened:
        one, other = _Side(a, opened), _Side(b, opened)
        try:
            tensors = list(_tensors(one, other))
        except HeaderError as error:
            raise DamagedCheckpointError(f"a file has changed while it was read: {error}") from error
    others = list(_files(one, other))
    unlike = [found for found in tensors if found["state"] != "same"]
    unlike_others = [found for found in others if found["state"] != "same"]
    if json:
        as_json(
            {
                "a": str(one.path),
                "b": str(other.path),
                "same": not (unlike or unlike_others),
                "tensors": {"same": len(tensors) - len(unlike), "different": unlike},
                "files": {"same": len(others) - len(unlike_others), "different": unlike_others},
            }
        )
    else:
        if unlike:
            columns(("FILE", "TENSOR", "DIFFERENCE"), [(t["file"], t["name"], _told(t)) for t in unlike])
        if unlike_others:
            columns(("OTHER FILE", "DIFFERENCE"), [(file["file"], file["state"]) for file in unlike_others])
        print(f"tensors: {len(tensors) - len(unlike)} the same, {len(unlike)} not")
        print(f"other files: {len(others) - len(unlike_others)} the same, {len(unlike_others)} not")
    if unlike or unlike_others:
        raise typer.Exit(DIFFERENT)


class _Side:
    """One of the two checkpoints, verified: its files, and its tensors by their file and name."""

    def __init__(self, given: Path, opened: ExitStack) -> None:
        self.path, manifest = naming.checkpoint(given)
        report = verify(self.path)
        if not report.good:
            raise DamagedCheckpointError(
                f"{self.path} cannot be trusted: {'; '.join(report.problems)}",
                list(report.problems),
                hint="compare another one: holdfast list shows what there is",
            )
        self.files = {file.path: file for file in manifest.files}
        self.opened: dict[str, int] = {}
        headers = {}
        folder = opened.enter_context(files.open_folder(self.path))
        for file in manifest.files:
            if not file.path.endswith(_ENDING):
                continue
            fd = self.opened[file.path] = opened.enter_context(files.open_inside(folder, file.path))
            try:
                headers[file.path] = tensor_headers.read(fd)
            except HeaderError as error:
                raise DamagedCheckpointError(f"{self.path / file.path}: {error}") from error
        try:
            found = gather(manifest, headers)
        except HeaderError as error:
            raise DamagedCheckpointError(f"{self.path}: {error}") from error
        # A model that is cut into more files, or fewer, is the same model.
        self.tensors = {(SHARD.sub("", tensor.file), tensor.name): tensor for tensor in found}

    def where(self, tensor: Whole) -> list[object]:
        """Equal for two tensors that have the same place in the same files, and need not be read."""
        return [(self.files[piece.file], piece.tensor, piece.offset) for piece in tensor.pieces]


def _tensors(one: _Side, other: _Side) -> Iterator[dict[str, Any]]:
    for key in sorted(one.tensors.keys() | other.tensors.keys()):
        told: dict[str, Any] = {"file": key[0], "name": key[1]}
        if key not in other.tensors or key not in one.tensors:
            yield told | {"state": "only in A" if key in one.tensors else "only in B"}
            continue
        here, there = one.tensors[key], other.tensors[key]
        if (here.dtype, here.shape) != (there.dtype, there.shape):
            kinds = {"a": _kind(here), "b": _kind(there)}
            yield told | {"state": "another type or shape", **kinds}
            continue
        apart = None
        if one.where(here) != other.where(there):
            a, b = partial(here.read, one.opened), partial(there.read, other.opened)
            apart = distance(a, b, here.dtype, here.bytes)
        if apart is None:
            yield told | {"state": "same"}
        else:
            yield told | {"state": "differs", "greatest": apart.greatest, "relative": apart.relative}


def _files(one: _Side, other: _Side) -> Iterator[dict[str, Any]]:
    for path in sorted(one.files.keys() | other.files.keys()):
        if path.endswith(_ENDING):
            continue
        if path not in other.files or path not in one.files:
            yield {"file": path, "state": "only in A" if path in one.files else "only in B"}
        else:
            yield {"file": path, "state": "same" if one.files[path] == other.files[path] else "differs"}


def _kind(tensor: Whole) -> dict[str, Any]:
    return {"dtype": tensor.dtype, "shape": tensor.shape}


def _told(found: dict[str, Any]) -> str:
    if "a" in found:
        kinds = (f"{kind['dtype']} {list(kind['shape'])}" for kind in (found["a"], found["b"]))
        return " in A, ".join(kinds) + " in B"
    if found["state"] != "differs":
        return str(found["state"])
    if found["greatest"] is None:
        return "differs; nothing here counts with its type"
    return f"at most {found['greatest']:.3g}, relative {found['relative']:.3g}"
