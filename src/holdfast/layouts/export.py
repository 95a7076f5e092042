"""The weights of a checkpoint, of any layout, left in another directory for anything that loads a model."""

import os
from pathlib import Path
from uuid import uuid4

from holdfast.errors import DamagedCheckpointError, UnsupportedError
from holdfast.layouts.contents import problems_of_json, problems_of_tensors
from holdfast.layouts.layout import BY_NAME
from holdfast.store import files, names
from holdfast.store.commit import make_new
from holdfast.store.folder import Folder, Where, files_below, opened
from holdfast.store.verify import verify
from holdfast.text import quoted


def export(checkpoint: Where | Folder, target: Path) -> list[Path]:
    """Leaves the weights of a checkpoint in another directory.

    Args:
        checkpoint: The checkpoint; it is verified first, and what is exported is what was verified.
        target: The directory. It is made if it is missing; nothing in it is replaced.

    Returns:
        The files that were written.

    Raises:
        DamagedCheckpointError: It is not what was written.
        UnsupportedError: The target has files of the same names, or the checkpoint holds no weights.
    """
    with opened(checkpoint) as folder:
        report = verify(folder)
        manifest = report.entry.manifest
        problems = list(report.problems)
        if manifest is not None and not problems:
            problems = [*problems_of_json(folder, manifest), *problems_of_tensors(folder, manifest)]
        if manifest is None or problems:
            raise DamagedCheckpointError(f"{folder} cannot be exported: {'; '.join(problems)}", problems)
        if (layout := BY_NAME.get(manifest.layout)) is None:
            raise UnsupportedError(
                f"the layout of {folder} is {quoted(manifest.layout)}, which this version does not know"
            )
        target.mkdir(parents=True, exist_ok=True)
        with Folder.open(target, follow=True) as into:
            # First under a name of its own, so that a file of the target is there whole or not at all.
            place = into / names.staging(manifest.run, manifest.step, uuid4().hex)
            with make_new(place) as staging:
                try:
                    layout.leave_weights(report, folder, staging)
                    return _move(staging, into)
                finally:
                    files.remove_open(staging, place)


def _move(staging: Folder, target: Folder) -> list[Path]:
    paths = files_below(staging)
    if not paths:
        raise UnsupportedError("the checkpoint holds no model whose weights could be exported")
    if taken := [path for path in paths if os.path.lexists(target.path / path)]:
        raise UnsupportedError(
            f"{target} has {', '.join(taken)} already, and nothing is overwritten",
            hint="give a directory of its own, or remove what is there",
        )
    for path in reversed(paths):
        above, _, name = path.rpartition("/")
        with files.below(staging, above) as origin, files.below(target, above, make=True) as destination:
            files.rename_new(origin / name, destination / name)
            files.sync_directory(destination)
    files.sync_directory(target)
    return [target.path / path for path in paths]
