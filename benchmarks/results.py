"""Where figures are kept: one JSON file a run, with its plot beside it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"
UNFINISHED = FOLDER / "unfinished.json"
"""What a run has measured until now; there only while it lasts, or when it was cut off."""


def write(result: Mapping[str, Any], folder: Path = FOLDER) -> Path:
    """Keeps a run's figures as `<date>-<class of the host>.json`; a second one of the same day is numbered."""
    name = f"{result['date']}-{result['host']['class']}"
    path, number = folder / f"{name}.json", 1
    while path.exists():
        number += 1
        path = folder / f"{name}-{number}.json"
    put(result, path)
    return path


def put(result: Mapping[str, Any], path: Path) -> None:
    """Puts figures into a file."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(_short(result), indent=1) + "\n")


def read(path: Path) -> dict[str, Any]:
    """A run's figures."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _short(value: Any) -> Any:
    # Six digits: the rest is noise, and makes files that nobody reads.
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {name: _short(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_short(inner) for inner in value]
    return value
