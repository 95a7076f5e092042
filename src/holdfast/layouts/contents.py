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
    listed = [_problem_of_json(folder, file) for file in own_json(manifest)]
    return [problem for problem in listed if problem]


def own_json(manifest: Manifest) -> list[File]:
    """Returns the files of JSON that Holdfast itself reads at a resume."""
    layout = BY_NAME.get(manifest.layout)
    is_own = layout is not None and layout.has_own_json
    return [file for file in manifest.files if is_own and file.path.endswith(".json")]


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
    return problem_in_json(file, data) if problem is None else problem


def problem_in_json(file: File, data: bytes) -> str:
    """Returns a line where no reader takes the bytes of a file of JSON; an empty one where it is good."""
    try:
        content = image.decode_json(data, Path(file.path))
    except CheckpointError as error:
        return str(error)
    return "" if isinstance(content, dict) else f"{file.path}: is no JSON object"
