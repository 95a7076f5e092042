"""Checkpoints that somebody with intent has changed: their manifests were made to fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from holdfast.store import digest
from holdfast.store.manifest import File, decode


def with_intent(path: Path, name: str, data: bytes, **fields: Any) -> None:
    """Replaces a file of a checkpoint, or adds one, and has the manifest say so; `fields` are more of it."""
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    (path / name).write_bytes(data)
    manifest = decode((path / "MANIFEST.json").read_bytes())
    others = [file for file in manifest.files if file.path != name]
    listed = sorted([*others, File(name, len(data), digest.of_bytes(data))], key=lambda file: file.path)
    (path / "MANIFEST.json").write_bytes(replace(manifest, files=tuple(listed), **fields).encode())
