"""Prints what the verbs have to say: columns for people, JSON for scripts."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.store.names import shown


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints rows under a head, each column as wide as its widest cell; never cut, so that it can be grepped."""
    rows = [[shown(cell) for cell in row] for row in rows]  # a manifest's text may be anybody's
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def as_json(content: Mapping[str, Any]) -> None:
    """Prints one JSON object."""
    print(json.dumps(_strict(content), indent=2))


def _strict(value: Any) -> Any:
    """Replaces NaN, which a loss may be and JSON does not have, by null."""
    if isinstance(value, Mapping):
        return {key: _strict(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def size(count: int) -> str:
    """Returns a number of bytes for people."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def ago(then: float) -> str:
    """Returns how long ago a moment was, for people."""
    seconds = max(0.0, time.time() - then)
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
