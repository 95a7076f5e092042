"""Prints what the verbs have to say: columns for people, JSON for scripts.

Nothing else in `cli/` prints: what is shown comes from files that anybody may have written, and is escaped and cut
here.
"""

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.text import encodable, lines_shown, shortened, shown


def tell(text: str = "", *, as_error: bool = False) -> None:
    """Prints lines. A text in them that somebody else wrote has gone through `shown`, which cuts it alone."""
    stream = sys.stderr if as_error else sys.stdout
    print(encodable(lines_shown(text), stream), file=stream, flush=True)


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints rows under a head, each column as wide as its widest cell; not cut to a terminal, but for `grep`."""
    rows = [[shown(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    aligned = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows))
    tell("\n".join(line.rstrip() for line in aligned))


def as_json(content: Mapping[str, Any]) -> None:
    """Prints one JSON object. Each text in it has at most 4 KiB, and no list is cut."""
    print(json.dumps(_strict(content), indent=2))  # which escapes all that is not plain ASCII


def _strict(value: Any) -> Any:
    """Cuts what is long, and replaces NaN, which a loss may be and JSON does not have, by null."""
    if isinstance(value, str):
        return shortened(value)
    if isinstance(value, Mapping):
        strict: dict[str, Any] = {}
        for key, inner in value.items():
            short = shortened(str(key))
            strict[short if short not in strict else f"{short} ({len(strict)})"] = _strict(inner)
        return strict
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


def clock(moment: float) -> str:
    """Returns a moment as the clock here shows it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
