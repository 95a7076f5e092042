"""Looks for the files and directories that a configuration names and that must be there. Makes nothing.

It takes the values as the file has them, so that a wrong path is reported beside whatever else is wrong.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from holdfast.arguments import AUTO, LOCAL, is_address
from holdfast.train.config.types import home_expanded
from holdfast.wording import Loc, shown

_DATA_FILES = (".jsonl", ".json", ".parquet", ".csv", ".txt")


def problems(values: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    """Gives a line about each local path that cannot be used. Relative ones are relative to the current directory."""
    for key in ("base_model", "lora_model_dir"):
        if _is_path(values.get(key)):
            yield from _directory((key,), values[key])
    datasets = values.get("datasets")
    for index, dataset in enumerate(datasets if isinstance(datasets, list) else []):
        path: Any = dataset.get("path") if isinstance(dataset, dict) else None
        if (_is_path(path) or _is_data_file(path)) and not _exists(path):
            yield ("datasets", index, "path"), f"no such file or directory: {shown(path)}"
    checkpoint = values.get("resume_from_checkpoint")
    if isinstance(checkpoint, str) and checkpoint not in ("", AUTO, LOCAL):
        yield from _directory(("resume_from_checkpoint",), checkpoint)
    output = values.get("output_dir")
    if isinstance(output, str) and is_address(output):
        yield (
            ("output_dir",),
            "an address is given, and a directory of this machine is meant; give a directory here, and the address as"
            " mirror:",
        )
    elif isinstance(output, str) and _exists(output) and not _is_directory(output):
        yield ("output_dir",), f"there is a file of that name: {shown(output)}"


def _directory(loc: Loc, path: str) -> Iterator[tuple[Loc, str]]:
    if not _exists(path):
        yield loc, f"no such directory: {shown(path)}"
    elif not _is_directory(path):
        yield loc, f"not a directory: {shown(path)}"


def _is_path(value: Any) -> bool:
    """Tells whether a value is written as a path, and so is no name on the hub."""
    return isinstance(value, str) and value.startswith((".", "/", "~"))


def _is_data_file(value: Any) -> bool:
    return isinstance(value, str) and value.endswith(_DATA_FILES) and "://" not in value


def _exists(path: str) -> bool:
    try:
        return Path(home_expanded(path)).exists()
    except (OSError, ValueError):  # a name too long, a directory that may not be entered, a user that there is not
        return False


def _is_directory(path: str) -> bool:
    return Path(home_expanded(path)).is_dir()
