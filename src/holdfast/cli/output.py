"""How the verbs print: columns for people, JSON for scripts."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints rows under a head, each column as wide as its widest cell; never cut, so that it can be grepped."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def as_json(content: Mapping[str, Any]) -> None:
    """Prints one JSON object."""
    print(json.dumps(content, indent=2))


def size(count: int) -> str:
    """Bytes for people."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def ago(then: float) -> str:
    """How long ago a moment was, for people."""
    seconds = max(0.0, time.time() - then)
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
