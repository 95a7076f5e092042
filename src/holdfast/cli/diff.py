"""`holdfast diff A B`: the differences of two checkpoints, and how large they are."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from holdfast.cli import naming
from holdfast.cli.output import as_json, columns, tell
from holdfast.cli.tensor_distance import distance
from holdfast.errors import DIFFERENT, DamagedCheckpointError
from holdfast.layouts.safetensors import header
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
        left, right = _Side(a, opened), _Side(b, opened)
        try:
            tensors = list(_tensors(left, right))
        except HeaderError as error:
            raise DamagedCheckpointError(f"a file has changed while it was read: {error}") from error
    others = list(_files(left, right))
    unlike = [tensor for tensor in tensors if tensor["state"] != "same"]
    unlike_others = [file for file in others if file["state"] != "same"]
    if json:
        as_json(
            {
                "a": str(left.path),
                "b": str(right.path),
                "same": not (unlike or unlike_others),
                "tensors": {"same": len(tensors) - len(unlike), "different": unlike},
                "files": {"same": len(others) - len(unlike_others), "different": unlike_others},
            }
        )
    else:
        if unlike:
            columns(("FILE", "TENSOR", "DIFFERENCE"), [(t["file"], t["name"], _difference(t)) for t in unlike])
        if unlike_others:
            columns(("OTHER FILE", "DIFFERENCE"), [(file["file"], file["state"]) for file in unlike_others])
        tell(f"tensors: {len(tensors) - len(unlike)} the same, {len(unlike)} not")
        tell(f"other files: {len(others) - len(unlike_others)} the same, {len(unlike_others)} not")
    if unlike or unlike_others:
        raise typer.Exit(DIFFERENT)


class _Side:
    """One of the two checkpoints, verified: its files, and its tensors by their file and name."""

    def __init__(self, path: Path, opened: ExitStack) -> None:
        folder, manifest = naming.checkpoint(path)
        self.path = folder.path
        opened.callback(folder.close)
        report = verify(folder)
        if not report.good:
            raise DamagedCheckpointError(
                f"{self.path} cannot be trusted: {'; '.join(report.problems)}",
                list(report.problems),
                hint="compare another one: holdfast list shows what there is",
            )
        self.files = {file.path: file for file in manifest.files}
        self.opened: dict[str, int] = {}
        headers = {}
        for file in manifest.files:
            if not file.path.endswith(_ENDING):
                continue
            fd = self.opened[file.path] = opened.enter_context(files.open_inside(folder, file.path))
            try:
                headers[file.path] = header.read(fd)
            except HeaderError as error:
                raise DamagedCheckpointError(f"{self.path / file.path}: {error}") from error
        try:
            tensors = gather(manifest, headers)
        except HeaderError as error:
            raise DamagedCheckpointError(f"{self.path}: {error}") from error
        # A model that is cut into more files, or fewer, is the same model.
        self.tensors = {(SHARD.sub("", tensor.file), tensor.name): tensor for tensor in tensors}

    def where(self, tensor: Whole) -> list[object]:
        """Returns the place of a tensor; two that have the same place in the same files need not be read."""
        return [(self.files[piece.file], piece.tensor, piece.offset) for piece in tensor.pieces]


def _tensors(left: _Side, right: _Side) -> Iterator[dict[str, Any]]:
    for key in sorted(left.tensors.keys() | right.tensors.keys()):
        tensor: dict[str, Any] = {"file": key[0], "name": key[1]}
        if key not in right.tensors or key not in left.tensors:
            yield tensor | {"state": "only in A" if key in left.tensors else "only in B"}
            continue
        here, there = left.tensors[key], right.tensors[key]
        if (here.dtype, here.shape) != (there.dtype, there.shape):
            kinds = {"a": _kind(here), "b": _kind(there)}
            yield tensor | {"state": "another type or shape", **kinds}
            continue
        apart = None
        if left.where(here) != right.where(there):
            a, b = partial(here.read, left.opened), partial(there.read, right.opened)
            apart = distance(a, b, here.dtype, here.bytes)
        if apart is None:
            yield tensor | {"state": "same"}
        else:
            yield tensor | {"state": "differs", "greatest": apart.greatest, "relative": apart.relative}


def _files(left: _Side, right: _Side) -> Iterator[dict[str, Any]]:
    for path in sorted(left.files.keys() | right.files.keys()):
        if path.endswith(_ENDING):
            continue
        if path not in right.files or path not in left.files:
            yield {"file": path, "state": "only in A" if path in left.files else "only in B"}
        else:
            yield {"file": path, "state": "same" if left.files[path] == right.files[path] else "differs"}


def _kind(tensor: Whole) -> dict[str, Any]:
    return {"dtype": tensor.dtype, "shape": tensor.shape}


def _difference(tensor: dict[str, Any]) -> str:
    if "a" in tensor:
        kinds = (f"{kind['dtype']} {list(kind['shape'])}" for kind in (tensor["a"], tensor["b"]))
        return " in A, ".join(kinds) + " in B"
    if tensor["state"] != "differs":
        return str(tensor["state"])
    if tensor["greatest"] is None:
        return "differs; nothing here counts with its type"
    return f"at most {tensor['greatest']:.3g}, relative {tensor['relative']:.3g}"
