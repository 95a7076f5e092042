"""Looks at what files hold, beyond their digests: a manifest can be made to fit any bytes."""

from pathlib import Path

from holdfast.errors import CheckpointError
from holdfast.layouts import image
from holdfast.layouts.layout import BY_NAME
from holdfast.layouts.safetensors import header
from holdfast.layouts.safetensors.header import HeaderError
from holdfast.store import files, reading
from holdfast.store.folder import Folder
from holdfast.store.manifest import File, Manifest


def problems_of_json(folder: Folder, manifest: Manifest) -> list[str]:
    """Returns a line for each file of JSON that no reader of the checkpoint's layout takes.

    Args:
        folder: The open directory of a checkpoint that verifies.
        manifest: Its manifest.
    """
    layout = BY_NAME.get(manifest.layout)
    if layout is None or not layout.has_own_json:
        return []
    listed = [_problem_of_json(folder, file) for file in manifest.files if file.path.endswith(".json")]
    return [problem for problem in listed if problem]


def problems_of_tensors(folder: Folder, manifest: Manifest) -> list[str]:
    """Returns a line for each file of tensors that is none, whatever its name says. The arguments are as above."""
    problems = []
    for file in manifest.files:
        if file.path.endswith(".safetensors"):
            try:
                with files.open_inside(folder, file.path) as fd:
                    header.read(fd)
            except HeaderError as error:
                problems.append(f"{file.path}: {error}")
    return problems


def _problem_of_json(folder: Folder, file: File) -> str:
    data, problem = reading.read_small(folder, file, image.MOST_JSON_BYTES)
    if problem is not None:
        return problem
    try:
        content = image.decode_json(data, Path(file.path))
    except CheckpointError as error:
        return str(error)
    return "" if isinstance(content, dict) else f"{file.path}: is no JSON object"
