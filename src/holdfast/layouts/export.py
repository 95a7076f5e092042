"""The weights of a checkpoint, of any layout, left in another directory for anything that loads a model."""

import os
from pathlib import Path
from uuid import uuid4

from holdfast.errors import DamagedCheckpointError, UnsupportedError
from holdfast.layouts.layout import BY_NAME
from holdfast.store import files, names
from holdfast.store.verify import verify
from holdfast.text import quoted


def export(checkpoint: Path, target: Path) -> list[Path]:
    """Leaves the weights of a checkpoint in another directory.

    Args:
        checkpoint: The checkpoint; it is verified first.
        target: The directory. It is made if it is missing; nothing in it is replaced.

    Returns:
        The files that were written.

    Raises:
        DamagedCheckpointError: It is not what was written.
        UnsupportedError: The target has files of the same names, or the checkpoint holds no weights.
    """
    report = verify(checkpoint)
    manifest = report.entry.manifest
    if manifest is None or not report.good:
        raise DamagedCheckpointError(
            f"{checkpoint} cannot be exported: {'; '.join(report.problems)}", list(report.problems)
        )
    if (layout := BY_NAME.get(manifest.layout)) is None:
        raise UnsupportedError(
            f"the layout of {checkpoint} is {quoted(manifest.layout)}, which this version does not know"
        )
    target.mkdir(parents=True, exist_ok=True)
    # First under a name of its own, so that a file of the target is there whole or not at all.
    staging = target / names.staging(manifest.run, manifest.step, uuid4().hex)
    files.make_directory(staging)
    try:
        layout.leave_weights(report, staging)
        return _move(staging, target)
    finally:
        files.remove_tree(staging)


def _move(staging: Path, target: Path) -> list[Path]:
    paths = [path.relative_to(staging) for path in sorted(staging.rglob("*")) if path.is_file()]
    if not paths:
        raise UnsupportedError("the checkpoint holds no model whose weights could be exported")
    if taken := [str(path) for path in paths if os.path.lexists(target / path)]:
        raise UnsupportedError(
            f"{target} has {', '.join(taken)} already, and nothing is overwritten",
            hint="give a directory of its own, or remove what is there",
        )
    for path in paths:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        files.rename_new(staging / path, target / path)
    for folder in sorted({(target / path).parent for path in paths}, reverse=True):
        files.sync_directory(folder)
    return [target / path for path in paths]
