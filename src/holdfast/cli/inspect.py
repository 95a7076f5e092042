"""`holdfast inspect CHECKPOINT`: the facts of a checkpoint, without loading it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer

from holdfast.cli import naming
from holdfast.cli.output import as_json, columns, size, tell
from holdfast.errors import DamagedCheckpointError
from holdfast.layouts.safetensors import header
from holdfast.layouts.safetensors.header import HeaderError, Tensor
from holdfast.layouts.whole_tensors import Whole, gather
from holdfast.store import files
from holdfast.store.folder import Folder
from holdfast.store.manifest import Manifest, in_short
from holdfast.text import shown


def inspect(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Tell who asked for a checkpoint, when, at which step, and what it holds. `verify` reads every byte."""
    folder, manifest = naming.checkpoint(checkpoint)
    path = folder.path
    headers, problems = _headers(folder, manifest)
    tensors: list[Whole] = []
    try:
        tensors = gather(manifest, headers)
    except HeaderError as error:
        problems.append(str(error))
    pinned = naming.pinned_in(path.parent)
    pin = None if pinned is None else manifest.attempt in pinned
    if json:
        as_json({**_described(path, manifest, headers), "pinned": pin, "problems": problems})
    else:
        _show(path, manifest, tensors, pin)
    if problems and json:
        raise typer.Exit(DamagedCheckpointError.exit_code)
    if problems:
        raise DamagedCheckpointError("; ".join(problems), problems, hint=f"see what is wrong: holdfast verify {path}")


def _headers(folder: Folder, manifest: Manifest) -> tuple[dict[str, list[Tensor]], list[str]]:
    """Returns the tensors of each file that holds some, and a line for each file that cannot be read."""
    headers, problems = {}, []
    for file in manifest.files:
        if not file.path.endswith(".safetensors"):
            continue
        try:
            with files.open_inside(folder, file.path) as fd:
                headers[file.path] = header.read(fd)
        except HeaderError as error:
            problems.append(f"{file.path}: {error}")
        except OSError as error:
            problems.append(f"{file.path}: cannot be read: {error.strerror or error}")
    return headers, problems


def _show(path: Path, manifest: Manifest, tensors: Sequence[Whole], pinned: bool | None) -> None:
    for name, value in _facts(path, manifest, pinned):
        tell(f"{shown(name):<14}{shown(value)}")
    tell()
    columns(("FILE", "SIZE"), [(file.path, size(file.size)) for file in manifest.files])
    for name, group in groupby(tensors, lambda tensor: tensor.file):
        whole = list(group)
        tell(f"\n{shown(name)}: {len(whole)} tensors, {size(sum(tensor.bytes for tensor in whole))}")
        rows = [(t.name, t.dtype, "x".join(map(str, t.shape)) or "scalar", size(t.bytes)) for t in whole]
        if manifest.tensors:
            pieces = [(*row, str(len(tensor.pieces))) for row, tensor in zip(rows, whole, strict=True)]
            columns(("TENSOR", "TYPE", "SHAPE", "SIZE", "PIECES"), pieces)
        else:
            columns(("TENSOR", "TYPE", "SHAPE", "SIZE"), rows)


def _facts(path: Path, manifest: Manifest, pinned: bool | None) -> list[tuple[str, str]]:
    in_term = f" of term {manifest.term}" if manifest.term else ""
    facts = [
        ("checkpoint", str(path)),
        ("step", f"{manifest.step} (face {manifest.boundary.get('face')})"),
        ("written", f"{manifest.created}, as commit {manifest.sequence}{in_term}"),
    ]
    for reason in manifest.reasons:
        label = "".join(f", {name} {reason[name]}" for name in ("label", "slot") if reason.get(name))
        facts.append(("asked by", f"{reason.get('why') or 'nobody said why'} ({reason.get('door')}){label}"))
    if manifest.more_reasons:
        facts.append(("asked by", f"{manifest.more_reasons:,} more"))
    facts += [
        ("run", manifest.run),
        ("attempt", manifest.attempt),
        ("resumed from", manifest.parent or "nothing: the run began at zero"),
        ("pinned", {None: "unknown", True: "yes", False: "no"}[pinned]),
        ("layout", manifest.layout),
        ("processes", str(manifest.world_size)),
        ("size", f"{size(manifest.size)} in {len(manifest.files)} files"),
    ]
    if manifest.not_finite:
        facts.append(("not finite", in_short(manifest.not_finite)))
    return facts + [(str(name), str(value)) for name, value in manifest.versions.items()]


def _described(path: Path, manifest: Manifest, headers: Mapping[str, list[Tensor]]) -> dict[str, Any]:
    return {
        "path": str(path),
        **{key: value for key, value in asdict(manifest).items() if key not in ("files", "tensors")},
        "bytes": manifest.size,
        "digest": manifest.sha256,
        "files": [file.as_json() for file in manifest.files],
        "pieces": manifest.tensors,
        "tensors": {
            file: [{"name": t.name, "dtype": t.dtype, "shape": t.shape, "bytes": t.bytes} for t in tensors]
            for file, tensors in headers.items()
        },
    }
