"""Files of a checkpoint that name others, which a Trainer would open: all that they name is of the checkpoint's own.

Standard library, and the digest's. The rules are those of `docs/format.md`, "Files that name others".
"""

from pathlib import Path, PurePath
from typing import Any

from holdfast.store import files, names, reading
from holdfast.store.folder import Folder
from holdfast.store.manifest import Manifest, strict_json
from holdfast.text import quoted

STATE = "trainer_state.json"
_INDEX = ".index.json"
_LATEST, _LATEST_FOLDER = "latest", "global_step"  # DeepSpeed's
_MOST_INDEX_BYTES = 64 << 20
_MOST_LATEST_BYTES = 4096
MOST_STATE_BYTES = 1 << 30
"""The most bytes of a Trainer's state, which has a line for each of a training's logs."""


def problem(folder: Folder, manifest: Manifest) -> str | None:
    """Returns the first problem of the files that name others; None where there is none.

    A file that is not what was written is passed over: whoever verifies says that of it.

    Args:
        folder: The open directory of the checkpoint.
        manifest: Its manifest.
    """
    paths = {file.path for file in manifest.files}
    for file in manifest.files:
        if file.path.endswith(_INDEX):
            limit, check = _MOST_INDEX_BYTES, _problem_of_index
        elif file.path == _LATEST and any(path.startswith(_LATEST_FOLDER) and "/" in path for path in paths):
            limit, check = _MOST_LATEST_BYTES, _problem_of_latest
        else:
            continue
        if file.size > limit:
            return f"{file.path}: is {file.size:,} bytes long, and such a file has at most {limit:,}"
        data, changed = reading.read_small(folder, file, limit)
        if changed is None and (wrong := check(file.path, data, paths)) is not None:
            return f"{file.path}: {wrong}"
    return None


def _problem_of_index(path: str, data: bytes, paths: set[str]) -> str | None:
    try:
        content = strict_json(data)
    except ValueError as error:
        return f"is not valid JSON: {error}"
    weights = content.get("weight_map", {}) if isinstance(content, dict) else {}
    if not isinstance(weights, dict):
        return "its weight_map is no object"
    above = path.rpartition("/")[0]
    for name in weights.values():
        if not isinstance(name, str) or not names.is_component(name) or f"{above}/{name}".lstrip("/") not in paths:
            return f"names {quoted(name)}, which is no file of the checkpoint beside it"
    return None


def _problem_of_latest(path: str, data: bytes, paths: set[str]) -> str | None:
    name = data.decode(errors="replace").strip()
    if names.is_component(name) and any(path.startswith(f"{name}/") for path in paths):
        return None
    return f"names {quoted(name)}, which is no folder of the checkpoint"


def problem_of_state(folder: Folder, manifest: Manifest) -> str | None:
    """Returns the problem of a Trainer's state; None where there is none, or no such state, or it was changed.

    It may be large, so that only who reads all of a checkpoint asks.

    Args:
        folder: The open directory of the checkpoint.
        manifest: Its manifest.
    """
    file = next((file for file in manifest.files if file.path == STATE), None)
    if file is None:
        return None
    data, changed = reading.read_small(folder, file, MOST_STATE_BYTES)
    if changed is not None:
        return None
    try:
        best = best_step(data)
    except ValueError as error:
        return f"{STATE}: {error}"
    if best is not None and best > manifest.step:
        return f"{STATE}: names {names.checkpoint(best)} as the best, and is of step {manifest.step}"
    return None


def problem_of_foreign(path: Path) -> str | None:
    """Returns the first problem of the indexes in a checkpoint without a manifest; None where there is none.

    Args:
        path: The checkpoint.

    Raises:
        OSError: It cannot be read.
    """
    present = {file.name for file in path.iterdir() if file.is_file()}
    for name in sorted(present):
        if name.endswith(_INDEX):
            data = files.read(path / name, limit=_MOST_INDEX_BYTES)
            if (wrong := _problem_of_index(name, data, present)) is not None:
                return f"{name}: {wrong}"
    return None


def best_step(data: bytes) -> int | None:
    """Returns the step of the checkpoint that a Trainer's state names as the best; None where it names none.

    Args:
        data: The bytes of the state's file.

    Raises:
        ValueError: It is no such state, or names something else.
    """
    return step_of_best(read_state(data)["best_model_checkpoint"])


def read_state(data: bytes) -> dict[str, Any]:
    """Reads a Trainer's state, which names a checkpoint as the best, or none.

    Raises:
        ValueError: It is no such state.
    """
    try:
        content = strict_json(data, finite=False)  # a loss can be NaN
    except ValueError as error:
        raise ValueError(f"is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError("is no JSON object")
    best = content.setdefault("best_model_checkpoint", None)
    if best is not None and step_of_best(best) is None:
        raise ValueError(f"names {quoted(best)} as the best, which is no checkpoint of a run")
    return content


def step_of_best(best: object) -> int | None:
    """Returns the step of the checkpoint that a path leads to by its name; None where it is no checkpoint's.

    Its directory may have been moved since the path was written down, so the name alone counts.
    """
    name = PurePath(best).name if isinstance(best, str) and best.isprintable() else ""
    step = names.step_of(name)
    return step if step is not None and name == names.checkpoint(step) and step < names.NUMBERS_END else None
