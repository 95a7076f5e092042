"""`holdfast inspect CHECKPOINT|URL`: the facts of a checkpoint, without loading it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from holdfast.arguments import is_address
from holdfast.cli import naming
from holdfast.cli.output import as_json, columns, size, tell
from holdfast.cli.there import Endpoint, Region, local_path
from holdfast.errors import DamagedCheckpointError, RunNotFoundError
from holdfast.layouts.safetensors import header
from holdfast.layouts.safetensors.header import HeaderError, Tensor
from holdfast.layouts.whole_tensors import Whole, gather
from holdfast.mirror.run_there import look, split
from holdfast.remote.beginnings import beginning_of
from holdfast.remote.listing import manifest_of
from holdfast.store import files
from holdfast.store.manifest import File, Manifest, in_short
from holdfast.text import shown


def inspect(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT|URL", help="A checkpoint, or that of a mirror: URL/checkpoint-STEP.")
    ],
    endpoint: Endpoint = None,
    region: Region = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Tell who asked for a checkpoint, when, at which step, and what it holds. `verify` reads every byte."""
    if is_address(checkpoint):
        path, manifest, pin, opening = _there(checkpoint, endpoint, region)
    else:
        path, manifest, pin, opening = _here(local_path(checkpoint, endpoint, region))
    headers, problems = _headers(manifest, opening)
    tensors: list[Whole] = []
    try:
        tensors = gather(manifest, headers)
    except HeaderError as error:
        problems.append(str(error))
    if json:
        as_json({**_described(path, manifest, headers), "pinned": pin, "problems": problems})
    else:
        _show(path, manifest, tensors, pin)
    if problems and json:
        raise typer.Exit(DamagedCheckpointError.exit_code)
    if problems:
        raise DamagedCheckpointError("; ".join(problems), problems, hint=f"see what is wrong: holdfast verify {path}")


def _here(checkpoint: Path) -> "_Checkpoint":
    folder, manifest = naming.checkpoint(checkpoint)
    pinned = naming.pinned_in(folder.path.parent)
    pin = None if pinned is None else manifest.attempt in pinned
    return _Checkpoint(str(folder.path), manifest, pin, lambda file: files.open_inside(folder, file.path))


def _there(url: str, endpoint: str | None, region: str | None) -> "_Checkpoint":
    place, name = split(url)
    there = look(place, endpoint, region)
    if name is None:
        newest = next(iter(there.entries), None)
        hint = "it has none yet" if newest is None else f"the newest in it is {there.store.url}/{newest.path}"
        raise RunNotFoundError(f"{there.store.url} is a mirror, and a checkpoint is meant", hint=hint)
    key = there.named(name).key
    _, manifest = manifest_of(there.store, key)
    pin = manifest.attempt in there.listing.pins
    return _Checkpoint(f"{there.store.url}/{name}", manifest, pin, lambda file: beginning_of(there.store, key, file))


class _Checkpoint(NamedTuple):
    """A checkpoint, wherever it is: its path, its manifest, whether it is pinned, and how a file of it is opened."""

    path: str
    manifest: Manifest
    pinned: bool | None
    opening: Callable[[File], AbstractContextManager[int]]


def _headers(
    manifest: Manifest, opening: Callable[[File], AbstractContextManager[int]]
) -> tuple[dict[str, list[Tensor]], list[str]]:
    """Returns the tensors of each file that holds some, and a line for each file that cannot be read."""
    headers, problems = {}, []
    for file in manifest.files:
        if not file.path.endswith(".safetensors"):
            continue
        try:
            with opening(file) as fd:
                headers[file.path] = header.read(fd)
        except HeaderError as error:
            problems.append(f"{file.path}: {error}")
        except OSError as error:
            problems.append(f"{file.path}: cannot be read: {error.strerror or error}")
    return headers, problems


def _show(path: str, manifest: Manifest, tensors: Sequence[Whole], pinned: bool | None) -> None:
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


def _facts(path: str, manifest: Manifest, pinned: bool | None) -> list[tuple[str, str]]:
    in_term = f" of term {manifest.term}" if manifest.term else ""
    facts = [
        ("checkpoint", path),
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


def _described(path: str, manifest: Manifest, headers: Mapping[str, list[Tensor]]) -> dict[str, Any]:
    return {
        "path": path,
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
